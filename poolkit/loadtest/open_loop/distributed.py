"""An open loop over several processes: the master deals the rate, each worker begins its part.

A worker asks for its part when a test starts on it. When one dies or comes later, the rate is
dealt again to those that are there.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gevent
from locust.runners import STATE_MISSING, MasterRunner, WorkerRunner

from poolkit.loadtest.open_loop.arrivals import ArrivalRate
from poolkit.loadtest.open_loop.closed_loop import ClosedLoop
from poolkit.loadtest.open_loop.cut_off import CutOff
from poolkit.loadtest.open_loop.loop import LEAD_S, OpenLoop, whole
from poolkit.loadtest.open_loop.parts import Part, parts_of
from poolkit.loadtest.open_loop.report import LoopReport, merged

if TYPE_CHECKING:
    from gevent import Greenlet
    from locust.env import Environment
    from locust.rpc import Message

WANTED, DEALT = "poolkit_part_wanted", "poolkit_part_dealt"
IN_REPORT = "poolkit_open_loop"
_LOOK_EVERY_S = 0.25
_ASKING_TAKES_S = 2.0
"""How long the first deal waits for workers that have not asked yet."""
_LEAVING_TAKES_S = 2.0
"""At Ctrl-C workers say goodbye while the master is still about to end the test: Locust takes a
second for it."""

logger = logging.getLogger("poolkit.loadtest")


class WorkerLoop:
    """A worker's side: an open loop as soon as a test with an arrival rate starts here, else a closed.

    The rate comes with the master's options, which a worker has before its first test starts.
    """

    def __init__(self, environment: Environment, runner: WorkerRunner) -> None:
        self._environment, self._runner = environment, runner
        self._loop: OpenLoop | None = None
        self._closed: ClosedLoop | None = None
        runner.register_message(DEALT, self._on_dealt)
        events = environment.events
        events.test_start.add_listener(self._on_start)  # type: ignore[no-untyped-call]
        events.report_to_master.add_listener(self._on_report)  # type: ignore[no-untyped-call]

    def _on_start(self, **_: Any) -> None:
        options = self._environment.parsed_options
        if options is None or not getattr(options, "arrival_rate", None):
            self._closed = self._closed or ClosedLoop(self._environment)
            self._closed.follow()
            return
        if self._loop is None:
            rate = ArrivalRate.parse(options.arrival_rate, options.arrivals)
            self._loop = OpenLoop(self._environment, rate, dealt=True)
        self._loop.prepare()
        self._runner.send_message(WANTED)

    def take_cut_off(self) -> CutOff:
        """Return what was cut off here since the last call."""
        loop = self._loop or self._closed
        return CutOff() if loop is None else loop.take_cut_off()

    def _on_dealt(self, msg: Message, **_: Any) -> None:
        if self._loop is not None:
            self._loop.take_part(Part.from_message(msg.data))

    def _on_report(self, data: dict[str, Any], **_: Any) -> None:
        if self._loop is not None:
            data[IN_REPORT] = self._loop.report().plain()


class MasterLoop:
    """The master's side: deals the rate, and adds up what the workers report.

    Args:
        environment: Locust's.
        rate: of all workers together.
        max_users: how many users all workers may have together.
    """

    def __init__(
        self, environment: Environment, runner: MasterRunner, rate: ArrivalRate, *, max_users: int
    ) -> None:
        self.rate, self._max_users = rate, max_users
        self._environment, self._runner = environment, runner
        self._dealing: Greenlet | None = None
        self._forget()
        runner.register_message(WANTED, self._on_wanted)
        for event, listener in (
            (environment.events.test_start, self._on_start),
            (environment.events.worker_report, self._on_report),
            (environment.events.test_stopping, self._on_stopping),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]

    def report(self) -> LoopReport:
        """Return what became of the arrivals of all workers, by their latest reports."""
        nothing = LoopReport(loop="open", rate=self.rate.per_s, kind=self.rate.kind)
        return merged([nothing, *self._reports.values()])

    def _forget(self) -> None:
        self._reports: dict[str, LoopReport] = {}
        self._asked: dict[str, float] = {}
        """Workers that wait for a part, or have one, and since when."""
        self._parts: dict[str, Part] = {}
        self._expected: dict[str, int] = {}
        """How many arrivals the parts had that a worker had before its present one."""
        self._left: dict[str, float] = {}
        """When it was first seen that a worker is not there any more."""
        self._whole = whole(self._max_users)
        self._said = False

    # -- dealing ----------------------------------------------------------------------------

    def _on_start(self, **_: Any) -> None:
        self._forget()
        self._dealing = self._runner.greenlet.spawn(self._deal_when_needed)

    def _on_wanted(self, msg: Message, **_: Any) -> None:
        self._asked.setdefault(msg.node_id, time.monotonic())

    def _deal_when_needed(self) -> None:
        while True:
            there = self._there()
            if set(there) != set(self._parts) and (self._parts or self._all_have_asked(there)):
                self._deal(there)
            self._say_when_saturated()
            gevent.sleep(_LOOK_EVERY_S)

    def _there(self) -> list[str]:
        return [one for one in self._asked if self._is_there(one)]

    def _is_there(self, worker: str) -> bool:
        client = self._runner.clients.get(worker)
        if client is not None:
            self._left.pop(worker, None)
            return bool(client.state != STATE_MISSING)
        left = self._left.setdefault(worker, time.monotonic())
        return worker in self._parts and time.monotonic() - left < _LEAVING_TAKES_S

    def _all_have_asked(self, there: list[str]) -> bool:
        if not there:
            return False
        waited_s = time.monotonic() - min(self._asked.values())
        return len(there) >= self._runner.worker_count or waited_s > _ASKING_TAKES_S

    def _deal(self, there: list[str]) -> None:
        since = time.time() + LEAD_S
        again = bool(self._parts)
        if not again:
            self._whole = whole(self._max_users)
            since = self._whole.begin
        gone = [one for one in self._parts if one not in there]
        self._close_parts(since)
        for one in gone:
            self._lose(one, there)
        for one, part in zip(there, parts_of(self._whole, len(there) or 1), strict=False):
            self._parts[one] = replace(part, since=since)
            self._runner.send_message(DEALT, self._parts[one].message(), client_id=one)
        if again and not gone:
            logger.info(
                "the rate of %g/s is dealt again, to %d workers", self.rate.per_s, len(there)
            )

    def _close_parts(self, until: float) -> None:
        for one, part in self._parts.items():
            self._expected[one] = self._expected.get(one, 0) + part.count(self.rate, until)
        self._parts.clear()

    def _lose(self, worker: str, left: list[str]) -> None:
        """Count what a worker that is gone had to do and has not reported, and say it."""
        nothing = LoopReport(loop="open", rate=self.rate.per_s, kind=self.rate.kind)
        last = self._reports.get(worker, nothing)
        finished = last.finished
        arrivals = max(self._expected[worker], finished)
        self._reports[worker] = replace(
            last, arrivals=arrivals, unsent=0, unanswered=arrivals - finished
        )
        index = self._runner.get_worker_index(worker)  # type: ignore[no-untyped-call]
        logger.warning(
            "worker %d is gone, and the rate of %g/s is dealt again, to %d; what became of %d "
            "arrivals is not known, they count as unanswered",
            *(index, self.rate.per_s, len(left), arrivals - finished),
        )

    # -- hearing ----------------------------------------------------------------------------

    def _on_report(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        plain = data.get(IN_REPORT)
        if plain is not None and client_id in self._parts:
            self._reports[client_id] = LoopReport.from_plain(plain)

    def _on_stopping(self, **_: Any) -> None:
        if self._dealing is not None:
            self._dealing.kill(block=False)

    def _say_when_saturated(self) -> None:
        why = self.report().saturated_by
        if why and not self._said:
            self._said = True
            logger.warning("saturated: %s", why)
