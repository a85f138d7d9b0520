"""The results of a drill for people and scripts: terminal, Markdown, JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from poolkit.drill.ground import BARE_NAME
from poolkit.thresholds import takes_marks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from poolkit.drill.figures import Outcome
    from poolkit.drill.run import FaultResult, Results

SCHEMA = 1
_HEAD = ("sent", "failed", "first", "back", "longest", "lost", "twice", "leaked", "with")
_WIDTHS = (6, 7, 7, 7, 8, 5, 6, 7)
_NAME_WIDTH = 12


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
                ("lost", bool(one.lost), f"{one.lost} acknowledged writes lost"),
                ("doubled", bool(one.doubled), f"{one.doubled} writes doubled"),
                ("leaked", bool(one.leaked), f"{one.leaked} connections still in use"),
                ("500", bool(one.by.get("500")), f"{one.by.get('500')} requests answered with 500"),
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

    widths = zip(_HEAD, (*_WIDTHS, 0), strict=True)
    head = "".join(f"{name:>{width}}" if width else f"  {name}" for name, width in widths)
    for result in results.faults:
        line("")
        line(f"{result.times.fault} ({_length(result)})", "bold")
        line(f"  {'':<{_NAME_WIDTH}}{head}", "dim")
        for one in result.outcomes:
            cells = "".join(
                f"{cell:>{width}}" for cell, width in zip(_cells(one), _WIDTHS, strict=True)
            )
            line(f"  {one.target:<{_NAME_WIDTH}}{cells}  {_kinds(one, 3)}")
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
        "",
        (
            f"{options.rate:g} requests/s of each target. All times are in seconds; `first` and `back` "
            "count from the end of the fault."
        ),
        "",
        f"| fault | target | {' | '.join(_HEAD)} |",
        f"|---|---|{'--:|' * len(_WIDTHS)}---|",
    ]
    for result in results.faults:
        for one in result.outcomes:
            cells = " | ".join((*_cells(one), _kinds(one, 9)))
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


def _cells(one: Outcome) -> Iterator[str]:
    yield str(one.sent)
    yield str(one.failed)
    yield _seconds(one.first_ok_s)
    yield _seconds(one.back_s)
    yield _seconds(one.longest_s)
    for number in (one.lost, one.doubled, one.leaked):
        yield "?" if number is None else str(number)


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f}"


def _kinds(one: Outcome, most: int) -> str:
    parts = [f"{kind} {number}" for kind, number in list(one.by.items())[:most]]
    return ", ".join([*parts, *(["restarted"] if one.restarted else [])])


def _length(result: FaultResult) -> str:
    return f"{result.times.ended - result.times.began:.1f} s"
