"""The embedded stack: PostgreSQL, broker, PgBouncer and the processes under load.

Everything here listens on the loopback address alone, keeps its files in one private
directory, and is ended with the process that started it, however that process ends.
"""
