"""The report on a terminal: all columns if there is room for them, 80 otherwise, and never fewer."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from poolkit.compare.report.level_findings import reference_words
from poolkit.compare.report.level_terminal import print_levels, print_thresholds
from poolkit.compare.results.wording import figure, milliseconds, optional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console, JustifyMethod, RenderableType

    from poolkit.compare.results.results import Results
    from poolkit.compare.results.target_result import TargetResult

LEAST = 80
WARN = "yellow"

Column = tuple[str, "Callable[[TargetResult], str]"]


def print_run(results: Results, console: Console) -> None:
    """Print the table of a run, and under it what was found."""
    with room_for_figures(console):
        print_levels(results, console)
        if at := reference_words(results):
            console.print(Text(f"{at}:"))
        console.print(_table_within(results, console))
    for part in _sentences(results):
        console.print(part)
    print_thresholds(results, console)


@contextmanager
def room_for_figures(console: Console) -> Iterator[None]:
    """Give tables their 80 columns on a narrower terminal too: it folds lines and cuts nothing."""
    width = console.width
    console.width = max(width, LEAST)
    try:
        yield
    finally:
        console.width = width


def new_table(headings: Iterable[str]) -> Table:
    """Return an empty table: names at the left, figures at the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        left = number == 0
        # The name may fold, the figures may not: half a number is a wrong one.
        justify: JustifyMethod = "left" if left else "right"
        table.add_column(heading, justify=justify, no_wrap=not left, overflow="fold")
    return table


def _table_within(results: Results, console: Console) -> Table:
    """Return the table with all columns, or with fewer where a name would have to fold."""
    table = _table(results, wide=True)
    room = console.options.update(width=10_000)
    fits = Measurement.get(console, room, table).maximum <= console.width
    return table if fits else _table(results, wide=False)


def _table(results: Results, *, wide: bool) -> Table:
    columns = [c for c, in_narrow in _COLUMNS if wide or in_narrow]
    table = new_table(["target", *(name for name, _ in columns)])
    for target in results.targets:
        cells = [Text(cell(target)) for _, cell in columns]
        style = WARN if target.errors or target.saturated or target.partial else ""
        table.add_row(Text(target.name, style="bold"), *cells, style=style)
    return table


def _peak(target: TargetResult) -> str:
    peak, ceiling = target.connections.peak, target.connections.ceiling
    return optional(peak, 0) + (f"/{ceiling:,}" if ceiling else "")


def _latency(name: str) -> Callable[[TargetResult], str]:
    def cell(target: TargetResult) -> str:
        return (
            milliseconds(getattr(target.latency_ms, name)) if target.latency_ms else optional(None)
        )

    return cell


_COLUMNS: tuple[tuple[Column, bool], ...] = (
    (("requests", lambda t: f"{t.requests:,}"), True),
    (("failed", lambda t: f"{t.errors:,}"), True),
    (("per s", lambda t: figure(t.requests_per_s)), False),
    (("p50", _latency("p50")), True),
    (("p95", _latency("p95")), True),
    (("p99", _latency("p99")), True),
    (("opened", lambda t: optional(t.connections.opened, 0)), True),
    (("peak/of", _peak), True),
    (("idle s", lambda t: optional(t.connections.idle_seconds, 0)), False),
    (("cold", lambda t: optional(t.cold_starts, 0)), True),
    (("MB", lambda t: optional(t.rss_mb, 0)), False),
)


def _sentences(results: Results) -> Iterable[RenderableType]:
    if results.headline:
        yield Text(results.headline + "\n", style="bold")
    for target in results.targets:
        yield Text(target.name, style="bold")
        if target.load_finding:
            yield indented(target.load_finding)
        at = f"At {results.reference.name}: " if results.has_levels else ""
        yield indented(at + target.finding)
        for note in target.warnings:
            yield indented(f"Note: {note}.", style=WARN)
    for absent in results.absent:
        yield Text(absent.name, style="bold")
        yield indented(f"Not measured: {absent.reason}.", style="dim")


def indented(text: str, style: str = "") -> Padding:
    """Return a paragraph under a name; brackets in it mean nothing to rich."""
    return Padding(Text(text, style=style), (0, 0, 0, 2))
