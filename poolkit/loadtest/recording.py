"""One run: samples of the database ten times a second, and latencies, made into a row a second."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent

from poolkit.activity.by_target import by_target
from poolkit.activity.server import ActivityConnection, ActivitySampler
from poolkit.errors import ConfigurationError, DatabaseUnavailable, PoolkitError
from poolkit.loadtest.event_loop import InThread, unless_interrupted_again
from poolkit.loadtest.figures import Held, MetricAccumulator
from poolkit.loadtest.latency.counters import RecentRequests, RunLatencies
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.series import Second, Series

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.runners import Runner
    from sqlalchemy.engine import URL

    from poolkit.activity.by_target import Connected
    from poolkit.activity.server import Sample, ServerLimits
    from poolkit.loadtest.latency.collection import Source
    from poolkit.loadtest.latency.counters import Latencies

INTERVAL_S = 0.1
RETRY_EVERY_S = 5.0
FIRST_SAMPLE_WITHIN_S = 1.0
STOP_WITHIN_S = 3.0
"""A server that is stopped by SIGSTOP answers no query and keeps no time limit of its own."""
NO_URL = "no DATABASE_URL and no --database-url was given"
HTTP_ONLY = "this run measures HTTP only"

logger = logging.getLogger("poolkit.loadtest")


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
        self.latencies = RunLatencies()
        """The latencies of the run so far."""
        self.measured = MetricAccumulator(self.started)
        """The figures of the run so far."""
        self.measured.requests = self.latencies.total()
        self.loop: Callable[[], LoopReport] = LoopReport
        """Returns how the run is loaded; a closed loop unless it is replaced."""
        self._url, self._runner, self._source, self._reported = url, runner, source, reported
        self._listeners: list[Callable[[Second, Latencies], None]] = []
        self._requests = RecentRequests(reported=reported, now=self.started)
        self._sampler: ActivitySampler | None = None
        self._greenlets: list[gevent.Greenlet] = []
        # Of the present second:
        self._fullest: tuple[Connected, ...] | None = None
        self._elsewhere = 0
        self._most = -1
        self._opened = 0

    def start(self, *listeners: Callable[[Second, Latencies], None]) -> None:
        """Connect, and begin to pass on a row each second with the latencies of that second."""
        self._listeners = list(listeners)
        if self._url:
            try:
                self._sampler = ActivitySampler(
                    ActivityInThread(self._url), interval_s=INTERVAL_S, sink=self._take
                )
            except ConfigurationError as error:
                self._give_up(error)
            else:
                if not self._connect():

                    def connect_later() -> None:
                        while True:
                            gevent.sleep(RETRY_EVERY_S)
                            if self._connect():
                                return

                    self._greenlets.append(gevent.spawn(connect_later))
        else:
            self.note = NO_URL
            logger.info("connections are not measured: %s; %s", self.note, HTTP_ONLY)
        self._greenlets.append(gevent.spawn(self._each_second))

    # -- connecting -------------------------------------------------------------------------

    def _connect(self) -> bool:
        """Try to connect; return True when another try is useless."""
        assert self._sampler is not None  # noqa: S101  (start)
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
        # Otherwise the connections opened by the first requests would count as there before.
        self._sampler.wait_for(lambda _: True, FIRST_SAMPLE_WITHIN_S)
        return True

    def _give_up(self, error: Exception) -> None:
        self.note, self._sampler = str(error), None
        logger.warning("connections are not measured: %s; %s", error, HTTP_ONLY)

    # -- recording --------------------------------------------------------------------------

    @property
    def lost(self) -> list[str]:
        """Which latencies are missing, a line for each worker."""
        return list(self._source.lost.values())

    def begin_again(self) -> None:
        """Forget the test before: a new one starts. The sampling goes on."""
        self.started = time.time()
        self.series = Series()
        self._fullest, self._most, self._opened = None, -1, 0
        self.forget_totals()

    def forget_totals(self) -> None:
        """Forget the totals so far, as Locust does when its statistics are reset."""
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

        def end() -> None:
            self._source.collect_rest()
            # Locust ends its users later, and what they do until then would be missing.
            self._runner.quit()

        unless_interrupted_again(self._runner.environment, end)
        rest = self._source.take()
        self.latencies.add(rest)
        return rest

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
        targets = by_target(sample)
        held = {one.target: Held(one.total, one.idle_in_transaction) for one in targets}
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
            self._source.look_for_lost()
            latencies = self._source.take()
            self.latencies.add(latencies)
            now, targets, opened = time.time(), self._fullest, self._opened
            self._fullest, self._most, self._opened = None, -1, 0
            second = Second(
                time=now,
                targets=targets,
                elsewhere=self._elsewhere,
                opened=None if targets is None else opened,
                users=self._runner.user_count,
                rates=self._requests.look(now, latencies),
            )
            self.series.add(second)
            if self.limits is not None:
                self._log_silence(second)
            for listener in self._listeners:
                listener(second, latencies)

    def _log_silence(self, second: Second) -> None:
        if second.targets is not None and self.note is not None:
            self.note = None
            logger.info("the database answers again")
        elif second.targets is None and self.note is None:
            self.note = "the database does not answer"
            logger.warning("%s; its connections are not measured meanwhile", self.note)
