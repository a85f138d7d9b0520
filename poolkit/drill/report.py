"""The results of a drill for people and scripts: terminal, Markdown, JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from poolkit.drill.ground import BARE_NAME
from poolkit.thresholds import takes_marks

if TYPE_CHECKING:
    from rich.console import Console

    from poolkit.drill.figures import Outcome
    from poolkit.drill.run import FaultResult, Results

SCHEMA = 1
_HEAD = ("sent", "failed", "first", "back", "longest", "lost", "twice", "leaked", "with")
_IN_TERMINAL = {"sent": 5, "failed": 7, "back": 6, "longest": 8, "lost": 5, "twice": 6, "leaked": 7}
"""The columns that a terminal of 80 columns has room for, and their widths."""
_NAME_WIDTH = 12
_KINDS_WIDTH = 20


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A rule that does not hold for one target under one fault."""

    fault: str
    target: str
    rule: str
    text: str


def broken_rules(results: Results) -> list[Broken]:
    """Return the rules that do not hold. The bare application is there to compare with: it has none."""
    limit = results.options.recovery_limit_s
    found = []
    for result in results.faults:
        for one in result.outcomes:
            if one.target == BARE_NAME:
                continue
            checks = (
                ("lost", bool(one.lost), f"acknowledged writes lost: {one.lost}"),
                ("doubled", bool(one.doubled), f"writes doubled: {one.doubled}"),
                ("leaked", bool(one.leaked), f"connections still in use: {one.leaked}"),
                ("500", bool(one.by.get("500")), f"answers with 500: {one.by.get('500')}"),
                (
                    "recovery",
                    one.back_s is None or one.back_s > limit,
                    f"back after {_seconds(one.back_s)}, wanted at most {limit:g} s",
                ),
            )
            found += [
                Broken(fault=result.times.fault, target=one.target, rule=rule, text=text)
                for rule, is_broken, text in checks
                if is_broken
            ]
        if result.times.error:
            found.append(
                Broken(fault=result.times.fault, target="", rule="fault", text=result.times.error)
            )
    return found


def print_results(results: Results, console: Console) -> None:
    """Print a table for each fault, and the verdict."""

    def line(text: str, style: str = "") -> None:
        console.print(text, highlight=False, soft_wrap=True, style=style, markup=False)

    head = "".join(f"{name:>{width}}" for name, width in _IN_TERMINAL.items())
    for result in results.faults:
        line("")
        line(f"{result.times.fault} ({_length(result)})", "bold")
        line(f"  {'':<{_NAME_WIDTH}}{head}  with", "dim")
        for one in result.outcomes:
            cells = _cells(one)
            row = "".join(f"{cells[name]:>{width}}" for name, width in _IN_TERMINAL.items())
            line(f"  {one.target:<{_NAME_WIDTH}.{_NAME_WIDTH}}{row}  {_kinds(one, _KINDS_WIDTH)}")
    line("")
    for name, reason in results.not_run.items():
        line(f"{name} was not run: {reason}")
    marks = ("✓", "✗") if takes_marks(console.encoding) else ("ok", "FAILED")
    broken = broken_rules(results)
    for each in broken:
        line(f"{marks[1]} {each.fault}, {each.target}: {each.text}")
    if results.faults and not broken:
        line(
            f"{marks[0]} no acknowledged write lost or doubled, no connection leaked, no 500, and "
            f"back within {results.options.recovery_limit_s:g} s"
        )


def markdown(results: Results) -> str:
    """Return the same as a Markdown document."""
    options, machine = results.options, results.machine
    software = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [
        "# Drill",
        "",
        (
            f"`{options.command}`, {results.seconds:.0f} s, on {machine.cores} cores of {machine.cpu}, "
            f"{machine.os}, Python {machine.python}, {software}."
        ),
        *(["", f"Distance to the database: {machine.distance}."] if machine.distance else []),
        "",
        (
            f"{options.rate:g} requests/s of each target. All times are in seconds; `first` and `back` "
            "count from the end of the fault."
        ),
        "",
        "Failed requests, and the recovery:",
        "",
        f"| fault | {' | '.join(results.targets)} |",
        f"|---|{'---|' * len(results.targets)}",
        *(_summary(result) for result in results.faults),
        "",
        f"| fault | target | {' | '.join(_HEAD)} |",
        f"|---|---|{'--:|' * (len(_HEAD) - 1)}---|",
    ]
    for result in results.faults:
        for one in result.outcomes:
            cells = " | ".join(_cells(one).values())
            lines.append(f"| {result.times.fault} | {one.target} | {cells} |")
    lines.append("")
    lines += [f"- {name} was not run: {reason}" for name, reason in results.not_run.items()]
    lines += [f"- **{each.fault}, {each.target}: {each.text}**" for each in broken_rules(results)]
    return "\n".join(lines).rstrip() + "\n"


def document(results: Results) -> dict[str, Any]:
    """Return the results for JSON. docs/drill.md describes the fields."""
    options = results.options
    return {
        "schema": SCHEMA,
        "command": options.command,
        "rate": options.rate,
        "seconds": options.seconds,
        "recovery_limit_s": options.recovery_limit_s,
        "took_s": round(results.seconds, 1),
        "machine": asdict(results.machine),
        "targets": results.targets,
        "faults": [
            {
                **asdict(result.times),
                "outcomes": [asdict(one) for one in result.outcomes],
            }
            for result in results.faults
        ],
        "not_run": results.not_run,
        "broken": [asdict(each) for each in broken_rules(results)],
    }


def as_json(results: Results) -> str:
    """Return the document as text."""
    return json.dumps(document(results), indent=1) + "\n"


def _summary(result: FaultResult) -> str:
    """Return the row of a fault with a cell for each target."""
    cells = [
        f"{one.failed}, {'**never**' if one.back_s is None else f'{one.back_s:.1f} s'}"
        for one in result.outcomes
    ]
    return f"| `{result.times.fault}` | {' | '.join(cells)} |"


def _cells(one: Outcome) -> dict[str, str]:
    """Return the texts of a row by column."""
    counts = (one.lost, one.doubled, one.leaked)
    texts = (
        *(str(one.sent), str(one.failed)),
        *(_seconds(one.first_ok_s), _seconds(one.back_s), _seconds(one.longest_s)),
        *("?" if number is None else str(number) for number in counts),
        _kinds(one),
    )
    return dict(zip(_HEAD, texts, strict=True))


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f}"


def _kinds(one: Outcome, width: int = 1_000) -> str:
    """Return the kinds of failures, the most frequent first, as far as there is room."""
    text = ""
    for kind, number in one.by.items():
        longer = f"{text}{', ' if text else ''}{kind} {number}"
        if len(longer) > width:
            return f"{text[: width - 1]}…"
        text = longer
    return text


def _length(result: FaultResult) -> str:
    return f"{result.times.ended - result.times.began:.1f} s"
