-- Run once, as the owner, when the database is created: the role of web, worker and PgBouncer.
\set password `cat /run/secrets/application/password`
CREATE ROLE app LOGIN PASSWORD :'password';
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO app;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO app;
