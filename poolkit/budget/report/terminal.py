"""The budget on a terminal; at 80 columns the formula goes under the name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from poolkit.budget.report.rows import database_lines, figure, headline, origins, rows, tight_note
from poolkit.budget.suggestions import suggestions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from poolkit.budget.report.rows import Row
    from poolkit.budget.verdict import Budget

WIDE = 100
_COLOURS = {"fits": "green", "does not fit": "red", "cannot be shown to fit": "yellow"}


def print_budget(budget: Budget, console: Console, *, origins_too: bool = True) -> None:
    """Print the table, what is unknown, where numbers come from, the verdict and ways out."""
    console.print(_table(budget, wide=console.width >= WIDE))
    for line in database_lines(budget):
        _paragraph(console, line)
    if origins_too:
        _sections(console, "Where the numbers come from", origins(budget))
    left_out = [(each.name, [f"{each.reason} ({each.where})"]) for each in budget.not_counted]
    _sections(console, "Not counted", left_out)
    unknown = [(gap.of, [_gap(gap.number, gap.reason, gap.where)]) for gap in budget.gaps]
    unknown += [(str(each.where), [each.reason]) for each in budget.unread]
    _sections(console, "Not known", unknown)
    console.print(Text("\n" + headline(budget), style=f"bold {_COLOURS[budget.verdict]}"))
    if note := tight_note(budget):
        _paragraph(console, note)
    found = suggestions(budget)
    if found:
        console.print(
            Text("It fits with one of these:" if len(found) > 1 else "It fits with this:")
        )
        for each in found:
            _paragraph(console, f"- {each.text}")


def _gap(number: str, reason: str, where: str) -> str:
    return f"{number.replace('_', ' ')}: {reason}" + (
        f" ({where})" if where not in ("", reason) and where not in reason else ""
    )


def _paragraph(console: Console, text: str, indent: int = 2) -> None:
    # As text: brackets in a name are no markup. A path stays whole where it can.
    console.print(Padding(Text(text, overflow="fold"), (0, 0, 0, indent), expand=False))


def _sections(console: Console, title: str, found: Iterable[tuple[str, list[str]]]) -> None:
    found = [(name, lines) for name, lines in found if lines]
    if not found:
        return
    console.print(Text("\n" + title, style="bold"))
    for name, lines in found:
        _paragraph(console, name)
        for line in lines:
            _paragraph(console, line, 4)


def _table(budget: Budget, *, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_footer=True)
    table.add_column("service", footer="in all", overflow="fold")
    table.add_column("kind", overflow="fold")
    if wide:
        table.add_column("instances x processes x pool", overflow="fold")
    at_least = "" if budget.needed is not None else "≥ "
    of = f"{at_least}{budget.known:,} of {figure(budget.available)}"
    steady = [row.steady for row in rows(budget) if row.counts]
    table.add_column("running", footer=_sum(steady), justify="right", no_wrap=True)
    table.add_column("deploying", footer=of, justify="right", no_wrap=True)
    for row in rows(budget):
        table.add_row(*_cells(row, wide=wide), style="" if row.counts else "dim")
    return table


def _sum(values: list[int | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{'' if len(known) == len(values) else '≥ '}{sum(known):,}"


def _cells(row: Row, *, wide: bool) -> list[Text]:
    name = row.name if row.counts else f"  {row.name}"
    numbers = [figure(row.steady), figure(row.ceiling)]
    if not row.counts:
        numbers = [f"({number})" for number in numbers]
    if wide:
        return [Text(name), Text(row.what), Text(row.formula), *map(Text, numbers)]
    under = f"\n  {row.formula}" if row.formula else ""
    return [Text(name + under), Text(row.what), *map(Text, numbers)]
