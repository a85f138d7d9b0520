"""One run: samples of the database ten times a second, and latencies, made into a row a second."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gevent

from poolkit.activity.by_target import STATES, Connected, by_target, total
from poolkit.activity.server import ActivityConnection, ActivitySampler
from poolkit.errors import DatabaseUnavailable, PoolkitError
from poolkit.loadtest.event_loop import InThread, unless_interrupted_again
from poolkit.loadtest.figures import Held, MetricAccumulator
from poolkit.loadtest.latency.connects import ClientConnects
from poolkit.loadtest.latency.counters import (
    LOCAL_WINDOW_S,
    REPORTED_WINDOW_S,
    Latencies,
    Rates,
    RecentRequests,
)
from poolkit.loadtest.latency.report import NO_ANSWER
from poolkit.loadtest.open_loop.report import LoopReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from locust.runners import Runner
    from sqlalchemy.engine import URL

    from poolkit.activity.server import Sample, ServerLimits
    from poolkit.loadtest.latency.collection import Source
    from poolkit.loadtest.latency.counters import Outcome
    from poolkit.loadtest.open_loop.distributed import MasterLoop
    from poolkit.loadtest.open_loop.limit_search import LimitSearch
    from poolkit.loadtest.open_loop.loop import OpenLoop

INTERVAL_S = 0.1
RETRY_EVERY_S = 5.0
FIRST_SAMPLE_WITHIN_S = 1.0
STOP_WITHIN_S = 3.0
"""A server that is stopped by SIGSTOP answers no query and keeps no time limit of its own."""
NO_URL = "no DATABASE_URL and no --database-url was given"
HTTP_ONLY = "this run measures HTTP only"
MOST_POINTS = 900
"""A chart is about 900 pixels wide, so more points are invisible."""
FAILURE_TEXTS: dict[Outcome, str] = {
    "timed_out": "timed out: no answer when the test or its user ended",
    "dropped": "dropped: the arrival was never sent, because all users were busy",
}
"""How Locust's table of failures shows requests without an answer."""
_LATENCIES = ("p50_ms", "p95_ms", "p99_ms")
_ARRIVALS = ("arrivals_per_s", "wanted_per_s")
_COLUMNS = (
    *("time", "targets", "states", "other_databases", "opened_per_s", "users", *_ARRIVALS),
    *("requests_per_s", "failures_per_s", *_LATENCIES),
)

logger = logging.getLogger("poolkit.loadtest")


# -- second by second -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Second:
    """The measurements of one second.

    Of several samples in a second, `targets` is the one with the most connections: a peak must
    not vanish between two points of a chart. `targets` and `opened` are None when the server was
    not or could not be queried.
    """

    time: float
    """The end of the second, Unix time."""
    targets: tuple[Connected, ...] | None
    opened: int | None
    """The number of connections opened in this second."""
    users: int
    rates: Rates
    elsewhere: int = 0
    """Connections to the server's other databases, in the sample of `targets`."""
    arrivals_per_s: float | None = None
    """Tasks begun a second, in the time of `rates`; None in a closed loop."""
    wanted_per_s: float | None = None
    """Tasks that the arrival rate wants begun a second; None in a closed loop."""

    @property
    def connections(self) -> int | None:
        """The connections of all targets together."""
        return None if self.targets is None else total(self.targets).total

    @property
    def on_server(self) -> int | None:
        """The connections to all databases of the server, to which its limits apply."""
        return None if self.connections is None else self.connections + self.elsewhere


class Series:
    """The seconds of a run, thinned out so that a soak test needs no more memory than a spike.

    At twice `MOST_POINTS`, each two neighbours become one: the one with more connections, with the
    connections opened in both.
    """

    def __init__(self) -> None:
        self.points: list[Second] = []
        self.step_s = 1
        """The seconds that one point stands for."""
        self._pending: Second | None = None
        self._pending_s = 0
        self._columns: dict[str, Any] = {}
        """Of the points up to the last call of `columns`: a page asks every second."""

    def add(self, second: Second) -> None:
        """Append a second."""
        self._pending = second if self._pending is None else fuller(self._pending, second)
        self._pending_s += 1
        if self._pending_s >= self.step_s:
            self.points.append(self._pending)
            self._pending, self._pending_s = None, 0
        if len(self.points) >= 2 * MOST_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [fuller(first, second) for first, second in pairs]
            self.step_s *= 2
            self._columns = {}

    def columns(self) -> dict[str, Any]:
        """Return the points as columns for JSON; None where a figure is unknown."""
        if not self._columns:
            self._columns = {name: [] for name in _COLUMNS}
            self._columns |= {"targets": {}, "states": {state: [] for state in STATES}}
        columns = self._columns
        known = len(columns["time"])
        new, targets = self.points[known:], columns["targets"]
        # A target that appears later had no connections in the seconds before.
        for name in {one.target for point in new for one in point.targets or ()} - set(targets):
            targets[name] = [None if p.targets is None else 0 for p in self.points[:known]]
        for point in new:
            is_known = point.targets is not None
            connected = {one.target: one.total for one in point.targets or ()}
            together = total(point.targets or ())
            for name, values in targets.items():
                values.append(connected.get(name, 0) if is_known else None)
            for state, values in columns["states"].items():
                values.append(getattr(together, state) if is_known else None)
            opened = None if point.opened is None else round(point.opened / self.step_s, 3)
            columns["time"].append(round(point.time, 3))
            columns["other_databases"].append(point.elsewhere if is_known else None)
            columns["opened_per_s"].append(opened)
            columns["users"].append(point.users)
            columns["requests_per_s"].append(round(point.rates.requests_per_s, 3))
            columns["failures_per_s"].append(round(point.rates.failures_per_s, 3))
            for name in _ARRIVALS:
                columns[name].append(getattr(point, name))
            for name in _LATENCIES:
                columns[name].append(getattr(point.rates, name))
        # Copies, since a page encodes them while the next second is added.
        copies = {
            key: {name: [*values] for name, values in column.items()}
            if isinstance(column, dict)
            else [*column]
            for key, column in columns.items()
        }
        return {**copies, "targets": {name: copies["targets"][name] for name in sorted(targets)}}


def fuller(first: Second, second: Second) -> Second:
    """Return one point for two: the one with more connections, at the later moment."""
    known = [one for one in (first, second) if one.connections is not None]
    most = max(known, key=lambda one: one.connections or 0, default=second)
    opened = [one.opened for one in (first, second) if one.opened is not None]
    # A spike of latency must survive just as one of connections does.
    pairs = [[getattr(one.rates, name) for one in (first, second)] for name in _LATENCIES]
    return Second(
        time=second.time,
        targets=most.targets,
        elsewhere=most.elsewhere,
        opened=sum(opened) if opened else None,
        users=second.users,
        arrivals_per_s=second.arrivals_per_s,
        wanted_per_s=second.wanted_per_s,
        rates=Rates(
            second.rates.requests_per_s,
            second.rates.failures_per_s,
            *(max((ms for ms in pair if ms is not None), default=None) for pair in pairs),
        ),
    )


class RecentArrivals:
    """The tasks that an open loop began a second, in the same last seconds as `RecentRequests`.

    Args:
        window_s: how many seconds these are.
    """

    def __init__(self, window_s: int) -> None:
        self._begun: deque[tuple[float, int]] = deque(maxlen=window_s + 1)

    def look(self, now: float, load: LoopReport) -> float | None:
        """Return the rate up to now; None in a closed loop, and in the first second."""
        if load.loop == "closed":
            return None
        begun = load.arrivals - load.dropped
        # The counts begin again with each test.
        if self._begun and begun < self._begun[-1][1]:
            self._begun.clear()
        self._begun.append((now, begun))
        (_since, before), passed_s = self._begun[0], now - self._begun[0][0]
        return round((begun - before) / passed_s, 3) if passed_s > 0 else None


# -- the run --------------------------------------------------------------------------------


class ActivityInThread(ActivityConnection):
    """An `ActivityConnection` for a greenlet: other greenlets run while it waits."""

    def __init__(self, url: str | URL) -> None:
        super().__init__(url)
        self._thread = InThread()

    def connect(self) -> ServerLimits:
        """Connect, or connect again; see `ActivityConnection.connect`."""
        return self._thread.call(super().connect)

    def sample(self) -> Sample:
        """Query the server once; see `ActivityConnection.sample`."""
        return self._thread.call(super().sample)


class Recording:
    """Watches the server for as long as Locust runs, and never stops a load test.

    A database that cannot be watched is reported once, in `note` and in the log. A server that
    cannot be reached is tried again.

    Args:
        runner: Locust's.
        url: of the database; None without one.
        source: of the latencies.
        reported: whether workers report them.
    """

    def __init__(
        self, runner: Runner, url: str | None, source: Source, *, reported: bool = False
    ) -> None:
        self.limits: ServerLimits | None = None
        """The limits of the server; None until it was reached."""
        self.note: str | None = None
        """Why connections are not measured; None when they are."""
        self.started = time.time()
        self.series = Series()
        self.latencies = Latencies()
        """The latencies of the run so far."""
        self.measured = MetricAccumulator(self.started)
        """The figures of the run so far."""
        self.measured.requests = self.latencies.total()
        self.loop: Callable[[], LoopReport] = LoopReport
        """Returns how the run is loaded; a closed loop unless it is replaced."""
        self.step: MetricAccumulator | None = None
        """Counts the connections of a step of `--find-limit` too, while it is measured."""
        self.arrivals: Callable[[], OpenLoop | MasterLoop | None] = lambda: None
        """Returns the arrivals of an open loop; None in a closed one."""
        self.limit: Callable[[], LimitSearch | None] = lambda: None
        """Returns the search of `--find-limit`; None without one."""
        self.client: Callable[[], ClientConnects] = ClientConnects
        """Returns the connections of the load generator so far; none unless it is replaced."""
        self.add_failures: Callable[[str, str, int], None] = lambda *_: None
        """Adds failures to Locust's statistics, by name, error and number."""
        self._url, self._runner, self._reported = url, runner, reported
        self.source = source
        self._listeners: list[Callable[[Second, Latencies], None]] = []
        self._requests = RecentRequests(reported=reported, now=self.started)
        self._arrivals = RecentArrivals(REPORTED_WINDOW_S if reported else LOCAL_WINDOW_S)
        self._sampler: ActivitySampler | None = None
        self._greenlets: list[gevent.Greenlet] = []
        self._adding: Iterator[None] = iter(())
        self._in_failures: dict[Outcome, int] = {}
        """By outcome, the requests without an answer that Locust's statistics have."""
        # Of the present second:
        self._fullest: tuple[Connected, ...] | None = None
        self._elsewhere = 0
        self._most = -1
        self._opened = 0

    def start(self, *listeners: Callable[[Second, Latencies], None]) -> None:
        """Connect, and begin to pass on a row each second with the latencies of that second."""
        self._listeners = list(listeners)
        if not self._url:
            self.note = NO_URL
            logger.info("connections are not measured: %s; %s", self.note, HTTP_ONLY)
        elif not self._connect(self._url):

            def connect_later(url: str) -> None:
                while True:
                    gevent.sleep(RETRY_EVERY_S)
                    if self._connect(url):
                        return

            self._greenlets.append(gevent.spawn(connect_later, self._url))
        self._greenlets.append(gevent.spawn(self._each_second))
        self._runner.environment.events.test_stopping.add_listener(  # type: ignore[no-untyped-call]
            lambda **_: self.measured.end_at(time.time())
        )

    def _connect(self, url: str) -> bool:
        """Try to connect; return True when another try is useless."""
        try:
            if self._sampler is None:
                self._sampler = ActivitySampler(
                    ActivityInThread(url), interval_s=INTERVAL_S, sink=self._take
                )
            self.limits = self._sampler.start()
        except DatabaseUnavailable as error:
            if self.note is None:
                logger.warning(
                    "connections are not measured yet: %s; trying again every %g s",
                    *(error, RETRY_EVERY_S),
                )
            self.note = str(error)
            return False
        except PoolkitError as error:
            # The URL is no URL, or the role may not see the connections: that does not change.
            self.note, self._sampler = str(error), None
            logger.warning("connections are not measured: %s; %s", error, HTTP_ONLY)
            return True
        self.measured.max_connections = self.limits.max_connections
        if self.note is not None:
            logger.info("connections are measured from now on")
        self.note = None
        # Otherwise the connections opened by the first requests would count as there before.
        self._sampler.wait_for(lambda _: True, FIRST_SAMPLE_WITHIN_S)
        return True

    @property
    def lost(self) -> list[str]:
        """Which latencies are missing, a line for each worker."""
        return list(self.source.lost.values())

    def begin_again(self) -> None:
        """Forget the test before: a new one starts. The sampling goes on."""
        self.started = time.time()
        self.series = Series()
        self._fullest, self._most, self._opened = None, -1, 0
        self.forget_totals()

    def forget_totals(self) -> None:
        """Forget the totals so far, as Locust does when its statistics are reset."""
        now = time.time()
        self.source.take(begin=now)
        self.latencies = Latencies()
        self._in_failures.clear()
        sessions, limits = self.measured.connections.sessions, self.limits
        self.measured = MetricAccumulator(
            now, sessions=sessions, max_connections=limits.max_connections if limits else None
        )
        self.measured.requests = self.latencies.total()
        self._requests = RecentRequests(reported=self._reported, now=now)

    def take_rest(self) -> Latencies:
        """End the run, and return its last latencies, which are in `latencies` too."""

        def end() -> None:
            self.source.collect_rest()
            # Locust ends its users later, and their requests until then would be missing.
            self._runner.quit()

        unless_interrupted_again(self._runner.environment, end)
        rest = self.source.take()
        for _ in self._adding:  # the second that was being added
            pass
        self.latencies.add(rest)
        self._look_at_load()
        return rest

    def _look_at_load(self) -> None:
        """Note when an open loop's load began, and show failures of an ended test to Locust."""
        measured, total = self.measured, self.latencies.total()
        is_known = measured.begin < measured.load_began < math.inf
        arrivals = self.arrivals()
        if arrivals is not None and not is_known:
            measured.load_began = arrivals.begins_at
        if measured.end == math.inf:
            return  # until the end, a request without an answer may still get one
        counts: dict[Outcome, int] = {
            "timed_out": total.timed_out,
            "dropped": total.of("dropped").count,
        }
        for outcome, count in counts.items():
            new = count - self._in_failures.get(outcome, 0)
            if new > 0:
                self.add_failures(NO_ANSWER, FAILURE_TEXTS[outcome], new)
                self._in_failures[outcome] = count

    def stop(self) -> None:
        """Stop sampling and close the connection.

        A query without an answer after `STOP_WITHIN_S` is left to the end of the process.
        """
        gevent.killall(self._greenlets)
        if self._sampler is None or self.limits is None:
            return
        try:
            with gevent.Timeout(STOP_WITHIN_S, False):
                self._sampler.stop()
        except (PoolkitError, OSError) as error:
            logger.warning("watching the connections had ended early: %s", error)

    def _take(self, sample: Sample) -> None:
        """Count a sample; of the samples of a second, keep the one with the most connections."""
        targets = by_target(sample)
        held = {one.target: Held(one.total, one.idle_in_transaction) for one in targets}
        if self.step is not None:
            self.step.connections.add_sample(
                sample.time, sample.sessions, held, elsewhere=sample.elsewhere
            )
        self._opened += self.measured.connections.add_sample(
            sample.time, sample.sessions, held, elsewhere=sample.elsewhere
        )
        if len(sample.backends) > self._most:
            self._most, self._fullest = len(sample.backends), targets
            self._elsewhere = sample.elsewhere

    def _each_second(self) -> None:
        next_at = time.monotonic()
        while True:
            next_at = max(next_at + 1, time.monotonic())
            gevent.sleep(max(0.0, next_at - time.monotonic()))
            latencies = self.source.take()
            self._adding = self.latencies.add_in_parts(latencies)
            for _ in self._adding:
                gevent.sleep(0)
            now, targets, opened = time.time(), self._fullest, self._opened
            self._fullest, self._most, self._opened = None, -1, 0
            self._look_at_load()
            load = self.loop()
            second = Second(
                time=now,
                targets=targets,
                elsewhere=self._elsewhere,
                opened=None if targets is None else opened,
                users=self._runner.user_count,
                arrivals_per_s=self._arrivals.look(now, load),
                wanted_per_s=load.rate,
                rates=self._requests.look(now, latencies.total()),
            )
            self.series.add(second)
            # A server that falls silent is one line, and one more when it answers again.
            if self.limits is not None and targets is not None and self.note is not None:
                self.note = None
                logger.info("the database answers again")
            elif self.limits is not None and targets is None and self.note is None:
                self.note = "the database does not answer"
                logger.warning("%s; its connections are not measured meanwhile", self.note)
            for listener in self._listeners:
                listener(second, latencies)
