"""The search for the limit in a run: each step is a rate, a time to settle and a measured time."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent

from poolkit.loadtest.event_loop import end_test
from poolkit.loadtest.figures import (
    ONLY_IN_COMPARE,
    MetricAccumulator,
    why_not_known,
    why_not_selected,
)
from poolkit.loadtest.latency.counters import NO_NAME, Latencies
from poolkit.loadtest.locust_internals import report_interval_s, workers_of
from poolkit.loadtest.open_loop.arrivals import ArrivalRate
from poolkit.loadtest.open_loop.limit_search import LimitSearch, Step
from poolkit.thresholds import check_all, unmet, with_unseen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gevent import Greenlet
    from locust.env import Environment
    from locust.rpc import Message
    from locust.runners import MasterRunner, WorkerRunner

    from poolkit.loadtest.latency.collection import OwnLatencies
    from poolkit.loadtest.open_loop.arrivals import Kind
    from poolkit.loadtest.open_loop.distributed import MasterLoop, WorkerLoop
    from poolkit.loadtest.open_loop.loop import OpenLoop
    from poolkit.loadtest.open_loop.user_class_queue import Cause
    from poolkit.loadtest.recording import Recording
    from poolkit.thresholds import Threshold

SETTLE_SHARE = 0.25
"""The time to settle before a measured time, as a share of it: connections are opened, users made."""
RECOVERS_WITHIN_S = 60.0
"""After a failed step, the target answers what is left before the next one begins."""
_STARTS_WITHIN_S = 120.0
_LOOK_EVERY_S = 0.05
_PARTS_WITHIN_S = 10.0
_DISTRIBUTING_TAKES_S = 1.0
STEP_BEGINS, STEP_ENDS = "poolkit_step_begins", "poolkit_step_ends"
STEP_MEASURED = "poolkit_step_measured"

BUSY = "Locust's own process was busy, a core is used up"
FULL = "all users (--max-users) were waiting for answers"

logger = logging.getLogger("poolkit.loadtest")


class Measured(NamedTuple):
    """The measured time of a step."""

    begin: float
    """Unix time."""
    end: float
    latencies: Latencies
    late_by: Cause | None
    """Why arrivals began late; None if they did not."""


class StepRecorder:
    """Records the requests of a step in the process that sends them."""

    def __init__(self, loop: OpenLoop, source: OwnLatencies) -> None:
        self._loop, self._source = loop, source
        self._before = loop.delays()
        source.step = Latencies(time.time())

    def end(self) -> tuple[Latencies, Cause | None]:
        """Return the latencies of the step, and why arrivals began late in it.

        A step is judged as a run that ends with it: a request without an answer counts with its wait.
        """
        now, found, self._source.step = time.time(), self._source.step, None
        assert found is not None  # noqa: S101  (set above; nothing else sets it)
        for scheduled_at in self._loop.waiting():
            wait_ms = max(0.0, now - scheduled_at) * 1000
            found.record(*NO_NAME, wait_ms, outcome="timed_out", scheduled=scheduled_at, ended=now)
        return found, self._loop.delays().cause_since(self._before)


class OwnSteps:
    """Sends and measures the steps of a run without workers."""

    def __init__(self, loop: OpenLoop, source: OwnLatencies) -> None:
        self._loop, self._source = loop, source

    def change_rate(self, per_s: float, kind: Kind) -> None:
        """Send another rate from now on."""
        self._loop.change_rate(ArrivalRate.constant(per_s, kind))

    def rate_is_in_force(self) -> bool:
        """Return whether the last rate is sent: always, in this process."""
        return True

    def has_begun(self) -> bool:
        """Return whether the first arrival was scheduled."""
        return self._loop.report().arrivals > 0

    def is_idle(self) -> bool:
        """Return whether every arrival has its answer."""
        report = self._loop.report()
        return report.arrivals == report.finished

    def measure(self, seconds: float) -> Measured | None:
        """Return what happens in the next seconds; None if a part of it is not known."""
        begin = time.time()
        recorder = StepRecorder(self._loop, self._source)
        gevent.sleep(seconds)
        end = time.time()
        return Measured(begin, end, *recorder.end())


class WorkerSteps:
    """A worker's side: measures its part of each step, when its master asks for it."""

    def __init__(self, runner: WorkerRunner, loop: WorkerLoop, source: OwnLatencies) -> None:
        self._recorder: StepRecorder | None = None

        def on_begin(**_: Any) -> None:
            if loop.opened is not None:
                self._recorder = StepRecorder(loop.opened, source)

        def on_end(msg: Message, **_: Any) -> None:
            if self._recorder is not None:
                latencies, late_by = self._recorder.end()
                found = {**msg.data, "latencies": latencies.to_message(), "late_by": late_by}
                runner.send_message(STEP_MEASURED, found)
                self._recorder = None

        runner.register_message(STEP_BEGINS, on_begin)
        runner.register_message(STEP_ENDS, on_end)


class WorkersSteps:
    """The master's side: distributes the rate of each step, and adds up its parts."""

    def __init__(self, loop: MasterLoop, runner: MasterRunner) -> None:
        self._loop, self._runner = loop, runner
        self._changed_at = 0.0
        self._number = 0
        self._parts: dict[str, Mapping[str, Any]] = {}

        def on_measured(msg: Message, **_: Any) -> None:
            if msg.data["step"] == self._number:
                self._parts[msg.node_id] = msg.data

        runner.register_message(STEP_MEASURED, on_measured)

    def change_rate(self, per_s: float, kind: Kind) -> None:
        """Let the workers send another rate, within a second."""
        self._changed_at = time.monotonic()
        self._loop.change_rate(ArrivalRate.constant(per_s, kind))

    def rate_is_in_force(self) -> bool:
        """Return whether the workers send the last rate by now."""
        return self._loop.rate_is_in_force

    def has_begun(self) -> bool:
        """Return whether a worker has reported an arrival."""
        return self._loop.report().arrivals > 0

    def is_idle(self) -> bool:
        """Return whether every arrival has its answer, by reports from after the last change."""
        report = self._loop.report()
        is_new = time.monotonic() - self._changed_at > report_interval_s() + _DISTRIBUTING_TAKES_S
        return is_new and report.arrivals == report.finished

    def measure(self, seconds: float) -> Measured | None:
        """Return what happens in the next seconds; None if a worker has not reported its part."""
        begin = time.time()
        workers = [worker for worker, is_alive in workers_of(self._runner).items() if is_alive]
        self._number += 1
        self._parts = {}
        for worker in workers:
            self._runner.send_message(STEP_BEGINS, {"step": self._number}, client_id=worker)
        gevent.sleep(seconds)
        end = time.time()
        for worker in workers:
            self._runner.send_message(STEP_ENDS, {"step": self._number}, client_id=worker)
        if not _wait_for(lambda: set(workers) <= set(self._parts), _PARTS_WITHIN_S):
            return None
        latencies = Latencies(begin)
        for part in self._parts.values():
            latencies.add(Latencies.from_message(part["latencies"]))
        causes: list[Cause] = [one["late_by"] for one in self._parts.values() if one["late_by"]]
        late_by = "busy" if "busy" in causes else causes[0] if causes else None
        return Measured(begin, end, latencies, late_by)


class LimitRun:
    """Runs the search during each test, and ends the test when it is over.

    Args:
        environment: Locust's.
        recording: of the run; its connections are counted for each step too.
        steps: sends and measures them.
        thresholds: that must hold.
        make: makes a new search.
        step_s: the measured time of a step.
        kind: of the arrivals.
    """

    def __init__(
        self,
        environment: Environment,
        recording: Recording,
        steps: OwnSteps | WorkersSteps,
        thresholds: Sequence[Threshold],
        *,
        make: Callable[[], LimitSearch],
        step_s: float,
        kind: Kind,
    ) -> None:
        self._environment, self._recording, self._steps = environment, recording, steps
        self._thresholds, self._step_s, self._kind = thresholds, step_s, kind
        self.search = make()
        self._searching: Greenlet | None = None

        def on_start(**_: Any) -> None:
            self.search = make()
            # The test before may have ended in a pause.
            self._steps.change_rate(self.search.first_per_s, self._kind)
            self._searching = gevent.spawn(self._run)

        def on_stopping(**_: Any) -> None:
            if self._searching is not None:
                self._searching.kill(block=False)
            if self.search.next_per_s() is not None:
                self.search.ended_by = "the run ended before the search"

        environment.events.test_start.add_listener(on_start)  # type: ignore[no-untyped-call]
        environment.events.test_stopping.add_listener(on_stopping)  # type: ignore[no-untyped-call]

    def _run(self) -> None:
        search = self.search
        if not _wait_for(self._steps.has_begun, _STARTS_WITHIN_S):
            search.ended_by = f"no task began within {_STARTS_WITHIN_S:g} s"
        while (per_s := search.next_per_s()) is not None:
            self._steps.change_rate(per_s, self._kind)
            # Else a short step of the workers would measure the rate before.
            if not _wait_for(self._steps.rate_is_in_force, _PARTS_WITHIN_S):
                search.ended_by = f"the workers have not begun the rate of {per_s:g}/s"
                break
            gevent.sleep(self._step_s * SETTLE_SHARE)
            measured = self._measured()
            if measured is None:
                search.ended_by = f"a worker has not reported the step of {per_s:g}/s"
                break
            step = self._judged(per_s, measured)
            search.add(step)
            because = f": {step.reason}" if step.reason else ""
            logger.info("find limit: %g/s %s%s", per_s, step.outcome, because)
            if step.outcome != "held" and search.next_per_s() is not None:
                self._steps.change_rate(0.0, self._kind)
                if not _wait_for(self._steps.is_idle, RECOVERS_WITHIN_S):
                    search.ended_by = (
                        f"the target had not answered the requests of {per_s:g}/s "
                        f"{RECOVERS_WITHIN_S:g} s later"
                    )
        # In a greenlet of its own: the end of the test ends this one.
        gevent.spawn(end_test, self._environment)

    def _measured(self) -> tuple[Measured, MetricAccumulator] | None:
        """Measure a step; its connections are those that the recording samples meanwhile."""
        recording = self._recording
        of_run = recording.measured
        figures = MetricAccumulator(
            time.time(),
            sessions=of_run.connections.sessions,
            max_connections=of_run.max_connections,
        )
        recording.step = figures
        try:
            measured = self._steps.measure(self._step_s)
        finally:
            recording.step = None
        if measured is None:
            return None
        figures.begin = measured.begin
        figures.requests = measured.latencies.total()
        return measured, figures

    def _judged(self, per_s: float, found: tuple[Measured, MetricAccumulator]) -> Step:
        """Return the step, judged by the thresholds on its own figures."""
        measured, figures = found
        options = self._environment.parsed_options
        target = options.poolkit_target if options is not None else ""
        latencies, connections = measured.latencies, figures.connections
        for one in self._thresholds:
            counters = latencies.select(one.selector) if one.selector is not None else None
            if one.selector is not None and counters is not None:
                figures.selected[one.selector] = counters
        figures.unnamed = latencies.of(NO_NAME)
        values = figures.figures(measured.end, target)
        reasons = why_not_known(connections, target, self._recording.note)
        reasons |= why_not_selected(self._thresholds, latencies.recorded())
        verdicts = check_all(self._thresholds, target, values, ONLY_IN_COMPARE, reasons=reasons)
        failed = unmet(with_unseen(verdicts, connections.unseen_s(measured.end)))
        step = Step(
            per_s=per_s,
            outcome="failed" if failed else "held",
            reason=failed[0].outcome if failed else "",
            expression=failed[0].threshold.expression if failed else "",
            requests_per_s=figures.requests.served / (measured.end - measured.begin),
            p95_ms=values["http.p95"],
            error_share=values["http.errors"],
        )
        if failed and measured.late_by == "busy":
            # Its own delays are in the latencies, so whether the target could do it is not known.
            return dataclasses.replace(step, outcome="saturated", reason=BUSY)
        if failed and measured.late_by == "users":
            return dataclasses.replace(step, reason=f"{step.reason}; {FULL}")
        return step


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether a condition becomes true within some seconds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        gevent.sleep(_LOOK_EVERY_S)
    return True
