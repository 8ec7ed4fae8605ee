# git: a repository is cloned, changed, packed and checked, again and again.
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null HOME=/root
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
mkdir -p /srv/git
cd /srv/git
git init -q -b main source
cd source
# Something with many files that every such root has.
cp -r /usr/share/doc files
git add . && git commit -q -m 1
cd ..
count=0
while :; do
    git clone -q --no-local --no-hardlinks source clone
    git -C clone fsck --full --strict --no-progress
    [ -z "$(git -C clone status --porcelain)" ]
    diff -r --no-dereference -x .git source clone
    git -C clone mv files moved
    echo "change $count" > clone/change
    git -C clone add change
    git -C clone commit -q -m "moved $count"
    [ $((count % 5)) != 0 ] || git -C clone gc -q
    git -C clone fsck --full --strict --no-progress
    git -C clone checkout -q HEAD~1
    diff -r --no-dereference -x .git source clone
    rm -r clone
    count=$((count + 1))
    [ ! -e /outside/stop ] || break
done
echo "$count clones"
