"""Several loads on one target: which of them it sustains, where its knee is, how repeats differ.

docs/results.md defines the terms.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.compare.results.target_result import LEAST_ANSWERED
from poolkit.compare.results.wording import Spread, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from poolkit.compare.results.run_folder import Level, PlannedTarget
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
    """By the metrics' names; what is not known is not in it."""
    why_not: str = ""
    """What kept the target from sustaining it, or why it was not measured; else empty."""

    @property
    def sustained(self) -> bool:
        """True if the target sustained this load: `held` in results.json."""
        return not self.why_not

    @property
    def middle(self) -> TargetResult | None:
        """The median repeat by p95, the slower one of two."""
        latencies = [
            (each.latency_ms.p95 if each.latency_ms else math.inf) for each in self.repeats
        ]
        order = sorted(range(len(latencies)), key=latencies.__getitem__)
        return self.repeats[order[len(order) // 2]] if order else None

    @property
    def peak(self) -> float | None:
        """The most connections at once in any repeat."""
        peak = self.spread.get("db.connections.max")
        return peak.high if peak else None

    @property
    def ceiling(self) -> int | None:
        """The most connections that the target could hold at this load."""
        return self.repeats[0].connections.ceiling if self.repeats else None

    def median(self, metric: str) -> float | None:
        """Return the median of a figure over the repeats; None where it is not known."""
        return self.spread[metric].median if metric in self.spread else None

    @property
    def error_share(self) -> float:
        """The median share of failed requests; 0 where it is not known."""
        return self.spread["http.errors"].median if "http.errors" in self.spread else 0.0

    @property
    def opened_per_1000_requests(self) -> Spread | None:
        """Connections opened for 1,000 requests; None where it is not known."""
        opened = self.spread.get("db.opened_per_request")
        return opened.times(1000) if opened else None

    @property
    def is_saturated(self) -> bool:
        """True if the load generator was too slow in half of the repeats or more."""
        return sum(each.saturated for each in self.repeats) * 2 >= max(1, len(self.repeats))


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

    @property
    def power(self) -> float:
        """Throughput divided by latency."""
        return self.answered_per_s / self.latency_ms


def not_applicable(target: PlannedTarget) -> frozenset[str]:
    """Return the names of figures that such a target does not have, measured or not."""
    # A deployed target is never stopped, so it cannot leave connections behind.
    names = {"db.left_over"} if target.url is not None else set()
    return frozenset(names if target.kind == "lambda" else names | {"lambda.cold_starts"})


# -- repeats --------------------------------------------------------------------------------


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


def judged_figures(spread: Mapping[str, Spread]) -> Mapping[str, float]:
    """Return what thresholds judge: the median of the repeats, the highest of what is in `HIGHEST`."""
    return {name: of.high if name in HIGHEST else of.median for name, of in spread.items()}


def is_tie_of_repeats(a: Spread, b: Spread) -> bool:
    """Return True if two figures differ no more than their repeats differ among themselves."""
    return a.overlaps(b) or abs(a.median - b.median) <= max(a.high - a.low, b.high - b.low)


# -- sustained or not -----------------------------------------------------------------------


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
    result = LevelResult(level=level, repeats=tuple(repeats), spread=spread_of(repeats))
    aborted = [repeat.aborted_by for repeat in repeats if repeat.aborted_by]
    failed = [verdict.outcome for verdict in verdicts if not verdict.ok]
    has_own_limit = any(verdict.threshold.metric == "http.errors" for verdict in verdicts)
    why = ""
    if aborted:
        why = f"ended early: {aborted[0]}"
    elif failed:
        if any(repeat.warmed_up_too_short for repeat in repeats):
            failed.append("the warm-up was too short (--warm-up): its requests were still waiting")
        why = "; ".join(failed)
    elif any(repeat.partial for repeat in repeats):
        why = "stopped early"
    elif result.error_share > MOST_ERRORS and not has_own_limit:
        why = f"{percent(result.error_share)} of the requests failed"
    elif result.is_saturated:
        why = next(repeat.saturated_by for repeat in repeats if repeat.saturated)
    elif not all(repeat.requests for repeat in repeats):
        why = "no request was scheduled"
    else:
        # One request more or less depends on the moment at which the window begins.
        shares = [min(1.0, (repeat.served + 1) / repeat.requests) for repeat in repeats]
        if (share := statistics.median(shares)) < LEAST_ANSWERED:
            why = f"only {percent(share)} of its load was answered"
    return dataclasses.replace(result, why_not=why)


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


# -- the knee -------------------------------------------------------------------------------


def knee_candidates(levels: Sequence[LevelResult]) -> list[Knee]:
    """Return throughput and latency of each level at which both are known and the target's.

    A level at which the load generator was too slow is none: its latency is not the target's.
    """
    found = []
    for each in levels:
        rate, mean = each.median("http.rate"), each.median("http.mean")
        is_whole = not each.is_saturated and not any(repeat.partial for repeat in each.repeats)
        if is_whole and rate is not None and mean:
            found.append(Knee(level=each.level, answered_per_s=rate, latency_ms=mean))
    return found


def knee_of(levels: Sequence[LevelResult]) -> Knee | None:
    """Return the knee; None with too few levels, or where power hardly falls up to the last one."""
    known = knee_candidates(levels)
    if len(known) < LEAST_FOR_A_KNEE:
        return None
    best = max(known, key=lambda knee: knee.power)
    return best if best.power > LEAST_BEND * known[-1].power else None
