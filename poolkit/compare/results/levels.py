"""Several loads on one target: which of them it holds, where its knee is, what repeats agree on.

docs/results.md defines every word here.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.compare.results.target_result import LEAST_ANSWERED, Spread
from poolkit.compare.results.wording import percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from poolkit.compare.results.run_folder import Level, PlannedTarget
    from poolkit.compare.results.target_result import TargetResult
    from poolkit.thresholds import Verdict

MOST_ERRORS = 0.01
"""The share of failed requests at which a load still counts as held."""
HIGHEST = frozenset(
    {
        "http.max",
        "db.connections.max",
        "db.connections.share",
        "db.idle_in_transaction.max",
        "db.left_over",
    }
)
"""Figures that are about the worst moment: of several measurements the highest counts."""
LEAST_FOR_A_KNEE = 3
"""Levels: with fewer there is no bend to be seen."""
LEAST_BEND = 1.1
"""Times the power of the highest level: a smaller difference is none, as between latencies."""


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """One target at one level, measured once or several times."""

    level: Level
    repeats: tuple[TargetResult, ...]
    """In the order of measuring; none where it was left out."""
    spread: Mapping[str, Spread]
    """By the metrics' names; what is not known is not in it."""
    held: bool
    why_not: str = ""
    """What kept the target from holding it, or why it was not measured."""

    @property
    def middle(self) -> TargetResult | None:
        """The median repeat by p95, the slower one of two."""
        return middle_of(self.repeats)

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
        return _is_saturated(self.repeats)


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
        """Throughput for latency."""
        return self.answered_per_s / self.latency_ms


def without_meaning(target: PlannedTarget) -> frozenset[str]:
    """Return the names of figures that such a target does not have, measured or not."""
    # What somebody else keeps running has no end at which connections could be left.
    names = {"db.left_over"} if target.url is not None else set()
    return frozenset(names if target.kind == "lambda" else names | {"lambda.cold_starts"})


# -- repeats --------------------------------------------------------------------------------


def spread_of(repeats: Sequence[TargetResult]) -> Mapping[str, Spread]:
    """Return how far the repeats lie apart, for every figure that all of them know."""
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


def typical(spread: Mapping[str, Spread]) -> Mapping[str, float]:
    """Return the figure of several measurements: the median, or the highest of what is `HIGHEST`."""
    return {name: of.high if name in HIGHEST else of.median for name, of in spread.items()}


def middle_of(repeats: Sequence[TargetResult]) -> TargetResult | None:
    """Return the median repeat by p95, the slower one of two; none of no repeats."""

    def p95(repeat: TargetResult) -> float:
        return repeat.latency_ms.p95 if repeat.latency_ms else float("inf")

    return sorted(repeats, key=p95)[len(repeats) // 2] if repeats else None


def is_tie_of_repeats(a: Spread, b: Spread) -> bool:
    """Tell whether two figures differ by no more than their repeats do among themselves."""
    return a.overlaps(b) or abs(a.median - b.median) <= max(a.high - a.low, b.high - b.low)


# -- held or not ----------------------------------------------------------------------------


def level_result(
    level: Level, repeats: Sequence[TargetResult], verdicts: Sequence[Verdict]
) -> LevelResult:
    """Return what the repeats at one level come to, given the thresholds' verdicts on them."""
    spread = spread_of(repeats)
    why_not = _why_not(repeats, spread, verdicts)
    return LevelResult(
        level=level, repeats=tuple(repeats), spread=spread, held=not why_not, why_not=why_not
    )


def left_out(level: Level, reason: str) -> LevelResult:
    """Return the result of a level at which the target was never measured."""
    return LevelResult(level=level, repeats=(), spread={}, held=False, why_not=reason)


def _why_not(
    repeats: Sequence[TargetResult], spread: Mapping[str, Spread], verdicts: Sequence[Verdict]
) -> str:
    """Say what kept a load from being held; empty if nothing did.

    A threshold is not all: a target that answers half of its load fast has not held it.
    """
    aborted = next((repeat.aborted_by for repeat in repeats if repeat.aborted_by), "")
    if aborted:
        return f"ended early: {aborted}"
    failed = [
        f"{v.threshold.metric} {v.found}, wanted {v.threshold.wanted}" for v in verdicts if not v.ok
    ]
    if failed and any(repeat.warmed_up_too_short for repeat in repeats):
        failed.append("its warm-up was too short (--warm-up): requests of it were still waiting")
    if failed:
        return "; ".join(failed)
    if any(repeat.partial for repeat in repeats):
        return "it was stopped early"
    errors = spread["http.errors"].median if "http.errors" in spread else 0.0
    has_own_limit = any(verdict.threshold.metric == "http.errors" for verdict in verdicts)
    if errors > MOST_ERRORS and not has_own_limit:
        return f"{percent(errors)} of the requests failed"
    if _is_saturated(repeats):
        return next(repeat.saturated_by for repeat in repeats if repeat.saturated)
    return _too_few_answered(repeats)


def _is_saturated(repeats: Sequence[TargetResult]) -> bool:
    return bool(repeats) and sum(r.saturated for r in repeats) * 2 >= len(repeats)


def _too_few_answered(repeats: Sequence[TargetResult]) -> str:
    if not all(repeat.requests for repeat in repeats):
        return "nothing was due"
    # One more or less is a matter of where the window happens to begin.
    shares = [min(1.0, (repeat.served + 1) / repeat.requests) for repeat in repeats]
    share = statistics.median(shares)
    return "" if share >= LEAST_ANSWERED else f"only {percent(share)} of its load was answered"


def highest_held(levels: Iterable[LevelResult]) -> LevelResult | None:
    """Return the highest level that is held; the levels come from the lowest to the highest."""
    held = [each for each in levels if each.held]
    return held[-1] if held else None


def reference_level(
    levels: Sequence[Level], found: Mapping[str, Sequence[LevelResult]]
) -> Level | None:
    """Return the level at which targets are compared.

    It is the highest that all of them hold, or the lowest that any was measured at where
    they hold none together; None where nothing was measured.
    """
    at = {
        level: [each for of in found.values() for each in of if each.level == level]
        for level in levels
    }
    held = [level for level in levels if at[level] and all(each.held for each in at[level])]
    measured = [level for level in levels if any(each.repeats for each in at[level])]
    return held[-1] if held else next(iter(measured), None)


# -- the knee -------------------------------------------------------------------------------


def those_that_tell(levels: Sequence[LevelResult]) -> list[Knee]:
    """Return throughput and latency of each level at which both are known and the target's."""
    return [knee for each in levels if not each.is_saturated and (knee := _as_knee(each))]


def knee_of(levels: Sequence[LevelResult]) -> Knee | None:
    """Return the knee; none where too few levels tell, or power hardly falls up to the last one.

    A level at which the load generator was too slow tells nothing: its latency is not the
    target's.
    """
    known = those_that_tell(levels)
    if len(known) < LEAST_FOR_A_KNEE:
        return None
    best = max(known, key=lambda knee: knee.power)
    return best if best.power > LEAST_BEND * known[-1].power else None


def _as_knee(each: LevelResult) -> Knee | None:
    rate, mean = each.spread.get("http.rate"), each.spread.get("http.mean")
    if rate is None or mean is None or not mean.median or any(r.partial for r in each.repeats):
        return None
    return Knee(level=each.level, answered_per_s=rate.median, latency_ms=mean.median)
