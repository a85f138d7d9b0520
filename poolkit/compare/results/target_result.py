"""One measurement: from the raw files of a target at one load to its figures.

docs/results.md defines every figure. Percentiles are exact (nearest rank over the raw rows),
counts of opened connections are the server's own, and errors are counted apart, never
dropped.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.compare.results.connections import (
    ConnectionFigures,
    add_samples,
    connection_figures,
    moments,
    notes,
)
from poolkit.compare.results.run_folder import (
    ConnectionRow,
    InvokeRow,
    LoadReport,
    ProcessRow,
    Request,
    SampleRow,
    Step,
)
from poolkit.compare.results.wording import origin
from poolkit.loadtest.figures import (
    DROPPED,
    FAILURES,
    TIMED_OUT,
    LatenciesAtLeast,
    MetricAccumulator,
    outcome_of,
)
from poolkit.loadtest.latency.histogram import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.compare.results.run_folder import Level, Plan, PlannedTarget, TargetFolder, Window


SATURATED_CORES = 0.9
"""Locust is one Python process: beyond this it has no time left to be on time."""
LATE_MS = 50.0
"""Starting this much too late, though half of the users were free, is the generator's doing."""
LEAST_ANSWERED = 0.95
"""The share of what was due that has to be answered meanwhile, or a queue grows."""
LATE_S = 1.0
"""A request that was due so long before the window and ended in it is a backlog."""
CUT_OFF = (TIMED_OUT, DROPPED)
"""The errors of requests without an answer: their latencies are how long they waited."""
SLOWEST = 0.01
"""The share of requests that a p99 is about."""


class Spread(NamedTuple):
    """The lowest, the median and the highest value of several measurements."""

    low: float
    median: float
    high: float

    def times(self, factor: float) -> Spread:
        """Return the same in another unit."""
        return Spread(self.low * factor, self.median * factor, self.high * factor)

    def overlaps(self, other: Spread) -> bool:
        """Return True if the two ranges have a value in common."""
        return self.low <= other.high and other.low <= self.high


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Return True if the two intervals have a value in common."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles in ms, to three digits; the intervals hold the true one with 95 %."""

    p50: float
    p90: float
    p95: float
    p99: float
    p99_9: float
    max: float
    mean: float
    p50_interval: Interval
    p95_interval: Interval

    @classmethod
    def of(cls, found: LatenciesAtLeast) -> Latency | None:
        """Return the figures of some latencies; None where nothing was answered."""
        longest, mean = found.max, found.mean
        if longest is None or mean is None:
            return None
        p50, p90, p95, p99, p99_9 = (ms or 0.0 for ms in found.percentiles((50, 90, 95, 99, 99.9)))
        return cls(
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            p99_9=p99_9,
            max=longest,
            mean=mean,
            p50_interval=_interval(found, 50),
            p95_interval=_interval(found, 95),
        )


def _interval(found: LatenciesAtLeast, p: float) -> Interval:
    """Return the values at ranks n·q ± 1.96·√(n·q·(1-q)): it holds for any distribution."""
    intervals = []
    for histogram in found.histograms:
        n, q = histogram.count, p / 100
        spread = 1.96 * math.sqrt(n * q * (1 - q))
        low, high = math.floor(n * q - spread), math.ceil(n * q + spread)
        ranks = [100 * (min(max(index, 0), n - 1) + 1) / n for index in (low, high)]
        intervals.append([ms or 0.0 for ms in histogram.percentiles(ranks)])
    lows, highs = zip(*intervals, strict=True)
    return Interval(max(lows), max(highs))


def percentile(ordered: Sequence[float], p: float) -> float:
    """Return the nearest-rank percentile: the smallest value with p % at or below it."""
    # 99.9 * 1000 / 100 is a little more than 999 in binary.
    rank = math.ceil(round(p * len(ordered) / 100, 9))
    return ordered[max(rank, 1) - 1]


@dataclass(frozen=True, kw_only=True)
class ColdStarts:
    """What starting execution environments cost inside the window."""

    count: int
    warm_up: int
    """Those before the window."""
    init_ms_p50: float | None
    init_ms_max: float | None
    among_slowest: int
    """How many of the slowest 1 % of requests waited for one."""
    slowest: int
    """How many requests the slowest 1 % are."""


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """All figures of one measurement. Rates are per second, memory in MB, CPU in cores."""

    name: str
    step: Step
    """Which of the target's measurements it is."""
    url: str | None
    """Scheme, host and port of a deployed one; none where the run itself started it."""
    kind: str
    preset: Mapping[str, Any]
    instances: int | None
    figures: Mapping[str, float | None]
    """By the names that thresholds have, which `MetricAccumulator` defines; None if not known."""
    requests: int
    """Those due inside the window, failed ones too."""
    served: int
    """Those that ended inside the window, whenever they were due: what connections opened
    inside the window were opened for."""
    errors: int
    error_kinds: Mapping[str, int]
    requests_per_s: float
    offered_per_s: float
    measured_s: float
    latency_ms: Latency | None
    service_ms: Latency | None
    error_latency_ms: Latency | None
    cold_starts: int | None
    cold: ColdStarts | None
    warm_invokes: int | None
    throttled: int | None
    execution_environments: int | None
    connections: ConnectionFigures
    cpu_share: Mapping[str, float]
    rss_mb: float | None
    backlog: int
    """Requests of the warm-up that were still waiting when the window began."""
    saturated: bool
    saturated_by: str
    partial: bool
    aborted_by: str
    """The threshold that ended the measurement early."""
    load: LoadReport | None
    """What the load generator says of itself."""
    warnings: tuple[str, ...]
    spread: Mapping[str, Spread] = field(default_factory=dict)
    """By the metrics' names, over the repeats of this measurement; empty without repeats."""
    finding: str = ""
    load_finding: str = ""
    """What it held of several loads."""

    @property
    def per_request(self) -> float | None:
        """Connections opened for each request."""
        return self.figures["db.opened_per_request"]

    @property
    def warmed_up_too_short(self) -> bool:
        """Whether it answers what it is given, and yet had the warm-up's requests to work off.

        Of a target that answers less, a longer warm-up would have left more of them.
        """
        return self.backlog > 0 and self.served >= LEAST_ANSWERED * self.requests


# -- from rows to figures ---------------------------------------------------------------------


def target_result(
    plan: Plan, target: PlannedTarget, step: Step, folder: TargetFolder, window: Window
) -> TargetResult:
    """Compute the figures of one measurement, with its rows in memory and no others.

    Raises:
        RunFolderError: a file is broken.
    """
    target = _as_measured(target, window)
    seconds = window.to - window.from_
    requests, processes = folder.rows(Request), folder.rows(ProcessRow)
    samples, connections = folder.rows(SampleRow), folder.rows(ConnectionRow)
    inside = [r for r in requests.rows if window.from_ <= r.due < window.to]
    answered = [r for r in inside if not r.error]
    cold = _cold_starts(folder, window, answered)
    measured = MetricAccumulator(
        window.from_,
        window.to,
        sessions=window.sessions_from,
        max_connections=target.max_connections or plan.max_connections,
    )
    for row in requests.rows:
        measured.requests.add(row.due, _ended(row), row.latency_ms, outcome_of(row.error))
    seen = moments(target.preset, samples.rows, connections.rows)
    add_samples(measured, target.preset, samples.rows, seen, window)
    measured.left_over = window.left_over
    # Without rows, the fleet's counter is of the whole time: of the window it tells no more than "none".
    measured.cold_starts = cold.count if cold else 0 if window.cold_starts == 0 else None
    figures, counted = measured.figures(window.to, target.preset), measured.requests
    of_failed = LatencyHistogram()
    for outcome in FAILURES:
        of_failed.add(counted.of(outcome))
    kinds = Counter(r.error for r in inside if outcome_of(r.error) == "failed")
    kinds += Counter({TIMED_OUT: counted.timed_out, DROPPED: counted.of("dropped").count})
    cpu, load = _cpu_share(processes.rows, window), folder.load_report()
    late = _saturated_by(cpu, load) or ("" if load else _seems_late(inside, step.level))
    return TargetResult(
        name=target.name,
        step=step,
        url=origin(target.url) if target.url else None,
        kind=target.kind,
        preset=target.preset_fields,
        instances=window.instances,
        figures=figures,
        requests=counted.count,
        served=counted.served,
        errors=counted.errors,
        error_kinds=dict(kinds.most_common()),
        # By when answers came: those that come after the load has ended are no throughput.
        requests_per_s=counted.answered_in_time / seconds,
        offered_per_s=len(inside) / seconds,
        measured_s=seconds,
        latency_ms=Latency.of(counted.latency),
        service_ms=Latency.of(
            LatenciesAtLeast(LatencyHistogram.of(r.service_ms for r in answered))
        ),
        error_latency_ms=Latency.of(LatenciesAtLeast(of_failed)) if counted.errors else None,
        cold_starts=measured.cold_starts,
        cold=cold,
        warm_invokes=window.warm_invokes,
        throttled=window.throttled,
        execution_environments=window.execution_environments,
        connections=connection_figures(plan, target, window, measured, seen),
        cpu_share=cpu,
        rss_mb=_peak_rss_mb(processes.rows, window),
        backlog=sum(
            r.due < window.from_ - LATE_S and window.from_ <= _ended(r) < window.to
            for r in requests.rows
        ),
        saturated=bool(late),
        saturated_by=late,
        partial=window.partial,
        aborted_by=window.aborted_by,
        load=load,
        warnings=(
            *window.warnings,
            *requests.warnings,
            *processes.warnings,
            *samples.warnings,
            *connections.warnings,
            *notes(target, window, measured.connections.opened, connections.rows),
        ),
    )


def _as_measured(target: PlannedTarget, window: Window) -> PlannedTarget:
    """Return a target with its limits at the load of a measurement.

    The plan has those at the highest load; a function's concurrency may be lower at others.
    """
    if window.ceiling is not None:
        return dataclasses.replace(
            target,
            instances_max=window.instances,
            ceiling=window.ceiling,
            ceiling_reason=window.ceiling_reason,
        )
    # Of an older version, before there was anything but concurrency to bound it.
    most, here = target.instances_max, window.instances
    if not target.ceiling or not most or not here or here == most:
        return target
    each = target.ceiling // most
    return dataclasses.replace(
        target,
        instances_max=here,
        ceiling=here * each,
        ceiling_reason=f"concurrency {here} x {each}",
    )


def _ended(request: Request) -> float:
    return request.started + request.service_ms / 1000


def _cpu_share(rows: Sequence[ProcessRow], window: Window) -> dict[str, float]:
    """Return each role's cores: its processor time inside the window over the time between."""
    roles: dict[str, list[ProcessRow]] = {}
    for row in rows:
        if window.from_ <= row.time <= window.to:
            roles.setdefault(row.role, []).append(row)
    # A process that nobody waited for takes its time with it: the sum may fall.
    return {
        role: sum(max(0.0, b.cpu_s - a.cpu_s) for a, b in pairwise(found))
        / (found[-1].time - found[0].time)
        for role, found in roles.items()
        if found[-1].time > found[0].time
    }


def _peak_rss_mb(rows: Sequence[ProcessRow], window: Window) -> float | None:
    inside = (r for r in rows if r.role == "target" and window.from_ <= r.time <= window.to)
    return max((r.rss_mb for r in inside), default=None)


def _saturated_by(cpu: Mapping[str, float], report: LoadReport | None) -> str:
    """Say how the load generator was too slow; empty if it was not."""
    if (used := cpu.get("load", 0.0)) > SATURATED_CORES:
        return f"the load generator used {used:.2f} of a core"
    return report.saturated_by if report else ""


def _seems_late(inside: Sequence[Request], level: Level) -> str:
    """Guess the same from the rows, where the load generator did not come to say so."""
    if not inside or level.is_open:
        return ""
    # The median: what the warm-up left undone makes some late, the generator makes all late.
    lag_ms = percentile(sorted((r.started - r.due) * 1000 for r in inside), 50)
    busy_users = level.offered_per_s * math.fsum(r.service_ms for r in inside) / len(inside) / 1000
    if lag_ms > LATE_MS and busy_users < level.users / 2:
        return f"the load generator sent half of the requests {lag_ms:.0f} ms late or more"
    return ""


def _cold_starts(
    folder: TargetFolder, window: Window, answered: Sequence[Request]
) -> ColdStarts | None:
    invokes = folder.rows(InvokeRow).rows
    cold = [i for i in invokes if i.cold and window.warm_from <= i.arrived < window.to]
    if not invokes:
        return None
    inside = [i for i in cold if i.arrived >= window.from_]
    inits = sorted(i.init_ms for i in inside or cold if i.init_ms is not None)
    slowest = sorted(answered, key=lambda r: r.latency_ms)[-math.ceil(len(answered) * SLOWEST) :]
    return ColdStarts(
        count=len(inside),
        warm_up=len(cold) - len(inside),
        init_ms_p50=percentile(inits, 50) if inits else None,
        init_ms_max=inits[-1] if inits else None,
        among_slowest=sum(_waited_for_one(r, inside) for r in slowest) if answered else 0,
        slowest=len(slowest) if answered else 0,
    )


def _waited_for_one(request: Request, cold: Sequence[InvokeRow]) -> bool:
    """Tell whether a cold start began while this request was under way, and took less."""
    return any(
        request.started - 0.005 <= i.arrived <= _ended(request)
        and (i.init_ms or 0.0) <= request.service_ms
        for i in cold
    )
