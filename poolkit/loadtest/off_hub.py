"""Asking the server without stopping gevent: each question is put in a thread of its own.

psycopg2 waits inside libpq, where gevent cannot switch: asked from a greenlet, a server that
does not answer would stop every user of the load test until the time limit. Locust makes
`threading` give greenlets, so the thread comes from gevent's pool of real ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from gevent.threadpool import ThreadPool

from poolkit.activity.server import ActivityConnection, Sample, ServerLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import URL

Answer = TypeVar("Answer")


class OffHub:
    """One real thread, which asks one question after the other."""

    def __init__(self) -> None:
        self._threads = ThreadPool(1)

    def ask(self, ask: Callable[[], Answer]) -> Answer:
        """Call it in the thread and return what it returns; other greenlets run meanwhile.

        Raises:
            Exception: what it raises.
        """
        # The pool prints the traceback of whatever a thread raises, also of what is expected.
        answer, error = self._threads.apply(_answer_or_error, (ask,))
        if error is not None:
            raise error
        return answer  # type: ignore[no-any-return]


class OffHubActivity(ActivityConnection):
    """An `ActivityConnection` for a greenlet: other greenlets run while it waits."""

    def __init__(self, url: str | URL) -> None:
        super().__init__(url)
        self._off_hub = OffHub()

    def connect(self) -> ServerLimits:
        """Connect, or connect again; see `ActivityConnection.connect`."""
        return self._off_hub.ask(super().connect)

    def sample(self) -> Sample:
        """Ask the server once; see `ActivityConnection.sample`."""
        return self._off_hub.ask(super().sample)


def _answer_or_error(ask: Callable[[], Answer]) -> tuple[Answer | None, Exception | None]:
    try:
        return ask(), None
    except Exception as error:  # noqa: BLE001  (raised again where it was asked)
        return None, error
