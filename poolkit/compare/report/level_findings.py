"""What several loads say about a target, in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.compare.results.levels import LEAST_FOR_A_KNEE, highest_held, those_that_tell
from poolkit.compare.results.wording import count, figure, join, milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.compare.results.levels import Knee, LevelResult
    from poolkit.compare.results.results import Results


def load_finding(name: str, results: Results) -> str:
    """Return how much a target held, what stopped it, and where its knee is.

    Empty for a run with one load that was measured once.
    """
    levels = results.levels[name]
    said: list[str] = []
    if results.has_levels:
        said = [*_held(levels, _within(name, results)), *_knee(levels, results.knees.get(name))]
    if results.has_repeats:
        at = next(each for each in levels if each.level == results.reference)
        said += _repeats(at)
    return " ".join(said)


def _within(name: str, results: Results) -> str:
    has_some = any(threshold.applies_to(name) for threshold in results.thresholds)
    return " within its thresholds" if has_some else ""


def _held(levels: Sequence[LevelResult], within: str) -> Iterator[str]:
    top = highest_held(levels)
    if top is None:
        yield f"Held none of the loads{within}: at {levels[0].level.name}, {levels[0].why_not}."
        return
    at = levels.index(top)
    more = levels[at + 1 :]
    if not more:
        yield f"Held the highest load, {_load(top)}{within}."
    else:
        yield f"Held {_load(top)}{within}; at {more[0].level.name}, {more[0].why_not}."
    if missed := [each for each in levels[:at] if not each.held]:
        names = join([each.level.name for each in missed])
        yield f"Yet it did not hold {names}: {missed[0].why_not}."


def _load(each: LevelResult) -> str:
    rate = each.spread.get("http.rate")
    return (
        f"{each.level.name} ({figure(rate.median)} answered a second)" if rate else each.level.name
    )


def _knee(levels: Sequence[LevelResult], knee: Knee | None) -> Iterator[str]:
    told = those_that_tell(levels)
    if knee is not None:
        below = "at or below" if knee.level == told[0].level else "at"
        yield (
            f"Its knee is {below} {knee.level.name}: {figure(knee.answered_per_s)} answered a "
            f"second in {milliseconds(knee.latency_ms)} on average; beyond it latency grows "
            "faster than throughput."
        )
    elif len(told) >= LEAST_FOR_A_KNEE:
        yield f"No knee up to {told[-1].level.name}: latency grew no faster than throughput."


def _repeats(at: LevelResult) -> Iterator[str]:
    p95 = at.spread.get("http.p95")
    if p95 is not None and len(at.repeats) > 1:
        yield (
            f"In {count(len(at.repeats), 'measurement')} at {at.level.name}, p95 was from "
            f"{milliseconds(p95.low)} to {milliseconds(p95.high)}."
        )


def load_headline(results: Results) -> str:
    """Return who held how much; empty for a run with one load."""
    if not results.has_levels:
        return ""
    holders: dict[str, list[str]] = {}
    for level in reversed(results.plan.levels):
        holders[level.name] = []
    nothing: list[str] = []
    for name, levels in results.levels.items():
        top = highest_held(levels)
        (nothing if top is None else holders[top.level.name]).append(name)
    said = [f"{level} by {join(names)}" for level, names in holders.items() if names]
    said += [f"none by {join(nothing)}"] if nothing else []
    within = " within the thresholds" if results.thresholds else ""
    return f"Highest load held{within}: {'; '.join(said)}."


def reference_words(results: Results) -> str:
    """Return which of several loads the figures of targets are from; empty if there is one."""
    if not results.has_levels:
        return ""
    at = [each for of in results.levels.values() for each in of if each.level == results.reference]
    if all(each.held for each in at):
        return f"At {results.reference.name}, the highest load that every target held"
    return f"At {results.reference.name}, the lowest load, since the targets held none together"
