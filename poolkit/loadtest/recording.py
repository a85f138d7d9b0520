"""One run: samples of the database ten times a second, and latencies, made into a row a second."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent

from poolkit.activity.by_target import by_target
from poolkit.activity.server import ActivitySampler
from poolkit.errors import ConfigurationError, DatabaseUnavailable, PoolkitError
from poolkit.loadtest.figures import Held, MetricAccumulator
from poolkit.loadtest.interrupt import unless_interrupted_again
from poolkit.loadtest.latency.recent_requests import RecentRequests
from poolkit.loadtest.latency.run_latencies import RunLatencies
from poolkit.loadtest.off_hub import OffHubActivity
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.series import Second, Series

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.runners import Runner

    from poolkit.activity.by_target import Connected
    from poolkit.activity.server import Sample, ServerLimits
    from poolkit.loadtest.latency.collection import Source
    from poolkit.loadtest.latency.run_latencies import Latencies

INTERVAL_S = 0.1
RETRY_EVERY_S = 5.0
FIRST_SAMPLE_WITHIN_S = 1.0
STOP_WITHIN_S = 3.0
"""A server that was stopped itself answers no question and keeps no time limit of its own."""
NO_URL = "no DATABASE_URL and no --database-url was given"
HTTP_ONLY = "this run measures HTTP only"

logger = logging.getLogger("poolkit.loadtest")


class Recording:
    """Watches the server for as long as Locust runs, and never stops a load test.

    What cannot be watched is said once, in `note` and in the log; a server that cannot be
    reached is tried again.

    Args:
        runner: Locust's.
        url: of the database; None without one.
        source: where the latencies come from.
        reported: whether workers report them.

    """

    def __init__(
        self, runner: Runner, url: str | None, source: Source, *, reported: bool = False
    ) -> None:
        self.limits: ServerLimits | None = None
        """The server's; None until it was reached."""
        self.note: str | None = None
        """Why connections are not measured; None when they are."""
        self.started = time.time()
        self.series = Series()
        self.latencies = RunLatencies()
        """Those of the run so far."""
        self.measured = MetricAccumulator(self.started)
        """The figures of the run so far."""
        self.measured.requests = self.latencies.total()
        self.loop: Callable[[], LoopReport] = LoopReport
        """How the run is loaded; a closed loop unless somebody says otherwise."""
        self._listeners: list[Callable[[Second, Latencies], None]] = []
        self._runner, self._source, self._reported = runner, source, reported
        self._requests = RecentRequests(reported=reported, now=self.started)
        self._sampler: ActivitySampler | None = None
        self._greenlets: list[gevent.Greenlet] = []
        self._fullest: tuple[Connected, ...] | None = None
        self._elsewhere = 0
        self._most = -1
        self._opened = 0
        self._watch(url)

    # -- connecting -------------------------------------------------------------------------

    def _watch(self, url: str | None) -> None:
        if not url:
            self.note = NO_URL
            logger.info("connections are not measured: %s; %s", self.note, HTTP_ONLY)
            return
        try:
            self._sampler = ActivitySampler(
                OffHubActivity(url), interval_s=INTERVAL_S, sink=self._take
            )
        except ConfigurationError as error:
            self._give_up(error)
            return
        if not self._connected():
            self._greenlets.append(gevent.spawn(self._try_again))

    def _connected(self) -> bool:
        """Try to connect; True when there is nothing more to try."""
        assert self._sampler is not None  # noqa: S101  (_watch)
        try:
            self.limits = self._sampler.start()
            self.measured.max_connections = self.limits.max_connections
        except DatabaseUnavailable as error:
            if self.note is None:
                logger.warning(
                    "connections are not measured yet: %s; trying again every %g s",
                    *(error, RETRY_EVERY_S),
                )
            self.note = str(error)
            return False
        except PoolkitError as error:
            self._give_up(error)
            return True
        if self.note is not None:
            logger.info("connections are measured from now on")
        self.note = None
        # Without it, what the first requests of a run have opened would count as there before.
        self._sampler.wait_for(lambda _: True, FIRST_SAMPLE_WITHIN_S)
        return True

    def _try_again(self) -> None:
        while True:
            gevent.sleep(RETRY_EVERY_S)
            if self._connected():
                return

    def _give_up(self, error: Exception) -> None:
        self.note, self._sampler = str(error), None
        logger.warning("connections are not measured: %s; %s", error, HTTP_ONLY)

    # -- recording --------------------------------------------------------------------------

    @property
    def lost(self) -> list[str]:
        """What of the latencies is missing, a line a worker."""
        return list(self._source.lost.values())

    def start(self, *listeners: Callable[[Second, Latencies], None]) -> None:
        """Begin to make a row each second and hand it on, with the latencies of that second."""
        self._listeners = list(listeners)
        self._greenlets.append(gevent.spawn(self._each_second))

    def begin_again(self) -> None:
        """Forget what was seen: a new test starts. The sampling goes on."""
        self.started = time.time()
        self.series = Series()
        self._fullest, self._most, self._opened = None, -1, 0
        self.forget_totals()

    def forget_totals(self) -> None:
        """Forget what was counted so far, as Locust does when its statistics are reset."""
        now = time.time()
        self._source.begin_again()
        self.latencies = RunLatencies()
        sessions, limits = self.measured.connections.sessions, self.limits
        self.measured = MetricAccumulator(
            now, sessions=sessions, max_connections=limits.max_connections if limits else None
        )
        self.measured.requests = self.latencies.total()
        self._requests = RecentRequests(reported=self._reported, now=now)

    def take_rest(self) -> Latencies:
        """End the run, and return its last latencies, which are in `latencies` too."""
        unless_interrupted_again(self._runner.environment, self._end)
        rest = self._source.take()
        self.latencies.add(rest)
        return rest

    def _end(self) -> None:
        self._source.collect_rest()
        # Locust ends its users later, and what they do until then would be missing.
        self._runner.quit()

    def stop(self) -> None:
        """Stop sampling and give the connection back.

        A question that has no answer after `STOP_WITHIN_S` is left to the end of the process.
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
        targets = by_target(sample)
        held = {one.target: Held(one.total, one.idle_in_transaction) for one in targets}
        self._opened += self.measured.connections.add_sample(
            sample.time, sample.sessions, held, elsewhere=sample.elsewhere
        )
        if len(sample.backends) > self._most:
            self._most, self._fullest = len(sample.backends), targets
            self._elsewhere = sample.elsewhere

    def _each_second(self) -> None:
        due = time.monotonic()
        while True:
            due = max(due + 1, time.monotonic())
            gevent.sleep(max(0.0, due - time.monotonic()))
            self._source.look_for_lost()
            latencies = self._source.take()
            self.latencies.add(latencies)
            second = self._second(latencies)
            self.series.add(second)
            self._say_when_silent(second)
            for listener in self._listeners:
                listener(second, latencies)

    def _second(self, latencies: Latencies) -> Second:
        now = time.time()
        rates = self._requests.look(now, latencies)
        targets, opened = self._fullest, self._opened
        self._fullest, self._most, self._opened = None, -1, 0
        return Second(
            time=now,
            targets=targets,
            elsewhere=self._elsewhere,
            opened=None if targets is None else opened,
            users=self._runner.user_count,
            requests_per_s=rates.requests_per_s,
            failures_per_s=rates.failures_per_s,
            p50_ms=rates.p50_ms,
            p95_ms=rates.p95_ms,
            p99_ms=rates.p99_ms,
        )

    def _say_when_silent(self, second: Second) -> None:
        if self.limits is None:
            return
        if second.targets is not None and self.note is not None:
            self.note = None
            logger.info("the database answers again")
        elif second.targets is None and self.note is None:
            self.note = "the database does not answer"
            logger.warning("%s; its connections are not measured meanwhile", self.note)
