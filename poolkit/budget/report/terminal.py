"""The budget on a terminal; below 100 columns the formula stands under the name."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from poolkit.budget.report.rows import sections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from poolkit.budget.report.rows import Row
    from poolkit.budget.verdict import Budgets, Verdict

_WIDE = 100
_COLOURS: dict[Verdict | None, str] = {None: "", "fits": "green", "does not fit": "red"}


def print_budgets(budgets: Budgets, console: Console) -> None:
    """Print all sections."""
    for section in sections(budgets):
        if section.is_empty:
            continue
        if section.title:
            style = f"bold {_COLOURS.get(section.verdict, 'yellow')}"
            _print(console, "", 0)
            _print(console, section.title, 0, style)
        if section.table:
            _print_table(console, section.table)
        for line in section.lines:
            _print(console, line)
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
        parts = [part for part in entry if part]
        line = "  ".join(parts)
        for part in [line] if len(line) + 4 <= console.width else parts:
            _print(console, part, 4)


def _print_table(console: Console, rows: Sequence[Row]) -> None:
    is_wide, (*listed, last) = console.width >= _WIDE, rows
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_footer=True)
    table.add_column("service", footer=last.name, overflow="fold")
    table.add_column("kind", overflow="fold")
    if is_wide:
        table.add_column("instances x processes x pool", overflow="fold")
    table.add_column("running", footer=last.steady, justify="right", no_wrap=True)
    table.add_column("deploying", footer=last.ceiling, justify="right", no_wrap=True)
    for row in listed:
        name = row.name if row.is_counted else f"  {row.name}"
        under = f"\n  {row.formula}" if row.formula and not is_wide else ""
        formula = [row.formula] if is_wide else []
        cells = [name + under, row.what, *formula, row.steady, row.ceiling]
        table.add_row(*map(Text, cells), style="" if row.is_counted else "dim")
    console.print(table)


def _print(console: Console, text: str, indent: int = 2, style: str = "") -> None:
    """Print a text in lines of the terminal's width; a longer word, such as a path, stays whole."""
    hanging = indent + 2 * text.startswith("- ")
    lines = textwrap.wrap(
        text, console.width - hanging, break_long_words=False, break_on_hyphens=False
    )
    # As text: brackets in a name are no markup.
    shown = textwrap.indent("\n".join(lines), " " * hanging)[hanging - indent :]
    console.print(Text(shown, style=style), soft_wrap=True)
