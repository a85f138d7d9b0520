"""The handler of `benchmarks/lambda_fleet.py`: `SELECT 1` on a connection kept while warm."""

import os

import psycopg2

connection = None


def handler(event, context):
    global connection  # noqa: PLW0603 - what outlives an invoke is the module
    if connection is None:
        connection = psycopg2.connect(os.environ["DATABASE_DSN"])
        connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(os.environ["STATEMENT"])
        return {"statusCode": 200, "body": str(cursor.fetchone()[0])}
