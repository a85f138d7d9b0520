"""Two runs side by side: what changed, what is only noise, and what forbids comparing."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from rich.text import Text

from poolkit.compare.chart_overview import overview
from poolkit.compare.findings import is_tie
from poolkit.compare.load_words import load_words
from poolkit.compare.markup import document, embedded
from poolkit.compare.terminal import WARN, indented, new_table
from poolkit.compare.wording import NOTHING, figure, join, optional
from poolkit.errors import RunFolderError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

    from poolkit.compare.results import Results
    from poolkit.compare.target_result import Latency, TargetResult


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs, what they are called, and what makes a comparison between them weaker."""

    first: Results
    second: Results
    names: tuple[str, str]
    cautions: tuple[str, ...]

    def targets(self) -> Iterator[tuple[TargetResult, TargetResult]]:
        """Give the targets that both runs have."""
        others = {target.name: target for target in self.second.targets}
        for target in self.first.targets:
            if target.name in others:
                yield target, others[target.name]


def compare_runs(first: Results, second: Results, names: tuple[str, str]) -> Pair:
    """Return the two as a pair.

    Raises:
        RunFolderError: they have no target in common.
    """
    ours, theirs = ([t.name for t in run.targets] for run in (first, second))
    if not set(ours) & set(theirs):
        raise RunFolderError(
            f"the runs have no target in common: {names[0]} has {join(ours)}, "
            f"{names[1]} has {join(theirs)}"
        )
    cautions = (*_load_cautions(first, second), *_machine_cautions(first, second))
    lonely = sorted(set(ours) ^ set(theirs))
    only = [f"only one of the runs has {join(lonely)}"] if lonely else []
    return Pair(first=first, second=second, names=names, cautions=(*cautions, *only))


_LEVEL = {"users": "users", "rate_per_user": "tasks per user and second"}
_LOAD = {
    "environment": "presets of",
    "duration_s": "seconds measured",
    "warm_up_s": "seconds of warm-up",
    "max_connections": "max_connections",
}


def _load_cautions(first: Results, second: Results) -> Iterator[str]:
    ours, theirs = first.plan.levels[0], second.plan.levels[0]
    compared = [
        *((words, getattr(ours, field), getattr(theirs, field)) for field, words in _LEVEL.items()),
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
        *_latencies(a.latency_ms, b.latency_ms, "p50"),
        *_latencies(a.latency_ms, b.latency_ms, "p95"),
        f"{a.errors:,}",
        f"{b.errors:,}",
    ]


def _latencies(a: Latency | None, b: Latency | None, name: str) -> list[str]:
    values = [figure(getattr(x, name)) if x else NOTHING for x in (a, b)]
    return [*values, _ratio(a, b, name) if a and b else NOTHING]


def _ratio(a: Latency, b: Latency, name: str) -> str:
    """Return second to first; a tie is one, whatever the quotient."""
    first, second = getattr(a, name), getattr(b, name)
    if is_tie(first, second, getattr(a, f"{name}_interval"), getattr(b, f"{name}_interval")):
        return "tie"
    return f"x{figure(second / first)}" if first else NOTHING


def print_pair(pair: Pair, console: Console) -> None:
    """Print the table of both runs; in each pair of columns the first run is on the left."""
    console.print(Text(f"A {pair.names[0]}\nB {pair.names[1]}"))
    for caution in pair.cautions:
        console.print(indented(f"Note: {caution}.", style=WARN))
    table = new_table(("target", "opened/1k", "peak", "p50 ms", "B/A", "p95 ms", "B/A", "failed"))
    for a, b in pair.targets():
        table.add_row(Text(a.name, style="bold"), *(Text(cell) for cell in _joined(_row(a, b))))
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
    for letter, run, other in (("A", pair.first, pair.second), ("B", pair.second, pair.first)):
        picture = overview(run, beside=other)
        yield embedded(picture, f"Run {letter}: {picture.title.lower()}")
    yield "</section>"


def _pair_table(pair: Pair) -> Iterable[str]:
    yield '<section><h2>Figures</h2><div class="scroll" tabindex="0"><table>'
    yield (
        "<caption>B to A. A tie: the 95 % intervals overlap, or the difference is under 10 %; "
        "two runs on a shared machine may differ by more than that for no reason.</caption>"
    )
    groups = {"opened per 1,000": 2, "peak": 2, "p50, ms": 3, "p95, ms": 3, "failed": 2}
    heads = "".join(f'<th colspan="{n}" scope="colgroup">{g}</th>' for g, n in groups.items())
    letters = "".join(
        f'<th scope="col">{name}</th>' for n in groups.values() for name in ("A", "B", "B/A")[:n]
    )
    yield f'<thead><tr><th></th>{heads}</tr><tr><th scope="col">target</th>{letters}</tr></thead><tbody>'
    for a, b in pair.targets():
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in _row(a, b))
        yield f'<tr><th scope="row">{escape(a.name)}</th>{cells}</tr>'
    yield "</tbody></table></div></section>"
