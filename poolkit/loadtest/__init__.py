"""What the kit adds to a Locust run: the database's connections beside the latency.

A locustfile says it in one line, and nothing more about measuring:

    from poolkit.loadtest import watch_connections

    watch_connections()

`DATABASE_URL` or `--database-url` names the server. See docs/loadtests.md.
"""

from __future__ import annotations


def watch_connections() -> None:
    """Have Locust watch the connections of the database that a load test is about.

    A locustfile calls this once at its top; calling it again does nothing. The database is named
    by `DATABASE_URL` or `--database-url`; without one, or when it cannot be watched, the run
    measures HTTP as ever and says so in one line.
    """
    # Importing Locust replaces half of the standard library by gevent's.
    from poolkit.loadtest.plugin import register  # noqa: PLC0415

    register()
