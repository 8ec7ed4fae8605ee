# Writers of two databases, one with a rollback journal and one with a write-ahead log. A row that
# was acknowledged is counted outside the container, and is in the database at the end.
mkdir -p /srv/sqlite
cd /srv/sqlite
write() {
    count=0
    while :; do
        sqlite3 -bail -cmd '.timeout 60000' "$1.db" \
            "INSERT INTO t VALUES ($2, $count, hex(randomblob($((count % 50 * 20)))))"
        count=$((count + 1))
        echo $count > "/outside/sqlite.$1.$2"
        [ ! -e /outside/stop ] || break
    done
}
pids=
for mode in delete wal; do
    sqlite3 $mode.db "PRAGMA journal_mode=$mode; CREATE TABLE t (writer, n, pad)"
    for writer in 1 2 3; do
        write $mode $writer &
        pids="$pids $!"
    done
done
for pid in $pids; do wait "$pid"; done
rows=0
for mode in delete wal; do
    [ "$(sqlite3 $mode.db 'PRAGMA integrity_check')" = ok ]
    for writer in 1 2 3; do
        told=$(cat "/outside/sqlite.$mode.$writer")
        kept=$(sqlite3 $mode.db "SELECT count(*) FROM t WHERE writer = $writer")
        [ "$told" = "$kept" ] || { echo "$mode, writer $writer: $kept rows of $told"; exit 1; }
        rows=$((rows + kept))
    done
done
echo "$rows rows"
