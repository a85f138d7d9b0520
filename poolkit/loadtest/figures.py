"""The figures that thresholds judge: one definition each, for every place that measures.

`poolkit compare` feeds an accumulator with the rows of a run folder. Its abort feeds the same rows
while they are written, and a Locust run feeds Locust's events. So one threshold has one meaning.
Nothing here imports Locust.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from poolkit.loadtest.latency.counters import RequestCounters
from poolkit.thresholds import METRICS
from poolkit.thresholds.selector import doubt_key, figure_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from poolkit.loadtest.latency.counters import Outcome
    from poolkit.thresholds import Threshold
    from poolkit.thresholds.selector import Selector

LEAST_OF_A_RATE_S = 1.0
"""In less time than this, a few answers would give a rate of 0 or of thousands."""
UNSEEN_STEP_S = 1.0
"""A busy machine may delay a sample, but not by that much."""
_PERCENTILES = {name: float(name.removeprefix("http.p")) for name in METRICS if "http.p" in name}


class Held(NamedTuple):
    """The connections of one target in one sample."""

    total: int
    idle_in_transaction: int


class Peaks(NamedTuple):
    """The connections of one target, or of all together, over all samples."""

    max: int
    mean: float
    idle_in_transaction_max: int


class HoldFigures(NamedTuple):
    """How long checkouts held the target's connections, and what for; None where nothing was held."""

    p95_ms: float | None
    busy_share: float | None
    nested_checkouts: int


class ConnectionCounters:
    """The connections of a measured time, fed sample by sample.

    Args:
        begin: when the measured time begins, Unix time in seconds.
        end: when it ends.
        sessions: the server's counter of sessions at its begin; None to count from the
            first sample on.
    """

    def __init__(
        self, begin: float = 0.0, end: float = math.inf, *, sessions: int | None = None
    ) -> None:
        self.begin, self.end = begin, end
        self.samples = 0
        self.sessions = sessions
        """The server's counter, when last read."""
        self.peak = 0
        """The most connections at once, all targets together."""
        self.server_peak = 0
        """The same with those to the other databases of the server."""
        self.elsewhere_peak = 0
        """The most at once to its other databases."""
        self.peaks: Counter[str] = Counter()
        """The most at once by target, of every target that was in a sample."""
        self._idle_in_transaction_peak = 0
        self._idle_in_transaction_peaks: Counter[str] = Counter()
        self._sum = 0
        self._sums: Counter[str] = Counter()
        self.opened: int | None = None
        """Connections opened by the server's counter; None without it, or when it was reset."""
        self._opened = 0
        self._was_reset = False
        self._last_sample = begin
        self._unseen_s = 0.0

    def add_sample(
        self, time: float, sessions: int | None, held: Mapping[str, Held], *, elsewhere: int = 0
    ) -> int:
        """Count a sample, and return the connections opened since the one before.

        Args:
            time: of the sample, Unix time in seconds. Before the measured time, only the counter is
                read; a sample after it is ignored.
            sessions: the server's counter of sessions; None if it was not read.
            held: the connections by target. A target without connections is in it with 0, if its
                connections are known to carry this name.
            elsewhere: connections to other databases of the server.
        """
        if time < self.begin and sessions is not None:
            self.sessions = sessions
        if not self.begin <= time <= self.end:
            return 0
        self.samples += 1
        if time - self._last_sample > UNSEEN_STEP_S:
            self._unseen_s += time - self._last_sample
        self._last_sample = time
        total = sum(one.total for one in held.values())
        waiting = sum(one.idle_in_transaction for one in held.values())
        self.peak = max(self.peak, total)
        self.elsewhere_peak = max(self.elsewhere_peak, elsewhere)
        self.server_peak = max(self.server_peak, total + elsewhere)
        self._idle_in_transaction_peak = max(self._idle_in_transaction_peak, waiting)
        self._sum += total
        for name, one in held.items():
            self.peaks[name] = max(self.peaks[name], one.total)
            self._sums[name] += one.total
            most = max(self._idle_in_transaction_peaks[name], one.idle_in_transaction)
            self._idle_in_transaction_peaks[name] = most
        return 0 if sessions is None else self.read_counter(sessions)

    def read_counter(self, sessions: int) -> int:
        """Read the server's counter without a sample, and return the connections opened since."""
        before, self.sessions = self.sessions, sessions
        if before is None:
            before = sessions
        # It goes back to zero when the server has crashed, or its statistics were reset.
        self._was_reset = self._was_reset or sessions < before
        opened = max(0, sessions - before)
        self._opened += opened
        self.opened = None if self._was_reset else self._opened
        return opened

    def of(self, target: str = "") -> Peaks | None:
        """Return the figures of a target, or of all together without one.

        None if it was in no sample: no connection has carried that name.
        """
        if not self.samples or (target and target not in self.peaks):
            return None
        if not target:
            return Peaks(self.peak, self._sum / self.samples, self._idle_in_transaction_peak)
        mean = self._sums[target] / self.samples
        return Peaks(self.peaks[target], mean, self._idle_in_transaction_peaks[target])

    def mean_of(self, target: str = "") -> float:
        """Return the mean number of connections of a target, or of all; 0 if it is in no sample."""
        found = self.of(target)
        return found.mean if found else 0.0

    def unseen_s(self, until: float) -> float:
        """Return the seconds up to a moment in which the server could not be queried."""
        silent_s = min(until, self.end) - self._last_sample
        return self._unseen_s + (silent_s if silent_s > UNSEEN_STEP_S else 0.0)


class MetricAccumulator:
    """All figures of a measured time, by the names that thresholds have.

    A request belongs to the measured time when it was scheduled in it. Where users follow no schedule, a
    request was scheduled when it was sent. A figure that was not measured is None.

    docs/thresholds.md has this list as a table (`scripts/metric-table`). Its units are those of a
    limit: a share is written in percent.

    http.p50, http.p90, http.p95, http.p99, http.p99.9 (ms): The latency that this percentage of the
        answered requests did not exceed, raised where requests that were never answered had waited
        longer.
    http.max (ms): The longest latency, that of a request without an answer included.
    http.mean (ms): The mean latency, raised where requests that were never answered had waited longer.
    http.errors (%): Requests that failed, timed out or were dropped, as a share of `http.requests`.
    http.requests (count): Requests scheduled in the measured time: answered, failed, timed out or
        dropped.
    http.rate (/s): Requests answered in the measured time, whenever they were scheduled, divided by its
        seconds; unknown in the first second. An open loop's seconds count from its first arrival.
    db.connections.max (count): The most connections of the target in one sample; without a target,
        of the whole database.
    db.connections.mean (ratio): The mean number of these connections over all samples.
    db.connections.share (%): The most of these connections as a share of `max_connections`; without a
        target, the most to all databases of the server.
    db.opened (count): Connections opened to the database in the measured time, by the server's own
        counter; unknown if the counter was reset.
    db.opened_per_request (ratio): `db.opened` divided by the requests that were answered or failed in
        the measured time, whenever they were scheduled.
    db.idle_in_transaction.max (count): The most of the target's connections in one sample that were
        idle in a transaction.
    db.hold.p95 (ms): The time from checkout to checkin that 95 % of the target's checkouts did not
        exceed, within 6 %, raised where a connection that was still out had been held longer.
    db.hold.busy_share (%): The share of the hold time of all checkouts in which SQL ran.
    db.nested_checkouts (count): Checkouts by a request or task that held a connection of the same pool
        already.
    db.left_over (count): Connections of the target that stay open after it was stopped.
    lambda.cold_starts (count): Execution environments that were started in the measured time.

    Args:
        begin: when the measured time begins, Unix time in seconds.
        end: when it ends.
        sessions: the server's counter of sessions at its begin, if it is known.
        max_connections: of the server, if it is known.
    """

    def __init__(
        self,
        begin: float = 0.0,
        end: float = math.inf,
        *,
        sessions: int | None = None,
        max_connections: int | None = None,
    ) -> None:
        self.begin, self.end = begin, end
        self.load_began = begin
        """When the first request was scheduled, if that is known to be later than the begin."""
        self.requests = RequestCounters(begin, end)
        self.selected: dict[Selector, RequestCounters] = {}
        """Those of a name or a tag, if a threshold is about them."""
        self.unnamed = RequestCounters(begin, end)
        """Those whose name is not known, as they never had an answer."""
        self.connections = ConnectionCounters(begin, end, sessions=sessions)
        self.max_connections = max_connections
        self.cold_starts: int | None = None
        self.left_over: int | None = None
        self.holds: HoldFigures | None = None

    def select(self, selectors: Iterable[Selector]) -> None:
        """Count the requests of some selectors too, from now on."""
        self.selected = {one: RequestCounters(self.begin, self.end) for one in selectors}

    def add(
        self,
        scheduled: float,
        ended: float,
        latency_ms: float,
        outcome: Outcome,
        *,
        method: str,
        name: str,
    ) -> None:
        """Count one request; see `RequestCounters.add`."""
        counted = [self.requests]
        counted += [of for selector, of in self.selected.items() if selector.selects(method, name)]
        if self.selected and not method and not name:
            counted.append(self.unnamed)
        for counters in counted:
            counters.add(scheduled, ended, latency_ms, outcome)

    def end_at(self, moment: float) -> None:
        """End the measured time: what comes later does not count."""
        self.end = self.connections.end = moment

    def figures(self, until: float, target: str = "") -> dict[str, float | None]:
        """Return every metric's figure; a share is from 0 to 1, None is "not known".

        Those of selected requests have the names of `figure_key`, and a second one of `doubt_key`.

        Args:
            until: the moment up to which rows were fed, Unix time in seconds.
            target: whose connections to count; empty for those of all together.
        """
        requests, connections = self.requests, self.connections
        seconds = min(until, self.end) - max(self.begin, self.load_began)
        selected: dict[str, float | None] = {}
        for selector, counters in self.selected.items():
            doubtful = counters
            # The last requests of a run, which had no time to be answered, are no errors.
            if self.unnamed.errors:
                doubtful = RequestCounters(self.begin, self.end)
                doubtful.merge(counters)
                doubtful.merge(self.unnamed)
            for key, of in ((figure_key, counters), (doubt_key, doubtful)):
                for name, value in of_requests(of, seconds).items():
                    selected[key(name, selector)] = value
        held = connections.of(target)
        # A name that is in no sample may be mistyped, and then it is not its database either.
        is_unseen = held is None and connections.samples > 0
        opened = None if is_unseen else connections.opened
        share_of = None if held is None else held.max if target else connections.server_peak
        most = self.max_connections
        return {
            **of_requests(requests, seconds),
            "db.connections.max": held and held.max,
            "db.connections.mean": held and held.mean,
            "db.connections.share": share_of / most if share_of is not None and most else None,
            "db.opened": opened,
            "db.opened_per_request": (
                opened / requests.served if opened is not None and requests.served else None
            ),
            "db.idle_in_transaction.max": held and held.idle_in_transaction_max,
            "db.hold.p95": self.holds and self.holds.p95_ms,
            "db.hold.busy_share": self.holds and self.holds.busy_share,
            "db.nested_checkouts": self.holds and self.holds.nested_checkouts,
            "db.left_over": self.left_over,
            "lambda.cold_starts": self.cold_starts,
            **selected,
        }


def of_requests(requests: RequestCounters, seconds: float) -> dict[str, float | None]:
    """Return the figures of some requests in a measured time of some seconds."""
    latency = requests.latency
    percentiles = latency.percentiles(tuple(_PERCENTILES.values()))
    return {
        **dict(zip(_PERCENTILES, percentiles, strict=True)),
        "http.max": latency.max,
        "http.mean": latency.mean,
        "http.errors": requests.errors / requests.count if requests.count else None,
        "http.requests": requests.count,
        "http.rate": (
            requests.answered_in_time / seconds if seconds >= LEAST_OF_A_RATE_S else None
        ),
    }


OF_HOLDS = ("db.hold.p95", "db.hold.busy_share", "db.nested_checkouts")
"""The metrics that the target's own processes report."""
ONLY_IN_COMPARE = (*OF_HOLDS, "db.left_over", "lambda.cold_starts")
"""The metrics that a Locust run cannot measure: `poolkit compare` starts and stops its targets."""


def why_not_known(connections: ConnectionCounters, target: str, note: str | None) -> dict[str, str]:
    """Return, for every metric, the reason that applies if a Locust run does not know it.

    Args:
        connections: of the run.
        target: whose connections count; empty for those of all together.
        note: why the connections are not measured; None when they are.
    """
    database = note or "the database was not queried yet"
    is_seen = connections.of(target) is not None
    if connections.samples:
        seen = ", ".join(sorted(connections.peaks)) or "no connection"
        database = f"no connection is named {target}; seen: {seen}"
    if is_seen and connections.opened is None:
        database = "the server's counter of sessions was reset"
    reasons = {
        name: "no request was answered" if name.startswith("http.") else database
        for name in METRICS
    }
    reasons["http.rate"] = "a rate is not known in the first second"
    if is_seen and connections.opened is not None:
        reasons["db.opened_per_request"] = "no request was answered or failed"
    return reasons | dict.fromkeys(ONLY_IN_COMPARE, "only poolkit compare measures it")


def why_not_selected(
    thresholds: Iterable[Threshold],
    known: Collection[tuple[str, str]],
    tags: Collection[str] = (),
) -> dict[str, str]:
    """Return, by `Threshold.key`, why a figure of some requests is not known.

    Args:
        thresholds: of the run.
        known: the methods and names of all requests.
        tags: of all tasks.
    """
    names = [f"{method} {name}".strip() for method, name in known if method or name]
    reasons = {}
    for one in thresholds:
        if one.selector is not None:
            is_tag = one.selector.key == "tag"
            is_there = any(one.selector.selects(*each) for each in known)
            if is_there or (is_tag and one.selector.value in tags):
                reasons[one.key] = "no such request was answered"
            else:
                reasons[one.key] = one.selector.why_unknown(sorted(tags) if is_tag else names)
    return reasons
