export GIT_AUTHOR_NAME=test GIT_AUTHOR_EMAIL=test@example.org GIT_COMMITTER_NAME=test GIT_COMMITTER_EMAIL=test@example.org
git config --global init.defaultBranch main
git config --global advice.detachedHead false
git config --global core.fsync all
git init --quiet /srv/project
cd /srv/project
for d in 0 1 2 3 4 5 6 7 8 9; do
  mkdir -p dir$d/below
  for f in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do
    echo "file $f of directory $d" >dir$d/$f.txt
    echo "$f $d" >dir$d/below/$f.c
  done
done
ln -s dir0/0.txt link
chmod +x dir1/1.txt
git add .
git commit --quiet --message one
[ -z "$(git status --porcelain)" ]

git checkout --quiet -b work
for d in 0 1 2 3; do echo changed >>dir$d/5.txt; git mv dir$d/6.txt dir$d/moved.txt; git rm --quiet dir$d/7.txt; done
git commit --quiet --all --message two
git checkout --quiet main
[ -e dir0/7.txt ] && [ ! -e dir0/moved.txt ]
echo elsewhere >>dir9/9.txt
git commit --quiet --all --message three
git merge --quiet --no-edit work
[ "$(git ls-files | wc -l)" = 297 ]

# On the same file system objects become hard links, on another they are copied.
git clone --quiet /srv/project /srv/clone
git clone --quiet /srv/project /volume/clone
git gc --quiet
for repository in /srv/project /srv/clone /volume/clone; do
  git -C $repository fsck --full --strict --no-progress
  [ "$(git -C $repository rev-parse HEAD^{tree})" = "$(git rev-parse HEAD^{tree})" ]
  # Nothing seems changed to the index, now or when all that is cached has grown old.
  [ -z "$(git -C $repository status --porcelain)" ]
done
sleep 1.2
for repository in /srv/project /srv/clone /volume/clone; do
  git -C $repository diff-files --quiet
done
cd /volume/clone
echo more >new.txt
git add new.txt
git commit --quiet --message four
git push --quiet origin HEAD:pushed
[ "$(git -C /srv/project rev-parse pushed)" = "$(git rev-parse HEAD)" ]
