"""poolkit's additions to a Locust run: connections, an open loop, exact latencies, thresholds.

One line in a locustfile, and nothing more about measuring:

    from poolkit import loadtest

    loadtest.register()

`DATABASE_URL` or `--database-url` names the server whose connections are watched, and
`--arrival-rate` makes the loop an open one. `loadtest.TaskUser` is a user for queue workers: its
tasks are done when their results are committed. `loadtest.submit_form` fills in the form of a page,
for users that log in. `loadtest.ArrivalRateShape` is a load shape that returns an arrival rate. See
docs/loadtests.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.loadtest.forms import submit_form

if TYPE_CHECKING:
    from collections.abc import Collection

    from poolkit.loadtest.shapes import ArrivalRateShape
    from poolkit.loadtest.task_user import TaskUser

__all__ = ("ArrivalRateShape", "TaskUser", "register", "submit_form")


def register(*, redirects_to: Collection[str] = ()) -> None:
    """Add poolkit's measurements to Locust: see `locust -f FILE --poolkit-help`.

    A locustfile calls this once at its top; calling it again does nothing. Without a database, or
    when it cannot be watched, the run measures HTTP alone and logs one line about it.

    A redirect to another host than `--host` is a failure and is not followed: the application
    would decide what the test loads.

    Args:
        redirects_to: other hosts that redirects may lead to, such as `login.example.com`.
    """
    # Importing Locust replaces half of the standard library by gevent's.
    from poolkit.loadtest import plugin  # noqa: PLC0415
    from poolkit.loadtest.host_safety import redirect_hosts  # noqa: PLC0415

    redirect_hosts.update(host.lower() for host in redirects_to)
    plugin.register()


def __getattr__(name: str) -> Any:
    """Import a class, and with it Locust, when it is used (PEP 562)."""
    if name == "ArrivalRateShape":
        from poolkit.loadtest.shapes import ArrivalRateShape  # noqa: PLC0415  (as above)

        return ArrivalRateShape
    if name == "TaskUser":
        from poolkit.loadtest.task_user import TaskUser  # noqa: PLC0415  (as above)

        return TaskUser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
