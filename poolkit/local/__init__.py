"""The embedded stack: PostgreSQL, broker, PgBouncer and the processes under load.

Every server listens on the loopback address only, and stores its files in a private directory. It
ends with the process that started it, however that process ends.

In order of reading: `stack` (the servers of a run), `postgres` (with `postgres_cluster`),
`broker` and `pgbouncer` on their base `loopback_server`, `processes` (the supervisor, and the
processes that end for certain), then `leftovers` and `reaper`.
"""
