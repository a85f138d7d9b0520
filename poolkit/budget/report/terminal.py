"""The budget on a terminal; below 100 columns the formula stands under the name."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from poolkit.budget.report.rows import (
    database_lines,
    figure,
    headline,
    origins,
    rows,
    tight_note,
    ways_out,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from poolkit.budget.verdict import Budget

_WIDE = 100
_COLOURS = {
    "fits": "green",
    "does not fit": "red",
    "cannot be shown to fit": "yellow",
    "nothing to count": "yellow",
}


def print_budget(budget: Budget, console: Console) -> None:
    """Print the table, the sources of its numbers, what is unknown, the verdict and ways out."""
    is_wide = console.width >= _WIDE
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_footer=True)
    table.add_column("service", footer="in all", overflow="fold")
    table.add_column("kind", overflow="fold")
    if is_wide:
        table.add_column("instances x processes x pool", overflow="fold")
    listed = rows(budget)
    counted = [row for row in listed if row.is_counted]
    of = f"{_sum([row.ceiling for row in counted])} of {figure(budget.available)}"
    steady = _sum([row.steady for row in counted])
    table.add_column("running", footer=steady, justify="right", no_wrap=True)
    table.add_column("deploying", footer=of, justify="right", no_wrap=True)
    for row in listed:
        name = row.name if row.is_counted else f"  {row.name}"
        under = f"\n  {row.formula}" if row.formula and not is_wide else ""
        formula = [row.formula] if is_wide else []
        cells = [name + under, row.what, *formula, *row.figures]
        table.add_row(*map(Text, cells), style="" if row.is_counted else "dim")
    console.print(table)
    for line in database_lines(budget):
        _paragraph(console, line)
    _section(console, "Where the numbers come from", origins(budget))
    left_out = []
    for reason, found in groupby(budget.not_counted, key=lambda each: each.reason):
        # Names with the same reason share it; they have their own places, or share one too.
        places = {each.name: f" ({each.where})" if each.where else "" for each in found}
        shared = next(iter(places.values())) if len(set(places.values())) == 1 else ""
        names = "\n".join(name + ("" if shared else where) for name, where in places.items())
        left_out.append((names, [reason + shared]))
    _section(console, "Not counted", left_out)
    unknown = []
    for of, gaps in groupby(budget.gaps, key=lambda gap: gap.of):
        reasons = []
        for gap in gaps:
            place = f" ({gap.where})" if gap.where else ""
            reasons.append(f"{gap.number}: {gap.reason}{place}")
        unknown.append((of, reasons))
    unknown += [(str(each.where), [each.reason]) for each in budget.unread]
    _section(console, "Unknown", unknown)
    console.print(Text("\n" + headline(budget), style=f"bold {_COLOURS[budget.verdict]}"))
    if note := tight_note(budget):
        _paragraph(console, note)
    heading, ways = ways_out(budget)
    if heading:
        console.print(Text(f"{heading}:"))
    for text in ways:
        _paragraph(console, f"- {text}")


def _paragraph(console: Console, text: str, indent: int = 2) -> None:
    # As text: brackets in a name are no markup. A path stays whole if it fits.
    console.print(Padding(Text(text, overflow="fold"), (0, 0, 0, indent), expand=False))


def _section(console: Console, title: str, found: Iterable[tuple[str, list[str]]]) -> None:
    found = [(name, lines) for name, lines in found if lines]
    if not found:
        return
    console.print(Text("\n" + title, style="bold"))
    for name, lines in found:
        _paragraph(console, name)
        for line in lines:
            _paragraph(console, line, 4)


def _sum(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{'' if len(known) == len(values) else '≥ '}{sum(known):,}"
