"""One measurement: from the raw files of a target at one load to its figures.

docs/results.md defines every figure. Connections opened are the difference of PostgreSQL's own
counter of sessions between the two ends of the window; the pools' events are a second source.
Connections open at once come from samples, so one that is shorter than the interval between two
samples can be missed. Errors are counted apart, never left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from poolkit.activity.by_target import IDLE, IDLE_IN_TRANSACTION
from poolkit.compare.results.pools import (
    HoldResult,
    HoldSite,
    PoolResult,
    pool_result,
    spread_of_text,
)
from poolkit.compare.results.run_folder import (
    By,
    ConnectionRow,
    Evidence,
    HoldRow,
    InvokeRow,
    PoolRow,
    ProcessRow,
    Request,
    SampleRow,
    Step,
)
from poolkit.compare.results.wording import Spread, count, origin
from poolkit.config.holds import CallSite, merged
from poolkit.loadtest.figures import Held, HoldFigures, MetricAccumulator
from poolkit.loadtest.latency.counters import (
    DROPPED,
    FAILURES,
    TIMED_OUT,
    LatenciesAtLeast,
    RequestCounters,
    outcome_of,
)
from poolkit.loadtest.latency.histogram import LatencyHistogram
from poolkit.loadtest.open_loop.user_class_queue import ANSWER_WITHIN_S
from poolkit.loadtest.open_loop.user_class_queue import LATE_MS as BEGIN_WITHIN_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from poolkit.compare.results.run_folder import Level, Plan, PlannedTarget, TargetFolder, Window
    from poolkit.loadtest.open_loop.report import LoopReport
    from poolkit.thresholds.selector import Selector

SATURATED_CORES = 0.9
"""Locust is one Python process: above this it has no processor time left to be punctual."""
LATE_MS = 50.0
"""With half of the users free, a start this much too late is the load generator's fault."""
LEAST_ANSWERED = 0.95
"""The share of scheduled requests that must be answered in the measured time, or a queue grows."""
LATE_S = 1.0
"""A request that was scheduled this long before the window and ended in it is a backlog."""
SLOWEST = 0.01
"""The share of the slowest requests, as of a p99."""
LOAD = "loadtest"
"""The target name that the load generator's own connections carry."""
LONGEST_STEP = 3
"""Intervals: a longer time between two samples is a gap, in which nothing is known."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


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
    """The cost of starting execution environments in the measured time."""

    count: int
    warm_up: int
    """Cold starts before the measured time."""
    init_ms_p50: float | None
    init_ms_max: float | None
    among_slowest: int
    """Requests among the slowest 1 % that waited for a cold start."""
    slowest: int
    """The number of requests in the slowest 1 %."""


@dataclass(frozen=True, kw_only=True)
class ConnectionFigures:
    """The connections of one measurement; None where a figure is not known. Means are over samples."""

    peak: int | None
    peak_share: float | None
    """The peak as a share of `max_connections`."""
    max_connections: int
    """Of the database that the target uses."""
    usable_connections: int | None
    """The same less the server's reserve."""
    mean: float | None
    opened: int | None
    opened_warm_up: int | None
    """Connections opened before the measured time: at the start and in the warm-up."""
    opened_per_1000_requests: float | None
    pool_events_opened: int | None
    idle_seconds: float | None
    """The time that all connections together spent in the state `idle`."""
    busy_peak: int | None
    """The most connections at once that were not idle."""
    idle_in_transaction_peak: int | None
    """The most connections at once that were idle in a transaction, also in an aborted one."""
    at_ceiling_share: float | None
    """The share of samples in which every connection up to the ceiling was busy."""
    left_over: int | None
    ceiling: int | None
    """The most connections that it can hold; None if that is not known."""
    ceiling_reason: str
    attributed_by: Mapping[By, int]
    """How the target's connections were recognised, with the number of them; with the warm-up's."""
    uses_preset: bool | None
    """Whether all of its connections are of an engine made from the preset; None without any."""
    by_state: Mapping[str, float]
    unseen_s: float
    """Seconds of the measured time without samples: the server could not be queried."""


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """All figures of one measurement. Rates are per second, memory in MB, CPU in cores."""

    name: str
    step: Step
    """The level and repeat of this measurement."""
    url: str | None
    """Scheme, host and port of a deployed target; None where the run itself started it."""
    kind: str
    preset: Mapping[str, Any]
    instances: int | None
    figures: Mapping[str, float | None]
    """By the names that thresholds have, which `MetricAccumulator` defines; None if not known."""
    names: tuple[tuple[str, str], ...] = ()
    """The methods and names of its requests."""
    requests: int
    """Requests scheduled in the measured time, with the failed ones."""
    served: int
    """Requests that ended in the measured time, whenever scheduled: the ones that new connections
    were opened for."""
    errors: int
    late: int
    """The other requests that were answered without an error than `in_time`."""
    never: int
    """Requests that timed out or were dropped: no user has got an answer."""
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
    """Requests of the warm-up that were still waiting when the measured time began."""
    saturated: bool
    saturated_by: str
    partial: bool
    aborted_by: str
    """The threshold that ended the measurement early."""
    failure: str
    """Why the target or its load ended early."""
    evidence: Evidence | None
    """What the logs say, if it failed or more than half of its requests did."""
    load: LoopReport | None
    """The load generator's report on itself."""
    warnings: tuple[str, ...]
    holds: HoldResult | None = None
    """Who held its connections; None if that is not known."""
    pool: PoolResult | None = None
    """Its pool's settings and their use; None if no process reported them."""
    through: str = "postgresql"
    """`pgbouncer` if its connections go through that pooler."""
    spread: Mapping[str, Spread] = field(default_factory=dict)
    """By the metrics' names, over the repeats of this measurement; empty without repeats."""
    finding: str = ""
    load_finding: str = ""
    """The loads that it sustained."""

    def range_of(self, metric: str) -> Spread | None:
        """Return the spread of the repeats; without repeats, one value three times."""
        if self.spread:
            return self.spread.get(metric)
        value = self.figures.get(metric)
        return None if value is None else Spread(value, value, value)

    @property
    def in_time(self) -> int:
        """Requests answered without an error in time, by the limits of a load test.

        They began at most 50 ms late, and their answer came within a second of their scheduled moment.
        """
        return self.requests - self.errors - self.late

    @property
    def has_failed(self) -> bool:
        """True if it ended by itself, or if no request was answered without an error."""
        return bool(self.failure) or self.requests <= self.errors

    @property
    def warmed_up_too_short(self) -> bool:
        """True if it sustained the load, but began with unanswered requests of the warm-up.

        With a target that does not, a longer warm-up would have left more of them.
        """
        return self.backlog > 0 and self.served >= LEAST_ANSWERED * self.requests


class Moment(NamedTuple):
    """The number of connections that a target had in one sample, in all and by state."""

    time: float
    total: int
    states: Mapping[str, int]


def moments(
    samples: Sequence[SampleRow], rows: Sequence[ConnectionRow], preset: str
) -> list[Moment]:
    """Return the target's connections in every sample, also in a sample without any.

    Args:
        samples: the rows of samples.csv.
        rows: the rows of connections.csv.
        preset: the target's, by whose name runs of older versions know its connections.

    """
    states: dict[float, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.is_of(preset):
            states[row.time][row.state] += 1
    times = {sample.time for sample in samples} | set(states)
    return [Moment(time, states[time].total(), states[time]) for time in sorted(times)]


class _Attribution(NamedTuple):
    """What the rows of a measurement show about the owners of its connections."""

    is_known: bool
    """False if no connection on a shared server was recognised as the target's."""
    by: Mapping[By, int]
    """The number of the target's connections by what it is known by."""
    ceiling: int | None
    ceiling_reason: str
    uses_preset: bool | None
    """None if the target opened no connection that a sample has seen."""

    @classmethod
    def of(cls, target: PlannedTarget, window: Window, rows: Iterable[ConnectionRow]) -> Self:
        """Return what holds for all rows of a measurement, with those of the warm-up."""
        if window.is_own_server is None:
            # An older run: by the preset's name alone, and with the preset's ceiling.
            return cls(True, {}, target.ceiling, target.ceiling_reason, uses_preset=True)
        by: Counter[By] = Counter()
        ages: dict[int, float] = {}
        for row in rows:
            # A pid that is younger than before is another connection.
            if row.owner == "target" and row.age_s < ages.get(row.pid, math.inf):
                by[cast("By", row.by)] += 1
            ages[row.pid] = row.age_s
        # A pooler names a connection when it first lends it to a client.
        is_named_late = window.pooler_ceiling is not None and by["preset"] > 0
        is_of_preset = by["preset"] == by.total() or is_named_late
        uses_preset = is_of_preset and bool(target.preset_fields) if by else None
        ceiling, reason = _own_ceiling(target, window, by, uses_preset=bool(uses_preset))
        pooler = window.pooler_ceiling
        # What its engines hold arrives at the pooler; the preset's ceiling is within it already.
        is_capped = bool(window.engine_ceiling_reason) or (ceiling is None and target.url is None)
        if pooler is not None and is_capped and (ceiling is None or ceiling > pooler):
            ceiling, reason = pooler, "PgBouncer's pool"
        is_known = window.is_own_server or bool(by)
        return cls(is_known, dict(by), ceiling, reason, uses_preset)


def _own_ceiling(
    target: PlannedTarget, window: Window, by: Counter[By], *, uses_preset: bool
) -> tuple[int | None, str]:
    """Return the ceiling of a target itself, without a pooler in front of the server, and why."""
    # A worker's child makes its engine with its first task, so the preset knows more than the engines.
    if window.engine_ceiling_reason and (target.pool or not uses_preset):
        return window.engine_ceiling, window.engine_ceiling_reason
    if target.url is not None or uses_preset:
        return target.ceiling, target.ceiling_reason
    reason = "no connection of it was seen"
    others = by.total() - by["preset"]
    if not target.preset_fields:
        reason = "the target has no preset"
    elif by["preset"]:
        reason = f"{others} of its {count(by.total(), 'connection')} do not use the preset"
    elif others:
        reason = "the application does not use the preset"
    return None, reason


# -- from rows to figures ---------------------------------------------------------------------


def target_result(
    plan: Plan,
    target: PlannedTarget,
    step: Step,
    folder: TargetFolder,
    window: Window,
    *,
    selectors: Iterable[Selector] = (),
) -> TargetResult:
    """Return the figures of one measurement; only its own rows are in memory.

    `selectors` are the requests that thresholds are about.

    Raises:
        RunFolderError: a file is broken.
    """
    target = _at_this_load(target, window)
    measured_s = window.to - window.from_
    requests, processes = folder.rows(Request), folder.rows(ProcessRow)
    samples, connections = folder.rows(SampleRow), folder.rows(ConnectionRow)
    inside = [r for r in requests.rows if window.from_ <= r.due < window.to]
    answered = [r for r in inside if not r.error]
    attribution = _Attribution.of(target, window, connections.rows)
    seen = moments(samples.rows, connections.rows, target.preset)
    cold = _cold_starts(folder, window, answered)
    measured = _accumulated(
        plan,
        target,
        window,
        requests=requests.rows,
        samples=samples.rows,
        seen=seen,
        is_known=attribution.is_known,
        selectors=selectors,
    )
    # Without rows there is only the fleet's counter of the whole time, whose 0 alone holds here too.
    measured.cold_starts = cold.count if cold else 0 if window.cold_starts == 0 else None
    counted = measured.requests
    error_kinds, error_latency_ms = _failures(counted, inside)
    service = LatencyHistogram.of(r.service_ms for r in answered)
    holds = _holds(folder)
    if holds is not None:
        measured.holds = HoldFigures(holds.p95_ms, holds.busy_share, holds.nested_checkouts)
    figures = measured.figures(window.to, target.name)
    (cpu, rss_mb), load = _usage(processes.rows, window), folder.load_report()
    saturated_by = _saturated_by(cpu, load, inside, step.level)
    return TargetResult(
        name=target.name,
        step=step,
        url=origin(target.url) if target.url else None,
        kind=target.kind,
        preset=target.preset_fields,
        instances=window.instances,
        figures=figures,
        names=tuple(sorted({(r.method, r.name) for r in inside if r.name or r.method})),
        requests=counted.count,
        served=counted.served,
        errors=counted.errors,
        late=sum(
            r.latency_ms > 1000 * ANSWER_WITHIN_S or (r.started - r.due) * 1000 > BEGIN_WITHIN_MS
            for r in answered
        ),
        never=counted.timed_out + counted.of("dropped").count,
        error_kinds=error_kinds,
        # By the moment of the answer: an answer after the end of the load is not throughput.
        requests_per_s=counted.answered_in_time / measured_s,
        offered_per_s=len(inside) / measured_s,
        measured_s=measured_s,
        latency_ms=Latency.of(counted.latency),
        service_ms=Latency.of(LatenciesAtLeast(service)),
        error_latency_ms=error_latency_ms,
        cold_starts=measured.cold_starts,
        cold=cold,
        warm_invokes=window.warm_invokes,
        throttled=window.throttled,
        execution_environments=window.execution_environments,
        connections=_connection_figures(
            plan, target, window, measured, seen=seen, attribution=attribution
        ),
        holds=holds,
        pool=pool_result(
            folder.rows(PoolRow).rows,
            mean_out=math.fsum(site.held_s for site in holds.sites) / measured_s if holds else None,
        ),
        through=target.through,
        cpu_share=cpu,
        rss_mb=rss_mb,
        backlog=sum(
            r.due < window.from_ - LATE_S and window.from_ <= r.ended < window.to
            for r in requests.rows
        ),
        saturated=bool(saturated_by),
        saturated_by=saturated_by,
        partial=window.partial,
        aborted_by=window.aborted_by,
        failure=window.failure,
        evidence=window.evidence,
        load=load,
        warnings=(
            *(*window.warnings, *requests.warnings, *processes.warnings),
            *(*samples.warnings, *connections.warnings),
            *_connection_notes(target, window, figures["db.opened"], connections.rows),
        ),
    )


def _holds(folder: TargetFolder) -> HoldResult | None:
    """Return who held the connections.

    None if no process has reported, or if nothing was checked out: unknown is not zero.
    """
    rows = folder.rows(HoldRow).rows
    if not rows:
        return None
    found = [_as_call_site(row) for row in rows]
    (together,) = merged(dataclasses.replace(site, where="", unit="") for site in found)
    sites = []
    for site, row in zip(found, rows, strict=True):
        seen_s = site.held_s - site.unseen_s
        sites.append(
            HoldSite(
                where=site.where,
                unit=site.unit,
                count=site.count,
                held_s=site.held_s,
                idle_s=None if site.unseen_s and seen_s <= 0 else max(0.0, seen_s - site.busy_s),
                busy_share=site.busy_share,
                p95_ms=_p95_ms(site, row.out_s),
                longest_ms=max(site.longest_s, row.out_s) * 1000,
                out_ms=row.out_s * 1000,
                nested=site.nested,
                after_response=site.after_response,
            )
        )
    return HoldResult(
        p95_ms=_p95_ms(together, max(row.out_s for row in rows)),
        busy_share=together.busy_share,
        nested_checkouts=together.nested,
        after_response=together.after_response,
        sites=tuple(sorted(sites, key=lambda site: -(site.idle_s or 0.0))),
    )


def _as_call_site(row: HoldRow) -> CallSite:
    return CallSite(
        where=row.where,
        unit=row.unit,
        count=row.count,
        held_s=row.held_s,
        busy_s=row.busy_s,
        p95_s=0.0,
        longest_s=row.longest_s,
        nested=row.nested,
        after_response=row.after_response,
        unseen_s=row.unseen_s,
        spread=spread_of_text(row.spread),
    )


def _p95_ms(site: CallSite, out_s: float) -> float | None:
    """Return the p95 of holds; one that is still out raises it, like a request without an answer."""
    if not site.spread:
        return out_s * 1000 or None
    (whole,) = merged([site])
    # Of fewer than 20 holds, one is more than 5 %.
    is_among_5_percent = sum(number for _, number in site.spread) + 1 < 20
    return 1000 * (max(whole.p95_s, out_s) if is_among_5_percent else whole.p95_s)


def _failures(
    counted: RequestCounters, inside: Iterable[Request]
) -> tuple[dict[str, int], Latency | None]:
    """Return the requests that failed by kind, the most frequent first, and their latency."""
    kinds = Counter(r.error for r in inside if outcome_of(r.error) == "failed")
    kinds += Counter({TIMED_OUT: counted.timed_out, DROPPED: counted.of("dropped").count})
    latencies = LatencyHistogram()
    for outcome in FAILURES:
        latencies.add(counted.of(outcome))
    return dict(kinds.most_common()), Latency.of(LatenciesAtLeast(latencies))


def _accumulated(
    plan: Plan,
    target: PlannedTarget,
    window: Window,
    *,
    requests: Iterable[Request],
    samples: Iterable[SampleRow],
    seen: Iterable[Moment],
    is_known: bool,
    selectors: Iterable[Selector],
) -> MetricAccumulator:
    """Return the accumulator of every metric, fed with the rows of a measurement."""
    measured = MetricAccumulator(
        window.from_,
        window.to,
        sessions=window.sessions_from,
        max_connections=target.max_connections or plan.max_connections,
    )
    measured.select(selectors)
    for row in requests:
        outcome = outcome_of(row.error)
        measured.add(row.due, row.ended, row.latency_ms, outcome, method=row.method, name=row.name)
    sessions = {sample.time: sample.sessions for sample in samples}
    for moment in seen:
        waiting = sum(moment.states.get(state, 0) for state in IDLE_IN_TRANSACTION)
        held = {target.name: Held(moment.total, waiting)} if is_known else {}
        measured.connections.add_sample(moment.time, sessions.get(moment.time), held)
    if is_known and not measured.connections.samples and window.sessions_to is not None:
        measured.connections.read_counter(window.sessions_to)
    measured.left_over = window.left_over if is_known else None
    return measured


def _at_this_load(target: PlannedTarget, window: Window) -> PlannedTarget:
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
    # From an older version, in which only concurrency limited it.
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


def _usage(rows: Iterable[ProcessRow], window: Window) -> tuple[dict[str, float], float | None]:
    """Return the cores that each role used, and the most memory of the target in MB.

    Cores are a role's processor time over the time between two readings.
    """
    roles: dict[str, list[ProcessRow]] = {}
    for row in rows:
        if window.from_ <= row.time <= window.to:
            roles.setdefault(row.role, []).append(row)
    # The sum may fall: the time of a process that was never waited for ends with it.
    cores = {
        role: sum(max(0.0, b.cpu_s - a.cpu_s) for a, b in pairwise(found))
        / (found[-1].time - found[0].time)
        for role, found in roles.items()
        if found[-1].time > found[0].time
    }
    return cores, max((row.rss_mb for row in roles.get("target", ())), default=None)


def _saturated_by(
    cpu: Mapping[str, float], report: LoopReport | None, inside: Sequence[Request], level: Level
) -> str:
    """Return why the load generator was too slow; empty if it kept its schedule."""
    if (used := cpu.get("load", 0.0)) > SATURATED_CORES:
        return f"the load generator used {used:.2f} of a core"
    if report is not None:
        return report.saturated_by
    if not inside or level.is_open:
        return ""
    # It wrote no report, so its rows decide. The median: requests that waited for the warm-up's make
    # some rows late, a slow generator makes all of them late.
    lag_ms = percentile(sorted((r.started - r.due) * 1000 for r in inside), 50)
    busy_users = level.offered_per_s * math.fsum(r.service_ms for r in inside) / len(inside) / 1000
    if lag_ms > LATE_MS and busy_users < level.users / 2:
        return f"the load generator sent half of the requests {lag_ms:.0f} ms late or more"
    return ""


def _cold_starts(
    folder: TargetFolder, window: Window, answered: Sequence[Request]
) -> ColdStarts | None:
    invokes = folder.rows(InvokeRow).rows
    if not invokes:
        return None
    cold = [i for i in invokes if i.cold and window.warm_from <= i.arrived < window.to]
    inside = [i for i in cold if i.arrived >= window.from_]
    inits = sorted(i.init_ms for i in inside or cold if i.init_ms is not None)
    slowest: list[Request] = []
    if answered:
        by_latency = sorted(answered, key=lambda r: r.latency_ms)
        slowest = by_latency[-math.ceil(len(answered) * SLOWEST) :]
    # A request waited for a cold start that began while it was under way and took less time.
    among_slowest = sum(
        any(
            request.started - 0.005 <= invoke.arrived <= request.ended
            and (invoke.init_ms or 0.0) <= request.service_ms
            for invoke in inside
        )
        for request in slowest
    )
    return ColdStarts(
        count=len(inside),
        warm_up=len(cold) - len(inside),
        init_ms_p50=percentile(inits, 50) if inits else None,
        init_ms_max=inits[-1] if inits else None,
        among_slowest=among_slowest,
        slowest=len(slowest),
    )


# -- connections ------------------------------------------------------------------------------


def _connection_figures(
    plan: Plan,
    target: PlannedTarget,
    window: Window,
    measured: MetricAccumulator,
    *,
    seen: Sequence[Moment],
    attribution: _Attribution,
) -> ConnectionFigures:
    is_known = attribution.is_known
    inside = [m for m in seen if is_known and window.from_ <= m.time <= window.to]
    totals: Counter[str] = Counter()
    for moment in inside:
        totals.update(moment.states)
    # Not idle: in a query, or in a transaction between two queries.
    busy = [moment.total - moment.states.get(IDLE, 0) for moment in inside]
    held, served = measured.connections.of(target.name), measured.requests.served
    opened = measured.connections.opened if is_known else None
    ceiling = attribution.ceiling
    most = target.max_connections or plan.max_connections
    return ConnectionFigures(
        peak=held and held.max,
        peak_share=held and held.max / most,
        max_connections=most,
        usable_connections=target.usable_connections or plan.usable_connections,
        mean=held and held.mean,
        opened=opened,
        opened_warm_up=(
            difference(window.sessions_before, window.sessions_from) if is_known else None
        ),
        opened_per_1000_requests=None if opened is None or not served else 1000 * opened / served,
        pool_events_opened=window.pool_opened,
        idle_seconds=idle_seconds(inside, plan.interval_s, window.to),
        busy_peak=max(busy, default=None),
        idle_in_transaction_peak=held and held.idle_in_transaction_max,
        at_ceiling_share=(
            sum(number >= ceiling for number in busy) / len(busy) if ceiling and busy else None
        ),
        left_over=measured.left_over,
        ceiling=ceiling,
        ceiling_reason=attribution.ceiling_reason,
        attributed_by=attribution.by,
        uses_preset=attribution.uses_preset,
        by_state={state: number / len(inside) for state, number in totals.most_common()},
        unseen_s=measured.connections.unseen_s(window.to),
    )


def _connection_notes(
    target: PlannedTarget, window: Window, opened: float | None, rows: Sequence[ConnectionRow]
) -> list[str]:
    """Return notes on the figures: disagreeing sources, other clients."""
    found = []
    events = window.pool_opened
    # Connections under way at the two ends may be in one count and not yet in the other.
    if (
        opened is not None
        and events is not None
        and abs(opened - events) > max(2, 0.02 * opened)
        # Through a pooler the server sees the pooler's connections instead.
        and not target.preset_fields.get("transaction_pooling")
    ):
        found.append(f"the server counted {opened:.0f} new connections, the pools' events {events}")
    at: Counter[float] = Counter()
    names: set[str] = set()
    for row in rows:
        is_other = not row.is_of(target.preset) and row.target != LOAD
        if is_other and window.from_ <= row.time <= window.to:
            at[row.time] += 1
            names.add(row.target or "unnamed")
    if at:
        most = count(max(at.values()), "connection")
        found.append(f"up to {most} of other clients at once ({', '.join(sorted(names)[:3])})")
    return found


def idle_seconds(inside: Sequence[Moment], interval_s: float, end: float) -> float | None:
    """Return idle connections times the time until the next sample, added up."""
    if not inside:
        return None
    times = [*(m.time for m in inside), end]
    steps = [min(b - a, LONGEST_STEP * interval_s) for a, b in pairwise(times)]
    return sum(m.states.get(IDLE, 0) * s for m, s in zip(inside, steps, strict=True))


def difference(begin: int | None, end: int | None) -> int | None:
    """Return the growth of the server's counter; None if it was reset, as after a crash."""
    return None if begin is None or end is None or end < begin else end - begin
