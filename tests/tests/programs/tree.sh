# Packages within packages, as npm lays them out: 1,200 files of some hundred bytes.
text='exports.value = function (argument) { return argument * 2 + 1 }; // a line of a script like many others'
make_tree() {
  for a in 0 1 2 3 4 5; do
    for b in 0 1 2 3 4; do
      d=$1/node_modules/package-$a/node_modules/@scope/package-$b/lib/deep/er
      mkdir -p $d
      for c in 0 1 2 3; do
        for e in 0 1 2 3 4 5 6 7 8 9; do printf '%s %s\n' "$text" $a$b$c$e >$d/file-$c-$e.js; done
      done
    done
  done
}
sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 md5sum); }

make_tree /srv/tree
[ "$(find /srv/tree -type f | wc -l)" = 1200 ]
cp -r /srv/tree /volume/tree
sums /srv/tree >/tmp/one
sums /volume/tree >/tmp/two
[ "$(wc -l </tmp/one)" = 1200 ]
cmp /tmp/one /tmp/two
[ "$(cut -d' ' -f1 /tmp/one | sort -u | wc -l)" = 1200 ]
mv /volume/tree/node_modules/package-0 /volume/moved
[ "$(find /volume/moved -type f | wc -l)" = 200 ]
rm -rf /srv/tree /volume/tree /volume/moved
[ ! -e /srv/tree ] && [ -z "$(ls /volume)" ]
