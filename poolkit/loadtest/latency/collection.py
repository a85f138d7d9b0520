"""The source of a run's latencies: this process's users, or the reports of the workers.

Each of a worker's reports has the latencies since the report before, so a worker that dies loses at
most one report. Locust's master waits half a second for the last reports and then closes; on a busy
machine that is too short, so the master here asks for them first.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import gevent
from locust.runners import WorkerRunner

from poolkit.errors import ConfigurationError
from poolkit.loadtest.event_loop import unless_interrupted_again
from poolkit.loadtest.latency.counters import DROPPED, NO_NAME, TIMED_OUT, Latencies
from poolkit.loadtest.locust_internals import (
    note_tags,
    report_interval_s,
    report_to_master,
    worker_index,
    workers_of,
)
from poolkit.loadtest.open_loop.users import answered, tags_of_the_task, user_class_of_the_task
from poolkit.loadtest.request_rows import (
    RequestFile,
    RunRow,
    check_format,
    of_worker,
    request_row,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from locust.env import Environment
    from locust.runners import MasterRunner

    from poolkit.loadtest.latency.counters import Outcome
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


class OwnLatencies:
    """The latencies of this process's users.

    Args:
        environment: Locust's.
        take_cut_off: returns what was cut off here since its last call.
    """

    def __init__(self, environment: Environment, take_cut_off: TakeCutOff) -> None:
        self.lost: Mapping[str, str] = {}
        """Empty: there is no worker whose latencies could be missing."""
        self._take_cut_off = take_cut_off
        self._tags: frozenset[str] = frozenset()
        """Those that a threshold is about; usually none, and then none are looked up."""
        self.step: Latencies | None = None
        """Counts the requests of a step of `--find-limit` too, while it is measured."""
        self._rows: RequestFile | None = None
        """The file with every request, if there is to be one."""

        def on_start(**_: Any) -> None:
            # A worker has its master's options by now.
            options = environment.parsed_options
            self._tags = frozenset(getattr(options, "poolkit_tags", None) or ())
            path = getattr(options, "poolkit_requests_file", "")
            if path and self._rows is None:
                self._rows = _open_rows(environment, path)
            if self._tags or self._rows is not None:
                note_tags()

        def on_quit(**_: Any) -> None:
            # After the last `take`, which has the requests that were cut off.
            if self._rows is not None:
                self._rows.close()

        environment.events.test_start.add_listener(on_start)  # type: ignore[no-untyped-call]
        environment.events.quit.add_listener(on_quit)  # type: ignore[no-untyped-call]
        self._new = Latencies()
        environment.events.request.add_listener(self._on_request)  # type: ignore[no-untyped-call]
        environment.events.test_stopping.add_listener(  # type: ignore[no-untyped-call]
            lambda **_: self._new.end_at(time.time())
        )

    def take(self, begin: float | None = None) -> Latencies:
        """Return the latencies since the last call.

        Args:
            begin: when a new measured time begins, Unix time; without it the present one goes on.
        """
        new = self._new
        self._new = Latencies(new.begin, new.end) if begin is None else Latencies(begin)
        cut_off, now = self._take_cut_off(), time.time()
        # They were cut off since the last call, a second ago at most.
        waits: dict[Outcome, Sequence[float]] = {
            "timed_out": cut_off.timed_out_ms,
            "dropped": cut_off.dropped_ms,
        }
        for outcome, each in waits.items():
            for ms in each:
                new.record(*NO_NAME, ms, outcome=outcome, scheduled=now - ms / 1000, ended=now)
                if self._rows is not None:
                    error = TIMED_OUT if outcome == "timed_out" else DROPPED
                    self._rows.add(RunRow(now - ms / 1000, None, ms, None, *NO_NAME, 0, error))
        return new

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
        start_time: object = None,
        response: object = None,
        **_: Any,
    ) -> None:
        # Locust's event may be fired without a time.
        if response_time is not None:
            ended, ms = answered(start_time, response_time, failed=exception is not None)
            scheduled = ended - ms / 1000
            outcome: Outcome = "answered" if exception is None else "failed"
            self._new.record(
                request_type, name, ms, outcome=outcome, scheduled=scheduled, ended=ended
            )
            if self._tags or self.step is not None:
                # Kept out of the usual way, which thousands of requests a second take.
                tags = self._tags & tags_of_the_task() if self._tags else ()
                self._new.record_tags(tags, ms, outcome, scheduled=scheduled, ended=ended)
                if (step := self.step) is not None:
                    step.record(
                        request_type, name, ms, outcome=outcome, scheduled=scheduled, ended=ended
                    )
                    step.record_tags(tags, ms, outcome, scheduled=scheduled, ended=ended)
            if self._rows is not None:
                row = request_row(
                    *(ended, ms, response_time),
                    method=request_type,
                    name=name,
                    response=response,
                    exception=exception,
                )
                every = ",".join(sorted(tags_of_the_task()))
                self._rows.add(RunRow(*row, user_class_of_the_task(), every))


def _open_rows(environment: Environment, path: str) -> RequestFile | None:
    """Return the file of this process's requests; None, with a line in the log, if it is impossible."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        path = of_worker(path, runner.worker_index)
    try:
        # A worker on another machine has not checked the option.
        check_format(path)
        return RequestFile(path)
    except (ConfigurationError, OSError) as error:
        logger.error("the requests are not written: %s", error)  # noqa: TRY400
        return None


class WorkerReports:
    """A worker's side: adds its latencies to Locust's reports, and sends a last report in time."""

    def __init__(
        self, environment: Environment, runner: WorkerRunner, take_cut_off: TakeCutOff
    ) -> None:
        self._environment, self._runner = environment, runner
        self.source = OwnLatencies(environment, take_cut_off)
        self._ended = False

        def on_spawning_complete(**_: Any) -> None:
            if environment.reset_stats:
                self.source.take(begin=time.time())

        def on_asked(**_: Any) -> None:
            runner.stop()
            self._report(ended=True)

        def on_report(*, data: dict[str, Any], **_: Any) -> None:
            data[LATENCIES] = self.source.take().to_message()
            data[ENDED] = self._ended

        runner.register_message(ASK_FOR_LAST_REPORT, on_asked)
        events = environment.events
        for event, listener in (
            (events.spawning_complete, on_spawning_complete),
            (events.report_to_master, on_report),
            (events.test_stop, lambda **_: self._report(ended=True)),
            # A worker that is ended alone signs off without a last report.
            (events.quitting, lambda **_: unless_interrupted_again(environment, runner.stop)),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]

    def on_start(self) -> None:
        """Begin with a test, before any of its users starts."""
        self.source.take(begin=time.time())
        # From now on the master counts on this worker's latencies.
        self._report(ended=False)

    def _report(self, *, ended: bool) -> None:
        self._ended = ended
        report_to_master(self._environment, self._runner)


class WorkersLatencies:
    """The master's side: adds up the reports of the workers."""

    def __init__(self, environment: Environment, runner: MasterRunner) -> None:
        self.lost: dict[str, str] = {}
        """Which latencies are missing, by worker."""
        self._environment, self._runner = environment, runner
        self._new = Latencies()
        self._reporting: set[str] = set()
        self._ended: set[str] = set()
        self._silent: set[str] = set()
        """Connected workers without a last report: their heartbeats do not make up for it."""
        self._hurried = False
        for event, listener in (
            (environment.events.test_start, self._on_start),
            (environment.events.test_stop, self.collect_rest),
            (environment.events.worker_report, self._on_report),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]

    def take(self, begin: float | None = None) -> Latencies:
        """Return the latencies since the last call; the workers begin again by themselves.

        Warns once of each worker that is gone, and logs once that it is back.
        """
        for worker, is_alive in workers_of(self._runner).items():
            if not is_alive and worker in self._reporting - self._ended:
                self._lose(worker)
            elif is_alive and worker not in self._silent:
                self._find(worker)
        new, self._new = self._new, Latencies()
        return new

    def collect_rest(self, **_: Any) -> None:
        """Request every worker's last report, and wait; warn of the workers that sent none."""

        def awaited() -> set[str]:
            alive = {worker for worker, is_alive in workers_of(self._runner).items() if is_alive}
            return (alive & self._reporting) - self._ended - self.lost.keys()

        for worker in awaited():
            self._runner.send_message(ASK_FOR_LAST_REPORT, client_id=worker)
        patient_s = self._environment.stop_timeout + LAST_REPORT_WITHIN_S
        try:
            with gevent.Timeout(HURRIED_WITHIN_S if self._hurried else patient_s, False):
                while awaited():
                    gevent.sleep(_LOOK_EVERY_S)
        except KeyboardInterrupt:
            self._hurried = True
            raise
        for silent in awaited():
            self._silent.add(silent)
            self._lose(silent)

    def _lose(self, worker: str) -> None:
        if worker not in self.lost:
            # Its last report may be as old as the time between two reports.
            self.lost[worker] = (
                f"worker {worker_index(self._runner, worker)} ({worker}) ended in the middle: up to "
                f"{report_interval_s():g} s of its latencies are lost"
            )
            logger.warning(self.lost[worker])

    def _find(self, worker: str) -> None:
        # It has kept its latencies since its last report, and they are in its next one.
        if self.lost.pop(worker, None):
            logger.info(
                "worker %d (%s) answers again: none of its latencies is lost",
                *(worker_index(self._runner, worker), worker),
            )

    def _on_start(self, **_: Any) -> None:
        self._ended.clear()
        self._silent.clear()
        self._hurried = False
        self.lost.clear()
        self._new = Latencies()

    def _on_report(self, *, client_id: str, data: Mapping[str, Any], **_: Any) -> None:
        if LATENCIES not in data:
            return
        self._reporting.add(client_id)
        self._new.add(Latencies.from_message(data[LATENCIES]))
        if data[ENDED]:
            self._ended.add(client_id)
            self._silent.discard(client_id)
            self._find(client_id)


Source: TypeAlias = OwnLatencies | WorkersLatencies
"""The source of a run's latencies."""
