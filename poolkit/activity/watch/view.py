"""The live view of `poolkit watch`: it fits 80 columns, and says the most important thing first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from poolkit.activity.by_target import STATES, total

if TYPE_CHECKING:
    from rich.console import RenderableType

    from poolkit.activity.by_target import Connected
    from poolkit.activity.server import IdleTransaction
    from poolkit.activity.watch.observation import Observation

NEAR = 0.8
"""The share of the usable connections from which on the bar warns."""
_HEADINGS = {"idle_in_transaction": "in tx"}
_LONG_S = 10.0


def view(seen: Observation) -> RenderableType:
    """Return what is shown of one observation."""
    parts: list[RenderableType] = [_title(seen), _bar(seen)]
    if seen.problem is not None:
        return Group(*parts, Text(), _problem(seen), Text(), _foot())
    return Group(*parts, Text(), _targets(seen), *_oldest(seen.oldest), Text(), _foot())


def _title(seen: Observation) -> Text:
    limits = seen.limits
    moment = time.strftime("%H:%M:%S", time.localtime(seen.time))
    text = Text.assemble(("Connections", "bold"), f"  PostgreSQL {limits.version}  {moment}")
    if seen.problem is None and seen.opened_per_s is not None:
        text.append(f"  {seen.opened_per_s:.1f} opened/s")
    return text


def _bar(seen: Observation) -> RenderableType:
    limits = seen.limits
    count = seen.on_server
    style = (
        "red" if count >= limits.usable else "yellow" if count >= NEAR * limits.usable else "green"
    )
    known = seen.problem is None
    line = Table.grid(padding=(0, 2))
    line.add_row(
        ProgressBar(
            total=limits.max_connections,
            completed=count if known else 0,
            width=30,
            complete_style=style,
            finished_style="red",
        ),
        Text(f"{count if known else '?'} of {limits.max_connections}", style="bold"),
        Text(f"{seen.share:.0%}, {limits.usable} usable" if known else "", style="dim"),
    )
    return line


def _targets(seen: Observation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("target", overflow="ellipsis", no_wrap=True, max_width=24)
    for heading in ("instances", *(_HEADINGS.get(state, state) for state in STATES), "all"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in seen.targets:
        table.add_row(Text(one.target, style="bold"), *_cells(one))
    if len(seen.targets) != 1:
        table.add_section()
        table.add_row(Text("together"), *_cells(total(seen.targets)))
    if seen.elsewhere:
        table.add_section()
        unknown = [Text("·", style="dim")] * (1 + len(STATES))
        table.add_row(Text("other databases"), *unknown, Text(f"{seen.elsewhere:,}"))
    return table


def _cells(one: Connected) -> list[Text]:
    counts = [one.instances, *(getattr(one, state) for state in STATES), one.total]
    return [Text(f"{count:,}" if count else "·", style="" if count else "dim") for count in counts]


def _oldest(found: IdleTransaction | None) -> list[Text]:
    if found is None:
        return [Text("Nobody is idle in a transaction.", style="dim")]
    style = "yellow" if found.idle_s >= _LONG_S else ""
    who = found.application_name or "(unnamed)"
    # What others wrote is shown, not obeyed: control characters are no part of it.
    query = " ".join("".join(c if c.isprintable() else " " for c in found.query).split())
    query_line = Text(f"  {query or '(no statement)'}", no_wrap=True, overflow="ellipsis")
    return [
        Text(
            f"Oldest idle in transaction: {who} (pid {found.pid}), idle {found.idle_s:.1f} s, "
            f"open {found.transaction_age_s:.1f} s",
            style=style,
        ),
        query_line,
    ]


def _problem(seen: Observation) -> Text:
    silent = f"No answer for {seen.silent_s:.0f} s; trying again."
    return Text(f"{seen.problem}\n{silent}", style="red")


def _foot() -> Text:
    return Text("q or Ctrl-C ends", style="dim")
