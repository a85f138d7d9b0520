"""Several loads on one target: the sustained ones, the knee, the difference of repeats.

docs/results.md defines the terms.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.compare.results.target_result import LEAST_ANSWERED
from poolkit.compare.results.wording import Spread, percent
from poolkit.thresholds import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from poolkit.compare.results.run_folder import Evidence, Level
    from poolkit.compare.results.target_result import TargetResult
    from poolkit.thresholds import Verdict

MOST_ERRORS = 0.01
"""The largest share of failed requests at which a load still counts as sustained."""
HIGHEST = frozenset(
    {
        "http.max",
        "db.connections.max",
        "db.connections.share",
        "db.idle_in_transaction.max",
        "db.nested_checkouts",
        "db.left_over",
    }
)
"""Figures of the worst moment: of several measurements the highest counts."""
LEAST_FOR_A_KNEE = 3
"""Levels: fewer show no bend."""
LEAST_BEND = 1.1
"""A multiple of the highest level's power: a smaller difference is noise, as with latencies."""


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """One target at one level, measured once or several times."""

    level: Level
    repeats: tuple[TargetResult, ...]
    """In the order of measuring; empty where the level was skipped."""
    spread: Mapping[str, Spread]
    """By the metrics' names, without unknown figures."""
    middle: TargetResult | None = None
    """The median repeat by p95, the slower one of two."""
    peak: float | None = None
    """The most connections at once in any repeat."""
    ceiling: int | None = None
    """The most connections that the target could hold at this load."""
    error_share: float = 0.0
    """The median share of failed requests; 0 where it is not known."""
    opened_per_1000_requests: Spread | None = None
    is_saturated: bool = False
    """True if the load generator was too slow in half of the repeats or more."""
    why_not: str = ""
    """Why the target did not sustain it, or was not measured; else empty."""
    evidence: Evidence | None = None
    """What the logs say about a target that failed before it was measured."""

    @property
    def sustained(self) -> bool:
        """True if the target sustained this load: `held` in results.json."""
        return not self.why_not

    def median(self, metric: str) -> float | None:
        """Return the median of a figure over the repeats; None where it is not known."""
        return self.spread[metric].median if metric in self.spread else None


@dataclass(frozen=True, kw_only=True)
class Knee:
    """The level with the most throughput for its latency.

    Kleinrock calls that quotient power: L. Kleinrock, "Power and Deterministic Rules of Thumb
    for Probabilistic Problems in Computer Communications", ICC 1979.
    """

    level: Level
    answered_per_s: float
    latency_ms: float
    """The mean, as in the definition."""
    power: float
    """Throughput divided by latency."""


def spread_of(repeats: Sequence[TargetResult]) -> Mapping[str, Spread]:
    """Return the range of the repeats, for every figure that is known in all of them."""
    columns: dict[str, list[float]] = {}
    for repeat in repeats:
        for name, value in repeat.figures.items():
            if value is not None:
                columns.setdefault(name, []).append(value)
    return {
        name: Spread(min(values), statistics.median(values), max(values))
        for name, values in columns.items()
        if len(values) == len(repeats)
    }


def is_tie_of_repeats(a: Spread, b: Spread) -> bool:
    """Return True if two figures differ no more than their repeats differ among themselves."""
    overlap = a.low <= b.high and b.low <= a.high
    return overlap or abs(a.median - b.median) <= max(a.high - a.low, b.high - b.low)


def level_result(
    level: Level, repeats: Sequence[TargetResult], verdicts: Sequence[Verdict]
) -> LevelResult:
    """Return the result of the repeats at one level, with what kept it from being sustained.

    Thresholds do not decide alone: a target that answers half of its load fast does not sustain it.

    Args:
        level: the load.
        repeats: its measurements; at least one.
        verdicts: the thresholds' verdicts on them.

    """
    spread = {name: of for name, of in spread_of(repeats).items() if name in METRICS}
    peak, opened = spread.get("db.connections.max"), spread.get("db.opened_per_request")
    error_share = spread["http.errors"].median if "http.errors" in spread else 0.0
    is_saturated = sum(each.saturated for each in repeats) * 2 >= len(repeats)
    aborted = [repeat.aborted_by for repeat in repeats if repeat.aborted_by]
    failed = [verdict.outcome for verdict in verdicts if not verdict.ok]
    has_own_limit = any(verdict.threshold.key == "http.errors" for verdict in verdicts)
    why = ""
    failures = [repeat.failure for repeat in repeats if repeat.failure]
    if failures:
        why = f"failed: {failures[0]}"
    elif aborted:
        why = f"ended early: {aborted[0]}"
    elif failed:
        if any(repeat.warmed_up_too_short for repeat in repeats):
            failed.append("the warm-up was too short (--warm-up): its requests were still waiting")
        why = "; ".join(failed)
    elif any(repeat.partial for repeat in repeats):
        why = "stopped early"
    elif error_share > MOST_ERRORS and not has_own_limit:
        why = f"{percent(error_share)} of the requests failed"
    elif is_saturated:
        why = next(repeat.saturated_by for repeat in repeats if repeat.saturated)
    elif not all(repeat.requests for repeat in repeats):
        why = "no request was scheduled"
    else:
        # One request more or less depends on the moment at which the window begins.
        shares = [min(1.0, (repeat.served + 1) / repeat.requests) for repeat in repeats]
        if (share := statistics.median(shares)) < LEAST_ANSWERED:
            why = f"only {percent(share)} of its load was answered"
    by_p95 = sorted(repeats, key=lambda x: x.latency_ms.p95 if x.latency_ms else math.inf)
    return LevelResult(
        level=level,
        repeats=tuple(repeats),
        spread=spread,
        middle=by_p95[len(by_p95) // 2],
        peak=peak and peak.high,
        ceiling=repeats[0].connections.ceiling,
        error_share=error_share,
        opened_per_1000_requests=opened and Spread(*(1000 * each for each in opened)),
        is_saturated=is_saturated,
        why_not=why,
    )


def highest_sustained(levels: Iterable[LevelResult]) -> LevelResult | None:
    """Return the highest level that is sustained; the levels come from the lowest to the highest."""
    sustained = [each for each in levels if each.sustained]
    return sustained[-1] if sustained else None


def reference_level(
    levels: Sequence[Level], found: Mapping[str, Sequence[LevelResult]]
) -> Level | None:
    """Return the level at which targets are compared.

    It is the highest that all of them sustain, or the lowest at which any was measured; None where
    nothing was measured.
    """
    at = {
        level: [each for of in found.values() for each in of if each.level == level]
        for level in levels
    }
    common = [level for level in levels if at[level] and all(each.sustained for each in at[level])]
    measured = [level for level in levels if any(each.repeats for each in at[level])]
    return common[-1] if common else next(iter(measured), None)


def knee_candidates(levels: Sequence[LevelResult]) -> list[Knee]:
    """Return throughput and latency of each level at which both are known and the target's.

    A level at which the load generator was too slow is none: its latency is not the target's.
    """
    found = []
    for each in levels:
        rate, mean = each.median("http.rate"), each.median("http.mean")
        is_whole = not each.is_saturated and not any(repeat.partial for repeat in each.repeats)
        if is_whole and rate is not None and mean:
            found.append(
                Knee(level=each.level, answered_per_s=rate, latency_ms=mean, power=rate / mean)
            )
    return found


def knee_of(levels: Sequence[LevelResult]) -> Knee | None:
    """Return the knee; None with too few levels, or where power hardly falls up to the last one."""
    known = knee_candidates(levels)
    if len(known) < LEAST_FOR_A_KNEE:
        return None
    best = max(known, key=lambda knee: knee.power)
    return best if best.power > LEAST_BEND * known[-1].power else None
