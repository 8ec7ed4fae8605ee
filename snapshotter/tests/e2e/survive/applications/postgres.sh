# PostgreSQL in the container's root, and pgbench for as long as the load lasts. Every transaction
# adds one number to an account, a teller, a branch and the history: the sums are equal, always.
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
data=/var/lib/postgresql/load socket=/var/lib/postgresql/socket
as() { setpriv --reuid postgres --regid postgres --init-groups env PATH="$bin:$PATH" PGHOST="$socket" "$@"; }
sql() { as psql -X -A -t -q -v ON_ERROR_STOP=1 -c "$1" postgres; }
cd /var/lib/postgresql
mkdir -p "$socket"
chown postgres: /var/lib/postgresql "$socket"
as initdb -D "$data" --data-checksums --auth=trust --no-instructions
as pg_ctl start -s -w -t 120 -D "$data" -l "$socket/log" -o "-k $socket -h ''"
as pgbench -i -q -s 5 postgres
while :; do
    as pgbench -n -c 4 -j 1 -T 5 postgres
    sums=$(sql "SELECT count(DISTINCT sum) FROM (SELECT sum(abalance) FROM pgbench_accounts
        UNION ALL SELECT sum(tbalance) FROM pgbench_tellers UNION ALL SELECT sum(bbalance)
        FROM pgbench_branches UNION ALL SELECT coalesce(sum(delta), 0) FROM pgbench_history) sums")
    [ "$sums" = 1 ] || { echo "the balances have $sums different sums"; exit 1; }
    # What the server itself has complained of: pgbench would not always see it.
    if grep -E 'PANIC|FATAL|ERROR|WARNING' "$socket/log"; then exit 1; fi
    [ ! -e /outside/stop ] || break
done
as pg_amcheck --heapallindexed --parent-check --install-missing postgres
count=$(sql 'SELECT count(*) FROM pgbench_history')
as pg_ctl stop -s -w -m fast -D "$data"
as pg_checksums --check -D "$data"
echo "$count transactions"
