"""Where a run's latencies come from: this process's users, or the reports of the workers.

A worker sends with each of Locust's reports what it has recorded since the one before, so one
that dies takes at most one report with it. Locust's master waits half a second for the last
reports and then closes; on a busy machine that is too short, so here it first asks for them.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

import gevent
from locust import runners
from locust.runners import STATE_MISSING

from poolkit.loadtest.interrupt import unless_interrupted_again
from poolkit.loadtest.latency.run_latencies import NO_NAME, Latencies
from poolkit.loadtest.open_loop.due import latency_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from locust.env import Environment
    from locust.runners import MasterRunner, WorkerRunner

    from poolkit.loadtest.open_loop.cut_off import TakeCutOff

LATENCIES = "poolkit_latencies"
ENDED = "poolkit_ended"
ASK_FOR_LAST_REPORT = "poolkit_last_report"
LAST_REPORT_WITHIN_S = 5.0
"""A worker that stops its users at once needs milliseconds; one that died is missing by then."""
HURRIED_WITHIN_S = 1.0
"""After a second Ctrl-C; of a terminal it reaches workers too, which then report at once."""
_LOOK_EVERY_S = 0.02
_HEAR_S = 0.02

logger = logging.getLogger("poolkit.loadtest")


class Source(Protocol):
    """What a run's latencies come from."""

    @property
    def lost(self) -> Mapping[str, str]:
        """By worker, what of its latencies is missing."""

    def take(self) -> Latencies:
        """Return what came since the last call."""

    def begin_again(self) -> None:
        """Forget what came so far: the measured time begins now."""

    def look_for_lost(self) -> None:
        """Say once of each worker that it is gone."""

    def collect_rest(self) -> None:
        """Wait until there is nothing more to come."""


class OwnLatencies:
    """Those of this process's users.

    Args:
        environment: Locust's.
        take_cut_off: gives what was cut off here since it was called last.

    """

    def __init__(self, environment: Environment, take_cut_off: TakeCutOff) -> None:
        self.lost: Mapping[str, str] = {}
        self._take_cut_off = take_cut_off
        self._new = Latencies()
        environment.events.request.add_listener(self._on_request)  # type: ignore[no-untyped-call]

    def take(self) -> Latencies:
        """Return what was recorded since the last call."""
        new, self._new = self._new, Latencies(self._new.begin)
        cut_off, now = self._take_cut_off(), time.time()
        counters = new.of(NO_NAME)
        # They were cut off since the last call, a second ago at most.
        for ms in cut_off.unanswered_ms:
            counters.add(now - ms / 1000, now, ms, "timed_out")
        for ms in cut_off.unsent_ms:
            counters.add(now - ms / 1000, now, ms, "dropped")
        return new

    def begin_again(self) -> None:
        """Forget what was recorded so far: the measured time begins now."""
        self.take()
        self._new = Latencies(time.time())

    def look_for_lost(self) -> None:
        """Do nothing: there is no worker to lose."""

    def collect_rest(self) -> None:
        """Let users hear the answers that have come while Locust wrote its report."""
        gevent.sleep(_HEAR_S)
        gevent.sleep(0)  # and an open loop hand out what was due as they heard them

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
        # Locust's event may be fired without a time, about something that took none.
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
    """A worker's part: it adds its latencies to Locust's reports, and sends a last one in time."""

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
        # The master is to know at once whom it can lose.
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
        # A worker that is ended by itself says goodbye without a last report.
        unless_interrupted_again(self._environment, self._runner.stop)

    def _report(self) -> None:
        """Send a report as Locust does every three seconds, now."""
        data: dict[str, Any] = {}
        send = self._environment.events.report_to_master.fire
        send(client_id=self._runner.client_id, data=data)  # type: ignore[no-untyped-call]
        self._runner.send_message("stats", data)


class WorkersLatencies:
    """The master's part: it adds up what the workers report."""

    def __init__(self, environment: Environment, runner: MasterRunner) -> None:
        self.lost: dict[str, str] = {}
        self._environment, self._runner = environment, runner
        self._new = Latencies()
        self._reporting: set[str] = set()
        self._ended: set[str] = set()
        self._silent: set[str] = set()
        """Who is there and sent no last report: its heartbeats do not make up for that."""
        self._hurried = False
        for event, listener in (
            (environment.events.test_start, self._on_start),
            (environment.events.test_stop, self._on_stop),
            (environment.events.worker_report, self._on_report),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]

    def take(self) -> Latencies:
        """Return what was reported since the last call."""
        new, self._new = self._new, Latencies()
        return new

    def begin_again(self) -> None:
        """Forget what was reported so far; the workers know themselves when they begin again."""
        self.take()

    def look_for_lost(self) -> None:
        """Say once of each worker that it is gone, and once that it is back."""
        for worker in self._runner.clients.all:
            if worker.state == STATE_MISSING and worker.id in self._reporting - self._ended:
                self._lose(worker.id)
            elif worker.state != STATE_MISSING and worker.id not in self._silent:
                self._find(worker.id)

    def _find(self, worker: str) -> None:
        if self.lost.pop(worker, None):
            logger.info("%s answers again: nothing of it is lost", self._called(worker))

    def collect_rest(self) -> None:
        """Ask every worker for its last report, and wait for it; say who sent none."""
        for awaited in self._awaited():
            self._runner.send_message(ASK_FOR_LAST_REPORT, client_id=awaited)
        self._wait_for_last_reports()
        self.look_for_lost()
        for silent in self._awaited():
            self._silent.add(silent)
            self._lose(silent)

    def _wait_for_last_reports(self) -> None:
        patient_s = self._environment.stop_timeout + LAST_REPORT_WITHIN_S
        within_s = HURRIED_WITHIN_S if self._hurried else patient_s
        try:
            with gevent.Timeout(within_s, False):
                while self._awaited():
                    gevent.sleep(_LOOK_EVERY_S)
        except KeyboardInterrupt:
            self._hurried = True
            raise

    def _awaited(self) -> set[str]:
        there = {one.id for one in self._runner.clients.all if one.state != STATE_MISSING}
        return (there & self._reporting) - self._ended - self.lost.keys()

    def _lose(self, worker: str) -> None:
        if worker not in self.lost:
            self.lost[worker] = (
                f"{self._called(worker)} ended in the middle: up to "
                f"{runners.WORKER_REPORT_INTERVAL:g} s of its latencies are lost"
            )
            logger.warning(self.lost[worker])

    def _called(self, worker: str) -> str:
        index: int = self._runner.get_worker_index(worker)  # type: ignore[no-untyped-call]
        return f"worker {index} ({worker})"

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
