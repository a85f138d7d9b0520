"""Several loads and the thresholds on a terminal of 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from poolkit.compare.report.level_page import peak_of
from poolkit.compare.results.wording import (
    NOTHING,
    count,
    figure_with_range,
    join,
    percent,
    with_range,
)
from poolkit.thresholds import lines, unmet
from poolkit.thresholds.metrics import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, JustifyMethod

    from poolkit.compare.results.levels import LevelResult
    from poolkit.compare.results.results import Results
    from poolkit.thresholds import Threshold, Verdict

WARN = "yellow"
_HEADS = ("target", "load", "per s", "p95", "peak/of", "op/1k", "failed", "held")


def print_levels(results: Results, console: Console) -> None:
    """Print a line for every target and load; nothing where there was one, measured once."""
    if not results.has_levels and not results.has_repeats:
        return
    console.print(_table_within(results, console))
    if results.has_repeats:
        console.print(
            Text(
                "Medians, of peaks the highest; in brackets the lowest and the highest repeat. "
                "In the table below, each target's repeat with the median p95.\n",
                style="dim",
            )
        )


def _table_within(results: Results, console: Console) -> Table:
    """Return the table with ranges beside their medians, or under them where that is too wide."""
    table = _table(results, between=" ")
    room = console.options.update(width=10_000)
    fits = Measurement.get(console, room, table).maximum <= console.width
    return table if fits else _table(results, between="\n")


def _table(results: Results, *, between: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for number, heading in enumerate(_HEADS):
        justify: JustifyMethod = "left" if number < 2 else "right"
        # The name may fold, the figures may not: half a number is a wrong one.
        table.add_column(heading, justify=justify, no_wrap=number > 0, overflow="fold")
    for name, levels in results.levels.items():
        for number, each in enumerate(levels):
            row = [name if number == 0 else "", each.level.name, *_cells(each, between)]
            style = WARN if each.repeats and not each.held else ""
            table.add_row(*(Text(text) for text in row), style=style if each.repeats else "dim")
        table.add_section()
    return table


def _cells(each: LevelResult, between: str) -> list[str]:
    if not each.repeats:
        return [NOTHING] * 6
    errors = each.error_share
    return [
        figure_with_range(each.spread.get("http.rate"), between),
        with_range(each.spread.get("http.p95"), between),
        peak_of(each),
        figure_with_range(each.opened_per_1000_requests, between),
        percent(errors) if errors else "0",
        "✓" if each.held else "✗",
    ]


# -- thresholds -----------------------------------------------------------------------------


def print_thresholds(results: Results, console: Console) -> None:
    """Print a tick or a cross for every threshold and target; nothing without thresholds."""
    judged = [v for v in results.verdicts if v.status != "not applicable"]
    if not judged:
        return
    console.print(Text("thresholds", style="bold"))
    if not results.has_levels:
        for line in lines(judged):
            console.print(line)
        return
    for threshold in results.thresholds:
        for target in results.levels:
            at = [v for v in judged if v.threshold == threshold and v.target == target]
            if at:
                console.print(_line(threshold, target, at))
    if failed := len(unmet(judged)):
        console.print(Text(f"{failed:,} of {count(len(judged), 'check')} failed."))


def _line(threshold: Threshold, target: str, at: Sequence[Verdict]) -> Text:
    """Return one line for all loads: where it fails, or how near it came."""
    failed = unmet(at)
    if not failed:
        mark = Text("✓", style="bold green")
        return Text.assemble(mark, f" {target}: {threshold.expression} at every load{_nearest(at)}")
    mark = Text("✗", style="bold red")
    found = join([f"{verdict.figure} at {verdict.load}" for verdict in failed])
    return Text.assemble(
        mark, f" {target}: {threshold.metric} is {found}, wanted {threshold.wanted}"
    )


def _nearest(at: Sequence[Verdict]) -> str:
    values = [verdict.value for verdict in at if verdict.value is not None]
    threshold = at[0].threshold
    if not values or threshold.operator == "==":
        return ""
    is_upper = threshold.operator in ("<", "<=")
    worst = max(values) if is_upper else min(values)
    value = shown(worst, threshold.measure, beside=threshold.limit)
    return f" ({'at most' if is_upper else 'at least'} {value})"
