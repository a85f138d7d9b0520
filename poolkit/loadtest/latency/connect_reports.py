"""The source of a run's connects: this process's HTTP clients, or the reports of the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.loadtest.latency.connects import ClientConnects
from poolkit.loadtest.locust_internals import count_client_connects, count_resent_requests

if TYPE_CHECKING:
    from collections.abc import Mapping

    from locust.env import Environment
    from locust.runners import MasterRunner

_REPORT = "poolkit_client_connects"


class OwnConnects:
    """Counts those of this process, from the start of each test; call it once in a process.

    Args:
        environment: Locust's.
    """

    def __init__(self, environment: Environment) -> None:
        self._counts = ClientConnects()

        def connected(ms: float, is_tls: bool) -> None:  # noqa: FBT001  (called by position)
            self._counts.opened += 1
            self._counts.tls += is_tls
            self._counts.times.record(ms)

        def failed() -> None:
            self._counts.failed += 1

        def sent() -> None:
            self._counts.requests += 1

        def resent(times: int) -> None:
            self._counts.resent += times

        count_client_connects(connected=connected, failed=failed, sent=sent)
        count_resent_requests(resent)

        def begin_again(**_: Any) -> None:
            self._counts = ClientConnects()

        def on_spawning_complete(**_: Any) -> None:
            if environment.reset_stats:
                begin_again()

        def on_report(*, data: dict[str, Any], **_: Any) -> None:
            data[_REPORT] = self._counts.to_message()

        for event, listener in (
            (environment.events.test_start, begin_again),
            (environment.events.reset_stats, begin_again),
            (environment.events.spawning_complete, on_spawning_complete),
            (environment.events.report_to_master, on_report),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]

    def counts(self) -> ClientConnects:
        """Return the counts so far."""
        return self._counts


class WorkersConnects:
    """The master's side: the sum of its workers' latest reports."""

    def __init__(self, environment: Environment, runner: MasterRunner) -> None:
        self._by_worker: dict[str, ClientConnects] = {}
        """A worker reports all since the start of the test, so a lost report loses nothing."""

        def begin_again(**_: Any) -> None:
            self._by_worker.clear()

        def on_report(*, client_id: str, data: Mapping[str, Any], **_: Any) -> None:
            if _REPORT in data:
                self._by_worker[client_id] = ClientConnects.from_message(data[_REPORT])

        for event, listener in (
            (environment.events.test_start, begin_again),
            (environment.events.reset_stats, begin_again),
            (environment.events.worker_report, on_report),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]

    def counts(self) -> ClientConnects:
        """Return the counts of all workers together."""
        found = ClientConnects()
        for one in self._by_worker.values():
            found.add(one)
        return found
