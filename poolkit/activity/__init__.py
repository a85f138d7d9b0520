"""Who is connected to the server: a sampler of `pg_stat_activity`, its figures by target, and a live view."""
