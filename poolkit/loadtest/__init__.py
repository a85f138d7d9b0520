"""What the kit adds to a Locust run: connections, an open loop, exact latencies, thresholds.

A locustfile says it in one line, and nothing more about measuring:

    from poolkit import loadtest

    loadtest.register()

`DATABASE_URL` or `--database-url` names the server whose connections are watched, and
`--arrival-rate` makes the loop an open one. See docs/loadtests.md.
"""

from __future__ import annotations


def register() -> None:
    """Have Locust measure with the kit: see `locust --help`, the groups named "poolkit".

    A locustfile calls this once at its top; calling it again does nothing. Without a database, or
    when it cannot be watched, the run measures HTTP alone and says so in one line.
    """
    # Importing Locust replaces half of the standard library by gevent's.
    from poolkit.loadtest import plugin  # noqa: PLC0415

    plugin.register()
