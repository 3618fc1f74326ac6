# Four processes write to one database, with a rollback journal and with a write-ahead log that they share in memory.
numbers='WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<40) SELECT'
for place in /volume /srv; do
  for mode in delete wal; do
    db=$place/$mode.db
    set_up=$(sqlite3 $db "PRAGMA journal_mode=$mode; CREATE TABLE t(writer INT, x INT, text TEXT); CREATE INDEX i ON t(writer, x)")
    [ "$set_up" = $mode ]
    writers=
    for writer in 1 2 3 4; do
      {
        echo .timeout 120000
        for round in 1 2 3 4; do
          echo "BEGIN IMMEDIATE; INSERT INTO t $numbers $writer, x, hex(randomblob(50)) FROM n; COMMIT;"
          echo "UPDATE t SET text = text || x WHERE writer = $writer AND x = $round;"
        done
      } | sqlite3 -bail $db &
      writers="$writers $!"
    done
    for writer in $writers; do wait $writer; done
    [ "$(sqlite3 $db 'PRAGMA integrity_check')" = ok ]
    [ "$(sqlite3 $db 'SELECT count(*), count(DISTINCT writer), sum(x) FROM t')" = '640|4|13120' ]
    # Its own copy, and one that the file system makes while nobody writes.
    sqlite3 $db "VACUUM INTO '$place/copy.db'"
    [ "$(sqlite3 $place/copy.db 'PRAGMA integrity_check; SELECT count(*) FROM t' | tr '\n' ' ')" = 'ok 640 ' ]
    rm $place/copy.db
  done
done
