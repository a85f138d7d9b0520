"""The terminal: what AWS says is printed as it is, whole, and never read as markup."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def make_console() -> Console:
    """Return the console that commands print on.

    Text is data here: AWS's answers have brackets, which rich would take for a style, and names
    between colons, which it would take for pictures. Styles are given apart from the text.
    """
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def make_table(*headings: str) -> Table:
    """Return a table whose cells go on in the next line instead of being cut off."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table within the terminal's width."""
    console.print(table, soft_wrap=False)
