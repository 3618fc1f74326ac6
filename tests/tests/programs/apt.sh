repository=/volume/repository
mkdir -p $repository /srv/build
export DEBIAN_FRONTEND=noninteractive

# package NAME VERSION DEPENDS: a package with a file, a link, a setuid program, settings and a script.
package() {
  d=/srv/build/$1
  rm -rf $d
  mkdir -p $d/DEBIAN $d/usr/share/$1 $d/usr/bin $d/etc
  echo "$1 $2" >$d/usr/share/$1/version
  ln $d/usr/share/$1/version $d/usr/share/$1/same
  ln -s ../share/$1/version $d/usr/bin/$1-version
  cp /bin/true $d/usr/bin/$1
  chmod 4755 $d/usr/bin/$1
  for n in 1 2 3 4 5 6 7 8 9 10; do echo $n >$d/usr/share/$1/file-$n-of-$2; done
  echo 'setting = 1' >$d/etc/$1.conf
  echo /etc/$1.conf >$d/DEBIAN/conffiles
  printf '#!/bin/sh\necho "$1" >>/var/log/%s\n' $1 >$d/DEBIAN/postinst
  chmod 755 $d/DEBIAN/postinst
  cat >$d/DEBIAN/control <<END
Package: $1
Version: $2
Architecture: all
Maintainer: test <test@example.org>
Depends: $3
Description: a package of the tests
END
  dpkg-deb --root-owner-group -Zxz -z0 --build $d $repository/$1_$2.deb >/dev/null
}

index() {
  (
    cd $repository
    for deb in *.deb; do
      dpkg-deb -f $deb
      echo "Filename: ./$deb"
      echo "Size: $(stat -c %s $deb)"
      echo "SHA256: $(sha256sum $deb | cut -d' ' -f1)"
      echo
    done >Packages
  )
}

apt() { apt-get -qq -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 "$@" >/srv/apt.log 2>&1 || { cat /srv/apt.log; return 1; }; }

echo "deb [trusted=yes] file:$repository ./" >/etc/apt/sources.list
rm -f /etc/apt/sources.list.d/*
package low 1 libc6
package high 1 low
index
apt update
apt install -y high
[ "$(cat /usr/bin/high-version)" = 'high 1' ]
[ "$(dpkg-query -W -f '${db:Status-Status} ' low high)" = 'installed installed ' ]
[ "$(stat -c '%a %u %h' /usr/bin/low /usr/share/low/same | tr '\n' ' ')" = '4755 0 1 644 0 2 ' ]
[ "$(cat /var/log/low)" = configure ]
dpkg --verify low high

echo 'setting = 2' >/etc/low.conf
package low 2 libc6
index
apt update
apt dist-upgrade -y -o Dpkg::Options::=--force-confold
[ "$(cat /usr/bin/low-version) $(cat /etc/low.conf)" = 'low 2 setting = 2' ]
[ -e /usr/share/low/file-1-of-2 ] && [ ! -e /usr/share/low/file-1-of-1 ]
dpkg --audit

apt remove --purge -y low high
for path in /usr/share/low /usr/bin/low /etc/low.conf /usr/share/high; do [ ! -e $path ]; done
dpkg --audit
