"""Two runs side by side: what changed, what is only noise, and what forbids comparing."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from rich.text import Text

from poolkit.compare.charts.overview import overview
from poolkit.compare.report.findings import tied
from poolkit.compare.report.load_words import load_words
from poolkit.compare.report.markup import document, embedded
from poolkit.compare.report.terminal import WARN, indented, new_table, room_for_figures
from poolkit.compare.results.wording import NOTHING, figure, join, optional
from poolkit.errors import RunFolderError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

    from poolkit.compare.results.results import Results
    from poolkit.compare.results.run_folder import Level
    from poolkit.compare.results.target_result import TargetResult


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs, what they are called, and what makes a comparison between them weaker."""

    first: Results
    second: Results
    names: tuple[str, str]
    levels: tuple[tuple[Level, Level], ...]
    """The loads that both have, as each has them, from the lowest."""
    cautions: tuple[str, ...]

    def targets(self) -> Iterator[tuple[str, TargetResult, TargetResult]]:
        """Give what both runs measured: a name for it, the first's figures, the second's."""
        sides = [(self.first.at(a), self.second.at(b)) for a, b in self.levels]
        for name in self.first.levels:
            for ours, theirs in sides:
                found = [
                    next((t for t in of.targets if t.name == name), None) for of in (ours, theirs)
                ]
                if found[0] is not None and found[1] is not None:
                    load = f", {ours.reference.name}" if self.has_levels else ""
                    yield name + load, found[0], found[1]

    @property
    def has_levels(self) -> bool:
        """True if one of the runs had more than one load."""
        return self.first.has_levels or self.second.has_levels

    @property
    def have_repeats(self) -> bool:
        """True if both runs measured everything more than once."""
        return self.first.has_repeats and self.second.has_repeats

    def at_one_load(self) -> tuple[Results, Results]:
        """Return both runs at the highest common load that all targets of both held."""
        held = [
            (ours, theirs)
            for ours, theirs in self.levels
            if ours.offered_per_s <= self.first.reference.offered_per_s
            and theirs.offered_per_s <= self.second.reference.offered_per_s
        ]
        ours, theirs = held[-1] if held else self.levels[0]
        return self.first.at(ours), self.second.at(theirs)


def compare_runs(first: Results, second: Results, names: tuple[str, str]) -> Pair:
    """Return the two as a pair.

    Raises:
        RunFolderError: they have no target or no load in common.
    """
    ours, theirs = (list(run.levels) for run in (first, second))
    if not set(ours) & set(theirs):
        raise RunFolderError(
            f"the runs have no target in common: {names[0]} has {join(ours)}, "
            f"{names[1]} has {join(theirs)}"
        )
    cautions = (*_load_cautions(first, second), *_machine_cautions(first, second))
    levels, only_one_has = _common_levels(first, second, names)
    lonely = [*sorted(set(ours) ^ set(theirs)), *only_one_has]
    only = [f"only one of the runs has {join(lonely)}"] if lonely else []
    return Pair(first=first, second=second, names=names, levels=levels, cautions=(*cautions, *only))


def _common_levels(
    first: Results, second: Results, names: tuple[str, str]
) -> tuple[tuple[tuple[Level, Level], ...], list[str]]:
    """Return the loads that both have, and the names of the others.

    Two runs with one load each are compared at whatever that was; a caution says so.
    """
    ours, theirs = ({_load(level): level for level in r.plan.levels} for r in (first, second))
    if len(ours) == len(theirs) == 1:
        return ((first.plan.levels[0], second.plan.levels[0]),), []
    common = tuple((level, theirs[load]) for load, level in ours.items() if load in theirs)
    if not common:
        have = [join([level.name for level in of.values()]) for of in (ours, theirs)]
        raise RunFolderError(
            f"the runs have no load in common: {names[0]} has {have[0]}, {names[1]} has {have[1]}"
        )
    lonely = [
        level for load, level in {**ours, **theirs}.items() if not (load in ours and load in theirs)
    ]
    return common, [level.name for level in sorted(lonely, key=lambda each: each.offered_per_s)]


def _load(level: Level) -> tuple[float | None, float | None, float | None]:
    """Return what makes two loads the same; how many users stand ready is not part of it."""
    return (level.arrival_rate, None if level.is_open else level.users, level.rate_per_user)


_LEVEL = {
    "users": "users",
    "rate_per_user": "tasks per user and second",
    "arrival_rate": "tasks per second",
    "arrivals": "arrivals",
}
_LOAD = {
    "repeat": "measurements of each target",
    "environment": "presets of",
    "duration_s": "seconds measured",
    "warm_up_s": "seconds of warm-up",
    "max_connections": "max_connections",
}


def _load_cautions(first: Results, second: Results) -> Iterator[str]:
    ours, theirs = first.plan.levels[0], second.plan.levels[0]
    # Of several loads only those are compared that both have.
    level = ("arrivals",) if first.has_levels or second.has_levels else tuple(_LEVEL)
    compared = [
        *((_LEVEL[field], getattr(ours, field), getattr(theirs, field)) for field in level),
        *(
            (words, getattr(first.plan, field), getattr(second.plan, field))
            for field, words in _LOAD.items()
        ),
    ]
    for words, a, b in compared:
        if a != b:
            yield f"different load: {words} {a} and {b}"


def _machine_cautions(first: Results, second: Results) -> Iterator[str]:
    for field in ("cpu", "cores", "memory_gib", "os", "python"):
        a, b = getattr(first.machine, field), getattr(second.machine, field)
        if a != b:
            yield f"different machines: {field} {a} and {b}"
    ours, theirs = first.machine.versions, second.machine.versions
    for name in sorted(set(ours) | set(theirs)):
        a, b = ours.get(name, "none"), theirs.get(name, "none")
        if a != b:
            yield f"different versions: {name} {a} and {b}"


def _row(a: TargetResult, b: TargetResult) -> list[str]:
    opened = [t.connections.opened_per_1000_requests for t in (a, b)]
    peaks = [t.connections.peak for t in (a, b)]
    return [
        *(optional(value) for value in opened),
        *(optional(peak, 0) for peak in peaks),
        *_latencies(a, b, "p50"),
        *_latencies(a, b, "p95"),
        f"{a.errors:,}",
        f"{b.errors:,}",
    ]


def _latencies(a: TargetResult, b: TargetResult, name: Literal["p50", "p95"]) -> list[str]:
    """Return both, and second to first; a tie is one, whatever the quotient."""
    values = [getattr(t.latency_ms, name) if t.latency_ms else None for t in (a, b)]
    first, second = values
    ratio = NOTHING
    if first is not None and second is not None:
        ratio = "tie" if tied(a, b, name) else f"x{figure(second / first)}" if first else NOTHING
    return [*(optional(value) for value in values), ratio]


def print_pair(pair: Pair, console: Console) -> None:
    """Print the table of both runs; in each pair of columns the first run is on the left."""
    console.print(Text(f"A {pair.names[0]}\nB {pair.names[1]}"))
    for caution in pair.cautions:
        console.print(indented(f"Note: {caution}.", style=WARN))
    table = new_table(("target", "opened/1k", "peak", "p50 ms", "B/A", "p95 ms", "B/A", "failed"))
    for name, a, b in pair.targets():
        table.add_row(Text(name, style="bold"), *(Text(cell) for cell in _joined(_row(a, b))))
    with room_for_figures(console):
        console.print(table)


def _joined(row: list[str]) -> list[str]:
    """Let a pair share a column: 80 columns have no room for twelve."""
    opened, peak, p50, p95, failed = (f"{row[i]} → {row[i + 1]}" for i in (0, 2, 4, 7, 10))
    return [opened, peak, p50, row[6], p95, row[9], failed]


def two_run_page(pair: Pair) -> str:
    """Return the page of both runs."""
    return document("poolkit: two runs side by side", _page(pair))


def _page(pair: Pair) -> Iterable[str]:
    yield "<header><h1>Two runs side by side</h1>"
    for letter, name, run in zip("AB", pair.names, (pair.first, pair.second), strict=True):
        yield (
            f"<p><strong>{letter}</strong> <code>{escape(name)}</code>, {escape(run.plan.created)}. "
            f'<span class="soft">{escape(load_words(run.plan))}</span></p>'
        )
    yield "</header>"
    if pair.cautions:
        items = "".join(f"<li>{escape(caution)}</li>" for caution in pair.cautions)
        yield f'<section><h2>Before comparing</h2><ul class="warnings">{items}</ul></section>'
    yield from _pair_table(pair)
    yield "<section><h2>Charts</h2>"
    ours, theirs = pair.at_one_load()
    for letter, run, other in (("A", ours, theirs), ("B", theirs, ours)):
        picture = overview(run, beside=other)
        load = f" ({run.reference.name})" if pair.has_levels else ""
        yield embedded(picture, f"Run {letter}: {picture.title.lower()}{load}")
    yield "</section>"


def _pair_table(pair: Pair) -> Iterable[str]:
    yield '<section><h2>Figures</h2><div class="scroll" tabindex="0"><table>'
    tie = (
        "the repeats of both overlap, or differ no more than those of one"
        if pair.have_repeats
        else "the 95 % intervals overlap, or the difference is under 10 %"
    )
    yield (
        f"<caption>B to A. A tie: {tie}; "
        "two runs on a shared machine may differ by more than that for no reason.</caption>"
    )
    groups = {"opened per 1,000": 2, "peak": 2, "p50, ms": 3, "p95, ms": 3, "failed": 2}
    heads = "".join(f'<th colspan="{n}" scope="colgroup">{g}</th>' for g, n in groups.items())
    letters = "".join(
        f'<th scope="col">{name}</th>' for n in groups.values() for name in ("A", "B", "B/A")[:n]
    )
    yield f'<thead><tr><th></th>{heads}</tr><tr><th scope="col">target</th>{letters}</tr></thead><tbody>'
    for name, a, b in pair.targets():
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in _row(a, b))
        yield f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    yield "</tbody></table></div></section>"
