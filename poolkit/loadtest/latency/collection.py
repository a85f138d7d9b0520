"""The source of a run's latencies: this process's users, or the reports of the workers.

Each of a worker's reports has the latencies since the report before, so a worker that dies loses at
most one report. Locust's master waits half a second for the last reports and then closes; on a busy
machine that is too short, so the master here asks for them first.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

import gevent

from poolkit.loadtest.event_loop import unless_interrupted_again
from poolkit.loadtest.latency.counters import NO_NAME, Latencies
from poolkit.loadtest.locust_internals import (
    report_interval_s,
    report_to_master,
    worker_index,
    workers_of,
)
from poolkit.loadtest.open_loop.users import latency_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from locust.env import Environment
    from locust.runners import MasterRunner, WorkerRunner

    from poolkit.loadtest.open_loop.users import TakeCutOff

LATENCIES = "poolkit_latencies"
ENDED = "poolkit_ended"
ASK_FOR_LAST_REPORT = "poolkit_last_report"
LAST_REPORT_WITHIN_S = 5.0
"""A worker that stops its users at once needs milliseconds; one that died is missing by then."""
HURRIED_WITHIN_S = 1.0
"""After a second Ctrl-C. In a terminal it reaches the workers too, which then report at once."""
_LOOK_EVERY_S = 0.02
_RECEIVE_S = 0.02

logger = logging.getLogger("poolkit.loadtest")


class Source(Protocol):
    """The source of a run's latencies."""

    @property
    def lost(self) -> Mapping[str, str]:
        """Which latencies are missing, by worker."""

    def take(self) -> Latencies:
        """Return the latencies since the last call."""

    def begin_again(self) -> None:
        """Forget the latencies so far: the measured time begins now."""

    def look_for_lost(self) -> None:
        """Warn once of each worker that is gone."""

    def collect_rest(self) -> None:
        """Wait until all latencies have arrived."""


class OwnLatencies:
    """The latencies of this process's users.

    Args:
        environment: Locust's.
        take_cut_off: returns what was cut off here since its last call.

    """

    def __init__(self, environment: Environment, take_cut_off: TakeCutOff) -> None:
        self.lost: Mapping[str, str] = {}
        self._take_cut_off = take_cut_off
        self._new = Latencies()
        environment.events.request.add_listener(self._on_request)  # type: ignore[no-untyped-call]

    def take(self) -> Latencies:
        """Return the latencies since the last call."""
        new, self._new = self._new, Latencies(self._new.begin)
        cut_off, now = self._take_cut_off(), time.time()
        counters = new.of(NO_NAME)
        # They were cut off since the last call, a second ago at most.
        for ms in cut_off.timed_out_ms:
            counters.add(now - ms / 1000, now, ms, "timed_out")
        for ms in cut_off.dropped_ms:
            counters.add(now - ms / 1000, now, ms, "dropped")
        return new

    def begin_again(self) -> None:
        """Forget the latencies so far: the measured time begins now."""
        self.take()
        self._new = Latencies(time.time())

    def look_for_lost(self) -> None:
        """Do nothing: there is no worker."""

    def collect_rest(self) -> None:
        """Wait until users have received the answers that arrived while Locust wrote its report."""
        gevent.sleep(_RECEIVE_S)
        gevent.sleep(0)  # and an open loop has begun what was scheduled meanwhile

    def _on_request(
        self,
        *,
        request_type: str,
        name: str,
        response_time: float | None,
        exception: BaseException | None = None,
        start_time: float | None = None,
        context: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        # Locust's event may be fired without a time.
        if response_time is not None:
            ms = latency_ms(start_time, response_time, context)
            ended = time.time() if start_time is None else start_time + response_time / 1000
            self._new.record(
                request_type,
                name,
                ms,
                outcome="answered" if exception is None else "failed",
                scheduled=ended - ms / 1000,
                ended=ended,
            )


class WorkerReports:
    """A worker's side: adds its latencies to Locust's reports, and sends a last report in time."""

    def __init__(
        self, environment: Environment, runner: WorkerRunner, take_cut_off: TakeCutOff
    ) -> None:
        self._environment, self._runner = environment, runner
        self._own = OwnLatencies(environment, take_cut_off)
        self._ended = False
        runner.register_message(ASK_FOR_LAST_REPORT, self._on_asked)
        for event, listener in (
            (environment.events.test_start, self._on_start),
            (environment.events.spawning_complete, self._on_spawning_complete),
            (environment.events.report_to_master, self._on_report),
            (environment.events.test_stop, self._on_stop),
            (environment.events.quitting, self._on_quitting),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]

    def _on_start(self, **_: Any) -> None:
        self._ended = False
        self._own.begin_again()
        # From now on the master counts on this worker's latencies.
        self._report()

    def _on_spawning_complete(self, **_: Any) -> None:
        if self._environment.reset_stats:
            self._own.begin_again()

    def _on_report(self, *, data: dict[str, Any], **_: Any) -> None:
        data[LATENCIES] = self._own.take().to_message()
        data[ENDED] = self._ended

    def _on_stop(self, **_: Any) -> None:
        self._ended = True
        self._report()

    def _on_asked(self, **_: Any) -> None:
        self._runner.stop()
        self._ended = True
        self._report()

    def _on_quitting(self, **_: Any) -> None:
        # A worker that is ended alone signs off without a last report.
        unless_interrupted_again(self._environment, self._runner.stop)

    def _report(self) -> None:
        report_to_master(self._environment, self._runner)


class WorkersLatencies:
    """The master's side: adds up the reports of the workers."""

    def __init__(self, environment: Environment, runner: MasterRunner) -> None:
        self.lost: dict[str, str] = {}
        self._environment, self._runner = environment, runner
        self._new = Latencies()
        self._reporting: set[str] = set()
        self._ended: set[str] = set()
        self._silent: set[str] = set()
        """Connected workers without a last report: their heartbeats do not make up for it."""
        self._hurried = False
        for event, listener in (
            (environment.events.test_start, self._on_start),
            (environment.events.test_stop, self._on_stop),
            (environment.events.worker_report, self._on_report),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]

    def take(self) -> Latencies:
        """Return the latencies since the last call."""
        new, self._new = self._new, Latencies()
        return new

    def begin_again(self) -> None:
        """Forget the latencies so far; the workers begin again by themselves."""
        self.take()

    def look_for_lost(self) -> None:
        """Warn once of each worker that is gone; log once that it is back."""
        for worker, is_alive in workers_of(self._runner).items():
            if not is_alive and worker in self._reporting - self._ended:
                self._lose(worker)
            elif is_alive and worker not in self._silent:
                self._find(worker)

    def _find(self, worker: str) -> None:
        if self.lost.pop(worker, None):
            logger.info("%s answers again: none of its latencies is lost", self._label(worker))

    def collect_rest(self) -> None:
        """Request every worker's last report, and wait; warn of the workers that sent none."""
        for worker in self._awaited():
            self._runner.send_message(ASK_FOR_LAST_REPORT, client_id=worker)
        patient_s = self._environment.stop_timeout + LAST_REPORT_WITHIN_S
        try:
            with gevent.Timeout(HURRIED_WITHIN_S if self._hurried else patient_s, False):
                while self._awaited():
                    gevent.sleep(_LOOK_EVERY_S)
        except KeyboardInterrupt:
            self._hurried = True
            raise
        self.look_for_lost()
        for silent in self._awaited():
            self._silent.add(silent)
            self._lose(silent)

    def _awaited(self) -> set[str]:
        alive = {worker for worker, is_alive in workers_of(self._runner).items() if is_alive}
        return (alive & self._reporting) - self._ended - self.lost.keys()

    def _lose(self, worker: str) -> None:
        if worker not in self.lost:
            self.lost[worker] = (
                f"{self._label(worker)} ended in the middle: up to "
                f"{report_interval_s():g} s of its latencies are lost"
            )
            logger.warning(self.lost[worker])

    def _label(self, worker: str) -> str:
        return f"worker {worker_index(self._runner, worker)} ({worker})"

    def _on_start(self, **_: Any) -> None:
        self._ended.clear()
        self._silent.clear()
        self._hurried = False
        self.lost.clear()
        self._new = Latencies()

    def _on_stop(self, **_: Any) -> None:
        self.collect_rest()

    def _on_report(self, *, client_id: str, data: Mapping[str, Any], **_: Any) -> None:
        if LATENCIES not in data:
            return
        self._reporting.add(client_id)
        self._new.add(Latencies.from_message(data[LATENCIES]))
        if data[ENDED]:
            self._ended.add(client_id)
            self._silent.discard(client_id)
            self._find(client_id)
