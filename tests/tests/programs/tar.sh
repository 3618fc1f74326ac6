mkdir -p /srv/tree/a/b/c /volume/out
cd /srv/tree
n=0
while [ $n -lt 150 ]; do n=$((n + 1)); echo "$n" >a/b/file-$n; done
ln a/b/file-1 a/hard
ln a/b/file-1 a/b/c/hard
ln -s ../nowhere a/soft
mkfifo a/fifo
mknod a/null c 1 3
truncate -s 10M a/sparse
printf 'in the middle' | dd of=a/sparse bs=1 seek=5000000 conv=notrunc status=none
head -c 300000 /dev/urandom >a/random
chown 12:34 a/b/file-2 a/soft -h
chown 56 a/b/c
chmod 4711 a/b/file-3
chmod 1777 a/b/c
setfattr -n user.colour -v green a/b/file-4
setfattr -n user.shape -v round a/b
setfacl -m u:1234:rw a/b/file-5
setfacl -d -m u:1234:rx a/b/c
touch -d '1999-12-31 23:59:59.123456789' a/b/file-6 a/b
ln -s "$(printf 'long/%.0s' $(seq 40))" a/long
touch "a/$(printf 'n%.0s' $(seq 200))" "a/
odd \\ name"

list() { (cd "$1" && find . -printf '%p %y %m %U %G %n %l %T@ ' \( -type d -printf '\n' -o -printf '%s\n' \) | sort); }
attributes() { (cd "$1" && getfattr -R -h -d . && getfacl -R -p -n .) }

tar --create --xattrs --acls --sparse --format=pax --file=/volume/tree.tar .
# An owner's change of a link itself, a device, a list of rights: all there, on both sides.
for out in /volume/out /srv/out; do
  mkdir -p $out
  tar --extract --xattrs --acls --same-owner --preserve-permissions --directory=$out --file=/volume/tree.tar
  list . >/tmp/expected
  list $out >/tmp/found
  diff /tmp/expected /tmp/found
  attributes . >/tmp/expected
  attributes $out >/tmp/found
  diff /tmp/expected /tmp/found
  tar --compare --directory=$out --file=/volume/tree.tar
  cmp a/random $out/a/random
  [ "$(du -k $out/a/sparse | cut -f1)" -lt 100 ]
done
cp -a /srv/tree /volume/copy
list /srv/tree >/tmp/expected
list /volume/copy >/tmp/found
diff /tmp/expected /tmp/found
rm -r /volume/copy /volume/out /srv/out
[ "$(ls /volume)" = tree.tar ]
