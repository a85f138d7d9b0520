"""From raw files to numbers: what each target did inside its window.

docs/results.md defines every figure. Percentiles are exact (nearest rank over the raw rows),
counts of opened connections are the server's own, and errors are counted apart, never
dropped.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from poolkit.compare.connections import ConnectionFigures, connection_figures
from poolkit.compare.files import to_json
from poolkit.compare.run_folder import (
    SCHEMA,
    Absent,
    InvokeRow,
    Machine,
    Plan,
    PlannedTarget,
    ProcessRow,
    Request,
    RunFolder,
    TargetFolder,
    Window,
)
from poolkit.errors import RunFolderError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.compare.run_folder import Level

SATURATED_CORES = 0.9
"""Locust is one Python process: beyond this it has no time left to be on time."""
LATE_MS = 50.0
"""Starting this much too late, though half of the users were free, is the generator's doing."""
LATE_S = 1.0
"""A request that was due so long before the window and ended in it is a backlog."""
UNSENT = "unsent"
"""The error of a request that was due and never sent."""
SLOWEST = 0.01
"""The share of requests that a p99 is about."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Exact percentiles in ms; the intervals hold the true one with 95 % (order statistics)."""

    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    mean: float
    p50_interval: tuple[float, float]
    p95_interval: tuple[float, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Latency | None:
        """Return the percentiles of some values in ms, none for no values."""
        ordered = sorted(values)
        if not ordered:
            return None
        return cls(
            **{f"p{p}": percentile(ordered, p) for p in (50, 90, 95, 99)},
            max=ordered[-1],
            mean=math.fsum(ordered) / len(ordered),
            p50_interval=_interval(ordered, 50),
            p95_interval=_interval(ordered, 95),
        )


def percentile(ordered: Sequence[float], p: float) -> float:
    """Return the nearest-rank percentile: the smallest value with p % at or below it."""
    # 99.9 * 1000 / 100 is a little more than 999 in binary.
    rank = math.ceil(round(p * len(ordered) / 100, 9))
    return ordered[max(rank, 1) - 1]


def _interval(ordered: Sequence[float], p: float) -> tuple[float, float]:
    """Ranks n·q ± 1.96·√(n·q·(1-q)): the binomial interval, free of any distribution."""
    n, q = len(ordered), p / 100
    spread = 1.96 * math.sqrt(n * q * (1 - q))
    low, high = math.floor(n * q - spread), math.ceil(n * q + spread)
    return ordered[min(max(low, 0), n - 1)], ordered[min(max(high, 0), n - 1)]


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
    """All figures of one target. Rates are per second, memory in MB, CPU in cores."""

    name: str
    kind: str
    preset: Mapping[str, Any]
    instances: int | None
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
    warnings: tuple[str, ...]
    finding: str = ""

    @property
    def per_request(self) -> float | None:
        """Connections opened for each request."""
        opened = self.connections.opened
        return None if opened is None or not self.served else opened / self.served


@dataclass(frozen=True, kw_only=True)
class Results:
    """One run: `targets` in the order of the plan."""

    plan: Plan
    machine: Machine
    targets: tuple[TargetResult, ...]
    absent: tuple[Absent, ...]
    headline: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what results.json holds."""
        plan = {k: v for k, v in to_json(self.plan).items() if k not in ("absent", "schema")}
        return {
            "schema": SCHEMA,
            "created": self.plan.created,
            "command": self.plan.command,
            "headline": self.headline,
            "plan": plan,
            "machine": to_json(self.machine),
            "absent": [to_json(absent) for absent in self.absent],
            "targets": {target.name: _target_json(target) for target in self.targets},
        }


def _target_json(target: TargetResult) -> dict[str, Any]:
    values: dict[str, Any] = _rounded(dataclasses.asdict(target))
    del values["name"]
    return values


def _rounded(value: Any) -> Any:
    """Cut to what was measured: a microsecond, a thousandth of a core."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def compute(run: RunFolder) -> Results:
    """Compute the figures of every target that finished its measurement.

    Raises:
        RunFolderError: a file is broken, or no target was measured at all.
    """
    plan = run.plan()
    measured: list[TargetResult] = []
    absent = list(plan.absent)
    for target in plan.targets:
        window = run.target(target.name).window()
        if window is None or not window.to > window.from_:
            absent.append(Absent(name=target.name, reason="the run was stopped before its end"))
        else:
            measured.append(_target_result(plan, target, run.target(target.name), window))
    if not measured:
        raise RunFolderError(f"{run.path}: the run was stopped before any target was measured")
    return Results(plan=plan, machine=run.machine(), targets=tuple(measured), absent=tuple(absent))


def _target_result(
    plan: Plan, target: PlannedTarget, folder: TargetFolder, window: Window
) -> TargetResult:
    seconds = window.to - window.from_
    requests, processes = folder.rows(Request), folder.rows(ProcessRow)
    inside = [r for r in requests.rows if window.from_ <= r.due < window.to]
    answered, failed = [r for r in inside if not r.error], [r for r in inside if r.error]
    cpu = _cpu_share(processes.rows, window)
    served = _served(requests.rows, window)
    connections, notes = connection_figures(plan, target, folder, window, len(served))
    late = _saturated_by(cpu, inside, plan.levels[0])
    backlog = sum(r.due < window.from_ - LATE_S for r in served)
    cold = _cold_starts(folder, window, answered)
    return TargetResult(
        name=target.name,
        kind=target.kind,
        preset=target.preset_fields,
        instances=window.instances,
        requests=len(inside),
        served=len(served),
        errors=len(failed),
        error_kinds=dict(Counter(r.error for r in failed).most_common()),
        requests_per_s=len(answered) / seconds,
        offered_per_s=len(inside) / seconds,
        measured_s=seconds,
        latency_ms=Latency.of([r.latency_ms for r in answered]),
        service_ms=Latency.of([r.service_ms for r in answered]),
        error_latency_ms=Latency.of([r.latency_ms for r in failed]),
        cold_starts=cold.count if cold else window.cold_starts,
        cold=cold,
        warm_invokes=window.warm_invokes,
        throttled=window.throttled,
        execution_environments=window.execution_environments,
        connections=connections,
        cpu_share=cpu,
        rss_mb=_peak_rss_mb(processes.rows, window),
        backlog=backlog,
        saturated=bool(late),
        saturated_by=late,
        partial=window.partial,
        warnings=(
            *window.warnings,
            *requests.warnings,
            *processes.warnings,
            *notes,
        ),
    )


def _ended(request: Request) -> float:
    return request.started + request.service_ms / 1000


def _served(rows: Sequence[Request], window: Window) -> list[Request]:
    return [r for r in rows if window.from_ <= _ended(r) < window.to and r.error != UNSENT]


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


def _saturated_by(cpu: Mapping[str, float], inside: Sequence[Request], level: Level) -> str:
    """Say how the load generator was too slow; empty if it was not."""
    if (load := cpu.get("load", 0.0)) > SATURATED_CORES:
        return f"the load generator used {load:.2f} of a core"
    if not inside:
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
