"""What a terminal shows of experiments."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table as Grid
from rich.text import Text

from poolkit.experiment.outcome import Status, Verdict, by_claim

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from poolkit.experiment.experiment import Experiment
    from poolkit.experiment.outcome import Judgement, Outcome, Table

_STYLES = {Verdict.TRUE: "green", Verdict.FALSE: "red", Verdict.DEPENDS: "yellow"}
_WIDTH = 78
_INDENT = "    "


def print_list(experiments: Iterable[Experiment], console: Console) -> None:
    """Print the experiments by chapter: name, duration, what each needs, question, rows."""
    chapter = ""
    for experiment in experiments:
        if experiment.chapter != chapter:
            chapter = experiment.chapter
            console.print(Text(f"\n{chapter.replace('_', ' ')}", "bold"))
        needs = f"; needs {', '.join(experiment.needs)}" if experiment.needs else ""
        console.print(f"  {experiment.name} ({experiment.seconds:.0f} s{needs})", soft_wrap=True)
        _paragraph(console, experiment.question)
        _paragraph(console, f"rows {' '.join(experiment.rows)}")


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Print what an experiment found: its tables, then a paragraph for each claim."""
    console.print(Text(f"\n{outcome.question}", "bold"))
    if outcome.status is not Status.DONE:
        console.print(f"{outcome.status}: {outcome.reason}", soft_wrap=True)
    for table in outcome.tables:
        _print_table(table, console)
    why = ""
    for same in by_claim(outcome.judgements):
        _print_judgements(same, console, known=why)
        why = same[0].why
    for note in outcome.notes:
        _paragraph(console, f"Note: {note}", indent="")


def print_brief(outcome: Outcome, console: Console) -> None:
    """Print an experiment in a line, and a line for each claim."""
    state = "" if outcome.status is Status.DONE else f": {outcome.status}, {outcome.reason}"
    console.print(f"{outcome.name} ({outcome.took_s:.1f} s){state}", soft_wrap=True)
    for judgement in outcome.judgements:
        line = Text(f"  {judgement.row:<5}")
        line.append(f"{judgement.verdict:<8}", _STYLES[judgement.verdict])
        line.append(textwrap.shorten(judgement.claim, _WIDTH - 15, placeholder=" …"))
        console.print(line)


def _print_table(table: Table, console: Console) -> None:
    grid = Grid(box=box.SIMPLE_HEAD)
    for number, column in enumerate(table.columns):
        grid.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in table.rows:
        grid.add_row(*row)
    console.print()
    _paragraph(console, table.title, indent="")
    console.print(grid)


def _print_judgements(same: list[Judgement], console: Console, known: str) -> None:
    """Print the judgement on a claim that several rows make; no explanation twice in a row."""
    judgement = same[0]
    console.print()
    head = Text(f"{', '.join(each.row for each in same)}  ")
    head.append(judgement.verdict, _STYLES[judgement.verdict])
    console.print(head, soft_wrap=True)
    if judgement.condition:
        _paragraph(console, f"It is {judgement.condition}.")
    _paragraph(console, f"Claim: {judgement.claim}")
    _paragraph(console, f"Measured: {judgement.measured}")
    if judgement.why != known:
        _paragraph(console, judgement.why)


def _paragraph(console: Console, text: str, *, indent: str = _INDENT) -> None:
    for line in textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent):
        console.print(line, soft_wrap=True)
