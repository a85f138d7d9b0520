"""An open loop over several processes: the master distributes the rate, each worker has a share.

A worker announces that its users start, and asks for its share when they are ready. When one dies
or joins later, the rate is distributed again over those that are ready. A worker with users that
announces nothing would run a closed loop beside the open one, so it ends the run.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gevent

from poolkit.loadtest.locust_internals import (
    fail_run,
    listen_first,
    spawn_in_test,
    users_of_workers,
    worker_index,
    workers_of,
)
from poolkit.loadtest.open_loop.arrivals import LEAD_S, ArrivalRate, Share
from poolkit.loadtest.open_loop.loop import ClosedLoop, OpenLoop
from poolkit.loadtest.open_loop.report import LoopReport, merged
from poolkit.loadtest.open_loop.users import CutOff

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent import Greenlet
    from locust.env import Environment
    from locust.rpc import Message
    from locust.runners import MasterRunner, WorkerRunner

USERS_START, START_FAILED = "poolkit_users_start", "poolkit_start_failed"
SHARE_WANTED, SHARE_ASSIGNED = "poolkit_share_wanted", "poolkit_share_assigned"
IN_REPORT = "poolkit_open_loop"
_LOOK_EVERY_S = 0.25
_ANNOUNCING_TAKES_S = 5.0
"""How long a worker may have users without an announcement: a report of users may overtake it."""
_LEAVING_TAKES_S = 2.0
"""At Ctrl-C workers sign off up to a second before Locust's master ends the test."""

logger = logging.getLogger("poolkit.loadtest")


def announce_users(environment: Environment) -> None:
    """Announce to the master of an open loop that users start here, and will wait for arrivals."""
    if getattr(environment.parsed_options, "poolkit_arrival_rate", None):
        assert environment.runner is not None  # noqa: S101  (it has started the test)
        environment.runner.send_message(USERS_START)


class WorkerLoop:
    """A worker's side: an open loop once a test with an arrival rate starts here, else a closed one.

    The rate comes with the master's options, which a worker has before its first test starts.
    """

    def __init__(self, environment: Environment, runner: WorkerRunner) -> None:
        self._environment, self._runner = environment, runner
        self.opened: OpenLoop | None = None
        """The open loop, once a test with an arrival rate has started here."""
        self._closed: ClosedLoop | None = None

        def on_share(msg: Message, **_: Any) -> None:
            if self.opened is not None:
                rate = ArrivalRate.from_message(msg.data["rate"])
                self.opened.take_share(Share.from_message(msg.data["share"]), rate)

        runner.register_message(SHARE_ASSIGNED, on_share)
        environment.events.report_to_master.add_listener(self._on_report)  # type: ignore[no-untyped-call]

    def take_cut_off(self) -> CutOff:
        """Return the requests that were cut off here since the last call."""
        loop = self.opened or self._closed
        return CutOff() if loop is None else loop.take_cut_off()

    def on_start(self) -> None:
        """Prepare for a test, before any of its users starts."""
        options = self._environment.parsed_options
        if options is None or not getattr(options, "poolkit_arrival_rate", None):
            self._closed = self._closed or ClosedLoop(self._environment)
            self._closed.follow()
            return
        if self.opened is None:
            self.opened = OpenLoop(
                self._environment,
                ArrivalRate.parse(options.poolkit_arrival_rate, options.poolkit_arrivals),
                on_start_within_s=options.poolkit_on_start_within,
                answer_within_s=options.poolkit_answer_within,
                on_ready=lambda: self._runner.send_message(SHARE_WANTED),
                on_stuck=lambda reason: self._runner.send_message(START_FAILED, {"reason": reason}),
            )
        self.opened.prepare()

    def _on_report(self, data: dict[str, Any], **_: Any) -> None:
        if self.opened is not None:
            data[IN_REPORT] = self.opened.report().to_json()


class MasterLoop:
    """The master's side: distributes the rate, and adds up the reports of the workers.

    The rate and `max_users`, the highest number of users, are those of all workers together.
    """

    def __init__(
        self, environment: Environment, runner: MasterRunner, rate: ArrivalRate, *, max_users: int
    ) -> None:
        self.rate, self._max_users = rate, max_users
        self._next_rate: ArrivalRate | None = None
        self.on_end: Callable[[], None] = lambda: None
        """Called when the last stage of a rate that ends is over."""
        self.has_ended = False
        """Whether that has happened in the present test."""
        self._environment, self._runner = environment, runner
        self._distributing: Greenlet | None = None
        self._whole = Share.whole(max_users)
        self._nothing = LoopReport(loop="open", rate=0.0, kind=rate.kind)
        """The report of a worker that has not reported yet."""
        self._forget()

        def on_users_start(msg: Message, **_: Any) -> None:
            self._announced[msg.node_id] = time.monotonic()
            self._asked.pop(msg.node_id, None)  # of the test before

        def on_wanted(msg: Message, **_: Any) -> None:
            self._asked.setdefault(msg.node_id, time.monotonic())

        def on_failed(msg: Message, **_: Any) -> None:
            worker = worker_index(self._runner, msg.node_id)
            fail_run(environment, f"worker {worker}: {msg.data['reason']}")

        runner.register_message(USERS_START, on_users_start)
        runner.register_message(SHARE_WANTED, on_wanted)
        runner.register_message(START_FAILED, on_failed)
        listen_first(environment.events.test_start, self._on_start)
        for event, listener in (
            (environment.events.worker_report, self._on_report),
            (environment.events.test_stopping, self._on_stopping),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]

    def report(self) -> LoopReport:
        """Return the outcome of the arrivals of all workers, by their latest reports."""
        stages = "" if self.rate.is_plain else str(self.rate)
        rate = replace(self._nothing, rate=self.per_s, kind=self.rate.kind, stages=stages)
        found = merged([rate, *self._reports.values()])
        listeners_s = None
        if self._announced:
            # The master's own listeners come first, and then those of the workers.
            own_s = min(self._announced.values()) - self._started
            listeners_s = own_s + (found.listeners_s or 0.0)
        reasons = filter(None, [*self._lost.values(), found.saturated_by])
        waited_for = ""
        if self._began is None:
            waited_for = found.waited_for or (
                "no worker had started its users: test_start listeners of the master were running, or "
                "workers were lost"
            )
        return replace(
            found,
            began=self._began,
            listeners_s=listeners_s,
            saturated_by="; ".join(reasons),
            waited_for=waited_for,
        )

    @property
    def begins_at(self) -> float:
        """When the first arrival is scheduled, Unix time; infinite until it is distributed."""
        return self._whole.begin if self._shares or self._expected else math.inf

    @property
    def per_s(self) -> float:
        """The rate in force, of all workers together; after the test, the last one."""
        return self.rate.at((self._ended_at or time.time()) - self._whole.begin)

    def change_rate(self, rate: ArrivalRate) -> None:
        """Let the workers begin the arrivals of another rate, soon or with the next test."""
        self._next_rate, self.has_ended = rate, False

    @property
    def rate_is_in_force(self) -> bool:
        """Whether the workers send the rate of the last `change_rate` by now."""
        return self._next_rate is None and time.time() >= self._since

    def _forget(self) -> None:
        self._started = time.monotonic()
        self._began: float | None = None
        """When the first arrival was scheduled, Unix time; None before."""
        self._reports: dict[str, LoopReport] = {}
        self._announced: dict[str, float] = {}
        """When each worker announced that its users start."""
        self._unannounced: dict[str, float] = {}
        """When a worker that has announced nothing was first found to have users."""
        self._asked: dict[str, float] = {}
        """The time of the request for a share, by worker that waits for one or has one."""
        self._shares: dict[str, Share] = {}
        self._since = math.inf
        """When the present shares begin, Unix time."""
        self._expected: dict[str, float] = {}
        """The number of arrivals of a worker's shares before its present one."""
        self._left: dict[str, float] = {}
        """When a worker was first found to be gone."""
        self._lost: dict[str, str] = {}
        """How many arrivals were lost with a worker, as a sentence, by worker."""
        self._warned = self.has_ended = False
        self._ended_at: float | None = None

    def _on_start(self, **_: Any) -> None:
        self._forget()
        self._distributing = spawn_in_test(self._runner, self._distribute_when_needed)

    def _on_stopping(self, **_: Any) -> None:
        self._ended_at = self._ended_at or time.time()
        if self._distributing is not None:
            self._distributing.kill(block=False)

    def _distribute_when_needed(self) -> None:
        """Look four times a second whether other workers begin arrivals than those with a share."""
        while True:
            now, workers = time.monotonic(), workers_of(self._runner)
            connected = []
            for worker in self._asked:
                if worker in workers:
                    # One without heartbeats begins no arrivals.
                    self._left.pop(worker, None)
                    begins = workers[worker]
                else:
                    # One that has signed off may be the first of a run that ends.
                    left = self._left.setdefault(worker, now)
                    begins = worker in self._shares and now - left < _LEAVING_TAKES_S
                if begins:
                    connected.append(worker)
            self._check_all_announced(now)
            if connected and not self._shares:
                # The first time: once the users of all workers are ready. A worker whose on_start
                # never ends ends the run, so this wait is bounded.
                waited_s = now - min(self._asked.values())
                starting = [one for one in self._announced if workers.get(one)]
                have_all = len(starting) >= self._runner.worker_count
                if set(starting) <= set(connected) and (have_all or waited_s > _ANNOUNCING_TAKES_S):
                    self._distribute(connected)
            elif set(connected) != set(self._shares) or (connected and self._next_rate):
                self._distribute(connected)
            ends_at = self._whole.begin + self.rate.seconds
            if self._shares and self.rate.ends and not self.has_ended and time.time() >= ends_at:
                self.has_ended = True
                # In a greenlet of its own: the end of the test ends this one.
                gevent.spawn(self.on_end)
            saturated_by = self.report().saturated_by
            if saturated_by and not self._warned:
                self._warned = True
                logger.warning("saturated: %s", saturated_by)
            gevent.sleep(_LOOK_EVERY_S)

    def _check_all_announced(self, now: float) -> None:
        """End the run if a worker has users that wait for no arrivals."""
        for worker, users in users_of_workers(self._runner).items():
            if not users or worker in self._announced:
                continue
            if now - self._unannounced.setdefault(worker, now) > _ANNOUNCING_TAKES_S:
                fail_run(
                    self._environment,
                    f"worker {worker_index(self._runner, worker)} runs {users:,} users in a closed "
                    "loop beside the arrival rate of the others; its locustfile must call "
                    "loadtest.register(), with the version of poolkit that this master has",
                )
                return

    def _distribute(self, connected: list[str]) -> None:
        """Send each connected worker its share; the arrivals of a lost one count as timed out."""
        since = time.time() + LEAD_S
        again, other_workers = bool(self._shares), set(connected) != set(self._shares)
        if not again:
            self._whole = Share.whole(self._max_users)
            since = self._whole.begin
            self._began = self._began or since
        self._since = since
        gone = [one for one in self._shares if one not in connected]
        for worker, share in self._shares.items():
            before = self._expected.get(worker, 0)
            self._expected[worker] = before + share.expected(self.rate, share.since, since)
        self._shares.clear()
        for worker in gone:
            # Its last report has the finished arrivals. The others of its share are lost with it.
            last = self._reports.get(worker, self._nothing)
            arrivals = max(int(self._expected[worker]), last.finished)
            timed_out = arrivals - last.finished
            self._reports[worker] = replace(last, arrivals=arrivals, dropped=0, timed_out=timed_out)
            if timed_out:
                self._lost[worker] = (
                    f"worker {worker_index(self._runner, worker)} was lost with {timed_out:,} arrivals "
                    "of its share, before the others took it over; the end of its own output or the "
                    "system's log says why it ended, for instance without memory"
                )
            logger.warning(
                "worker %d is gone, and the rate of %g/s is distributed again, over %d; %d arrivals "
                "that it did not report count as timed out",
                *(worker_index(self._runner, worker), self.per_s, len(connected), timed_out),
            )
        if self._next_rate is not None:
            if again:
                self._whole = self._whole.changed(self.rate, since)
            self.rate, self._next_rate = self._next_rate, None
        shares = self._whole.split(len(connected) or 1)
        for worker, share in zip(connected, shares, strict=False):
            self._shares[worker] = replace(share, since=since)
            share_message = self._shares[worker].to_message()
            message = {"share": share_message, "rate": self.rate.to_message()}
            self._runner.send_message(SHARE_ASSIGNED, message, client_id=worker)
        if again and other_workers and not gone:
            logger.info(
                "the rate of %g/s is distributed again, over %d workers",
                *(self.per_s, len(connected)),
            )

    def _on_report(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        found = data.get(IN_REPORT)
        # Of a worker that is gone, its arrivals have been accounted for.
        is_starting = client_id in self._announced and client_id not in self._expected
        if found is not None and (client_id in self._shares or is_starting):
            self._reports[client_id] = LoopReport.from_json(found)
