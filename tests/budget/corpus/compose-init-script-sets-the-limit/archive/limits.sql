ALTER SYSTEM SET max_connections = 40;
