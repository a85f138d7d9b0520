"""What the kit adds to a Locust run: the database's connections beside the latency.

A locustfile says it in one line, and nothing more about measuring:

    from poolkit.loadtest import watch_connections

    watch_connections()

`DATABASE_URL` or `--database-url` names the server. See docs/loadtests.md.
"""

from poolkit.loadtest.plugin import watch_connections

__all__ = ["watch_connections"]
