"""Connections that a test holds while it looks at who is connected."""

import contextlib

import psycopg2


@contextlib.contextmanager
def connected(database, name: str, count: int = 1):
    """Hold some connections of the application's role, in autocommit."""
    with contextlib.ExitStack() as held:
        connections = []
        for _ in range(count):
            connection = psycopg2.connect(database.url(""), application_name=name)
            connection.autocommit = True
            connections.append(held.enter_context(contextlib.closing(connection)))
        yield connections
