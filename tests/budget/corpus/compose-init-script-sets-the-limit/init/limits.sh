#!/bin/sh
echo "max_connections = 40" >> "$PGDATA/postgresql.conf"
