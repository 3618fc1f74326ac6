# fsync is on, as by default. Sums that each transaction keeps equal are so after a crash.
bin=/usr/lib/postgresql/15/bin
data=/volume/data
mkdir $data
chown postgres $data
cd /volume
as() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
query() { as $bin/psql --host=$data --no-psqlrc -At --command="$1" postgres; }
up() { as $bin/pg_ctl --pgdata=$data --wait --silent --timeout=120 --log=$data/log start; }

as $bin/initdb --pgdata=$data --data-checksums --auth=trust --no-locale --encoding=UTF8 --no-instructions >/dev/null
cat >>$data/postgresql.conf <<END
listen_addresses = ''
unix_socket_directories = '$data'
shared_buffers = 16MB
max_connections = 10
END
up
[ "$(query 'show fsync')" = on ]
as $bin/pgbench --host=$data --initialize --init-steps=dtGvp --quiet postgres 2>$data/init.log
as $bin/pgbench --host=$data --client=3 --transactions=60 postgres >$data/bench.log 2>&1
[ "$(query 'select count(*) from pgbench_history')" = 180 ]

# Nobody waits for these: the server dies under them.
as $bin/pgbench --host=$data --client=3 --time=60 --no-vacuum postgres >$data/bench.log 2>&1 &
bench=$!
sleep 3
as $bin/pg_ctl --pgdata=$data --silent --mode=immediate stop
wait $bench && exit 1
up
sums=$(query "select (select sum(abalance) from pgbench_accounts) = s and (select sum(bbalance) from pgbench_branches) = s
  and (select sum(tbalance) from pgbench_tellers) = s and n > 180 from (select sum(delta) s, count(*) n from pgbench_history) h")
[ "$sums" = t ]
query 'vacuum full pgbench_history' >/dev/null
query 'reindex table pgbench_accounts' >/dev/null
[ "$(query 'set enable_seqscan = off; select count(*) from pgbench_accounts where aid > 0' | tail -n 1)" = 100000 ]
as $bin/pg_ctl --pgdata=$data --wait --silent --mode=fast stop
as $bin/pg_checksums --pgdata=$data --check >$data/checksums.log
grep -q 'Bad checksums: *0' $data/checksums.log
