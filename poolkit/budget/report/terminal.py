"""The budget on a terminal; below 100 columns the formula stands under the name."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from poolkit.budget.report.rows import CLIENT, LONG, sections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from poolkit.budget.report.rows import Row
    from poolkit.budget.verdict import Budgets, Verdict

_WIDE, _ENTRY = 100, 4
_COLOURS: dict[Verdict | None, str] = {None: "", "fits": "green", "does not fit": "red"}


def print_budgets(budgets: Budgets, console: Console) -> None:
    """Print all sections; the verdict stands above a long output too."""
    *parts, verdict = sections(budgets)
    if sum(len(budget.services) for budget in budgets.each) > LONG:
        parts.insert(0, verdict._replace(groups=()))
    for section in (*parts, verdict):
        if section.title:
            _print(console, "", 0)
            _print(console, section.title, 0, f"bold {_COLOURS.get(section.verdict, 'yellow')}")
        if section.table:
            _print_table(console, section.table)
        for group in section.groups:
            _print(console, group.sentence)
            if group.answer:
                _print(console, f"Answer: {group.answer}")
            for file, entries in groupby(group.entries, lambda entry: entry[1].rpartition(":")[0]):
                _print_names(console, file, [*entries])


def _print_names(console: Console, file: str, entries: Sequence[tuple[str, str]]) -> None:
    """Print names and their places: one in a line, or several below the path of their file."""
    if file and len(entries) > 1:
        names = [f"{name} (line {where.removeprefix(f'{file}:')})" for name, where in entries]
        _print(console, file, 4)
        _print(console, ", ".join(names), 6)
        return
    for entry in entries:
        _print(console, "  ".join(filter(None, entry)), 4)


def _print_table(console: Console, rows: Sequence[Row]) -> None:
    is_wide, (*listed, (in_all, *_, total)) = console.width >= _WIDE, rows
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_footer=True)
    table.add_column("service", footer=in_all, overflow="fold")
    table.add_column("kind", overflow="fold")
    if is_wide:
        table.add_column("instances x processes x pool", overflow="fold")
    table.add_column("running", justify="right", no_wrap=True)
    table.add_column("deploying", footer=total, justify="right", no_wrap=True)
    for row in listed:
        cells = list(row)
        if not is_wide and (formula := cells.pop(2)):
            cells[0] += f"\n  {formula}"
        table.add_row(*map(Text, cells), style="dim" if row[0].startswith(CLIENT) else "")
    console.print(table)


def _print(console: Console, text: str, indent: int = 2, style: str = "") -> None:
    """Print a text in lines of the terminal's width; a longer word, such as a path, stays whole."""
    lines = textwrap.wrap(
        text,
        console.width,
        initial_indent=" " * indent,
        # The entries of a list hang.
        subsequent_indent=" " * (indent if indent < _ENTRY else indent + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
    # As text: brackets in a name are no markup.
    console.print(Text("\n".join(lines), style=style), soft_wrap=True)
