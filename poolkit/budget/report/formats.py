"""The budget as JSON, Markdown, GitHub annotations and SARIF 2.1.0."""

from __future__ import annotations

import dataclasses
import html
import os
import re
import unicodedata
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from poolkit.budget.answers import answer
from poolkit.budget.limits import useful_connections
from poolkit.budget.model import Quantity, SourceLocation
from poolkit.budget.report.rows import (
    LONG,
    headline,
    overload_text,
    sections,
    summary,
    unknown,
    ways_out,
)
from poolkit.budget.suggestions import suggestions
from poolkit.masking import printable
from poolkit.thresholds.outputs import MOST_ANNOTATIONS, workflow_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.report.rows import Row, Section
    from poolkit.budget.verdict import Budget, Budgets

VERSION = 2
"""The version of the JSON; it changes if a key is removed or changes its meaning."""
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_INTERNAL = {"each", "resource", "resources", "hosts", "leads_to", "server_hosts", "login"}

Level: TypeAlias = Literal["error", "warning", "note"]


# -- JSON -----------------------------------------------------------------------------------


def as_json(budgets: Budgets, *, status: int) -> dict[str, Any]:
    """Return what `--json` prints; docs/budget.md describes every key."""
    found: dict[str, Any] = {"version": VERSION, "exit_status": status}
    found |= {"verdict": budgets.verdict, "headline": summary(budgets), **_plain(budgets)}
    return {**found, "databases": [_of_database(budget) for budget in budgets.each]}


def _of_database(budget: Budget) -> dict[str, Any]:
    limit, numbers = budget.max_connections, ("available", "needed", "known")
    services = [
        {**_plain(each), "formula": each.formula, "running": each.steady, "ceiling": each.ceiling}
        for each in budget.services
    ]
    poolers = [
        {**_plain(each), "formula": each.formula(limit), "client_limit": each.client_limit()}
        | {"running": each.ceiling(limit, is_deployed=False), "ceiling": each.ceiling(limit)}
        for each in budget.poolers
    ]
    gaps = [
        {**_plain(gap), "answer": how.flag(gap.of) or None, "entry": how.entry(gap.of) or None}
        for gap in budget.gaps
        for how in (answer(budget, gap.of),)
    ]
    return {
        **_plain(budget.database),
        **{name: getattr(budget, name) for name in (*numbers, "migrations", "operators")},
        "verdict": budget.verdict,
        "headline": headline(budget),
        "bounds": budget.database.bounds,
        "useful": useful_connections(budget.database),
        "services": services,
        "poolers": poolers,
        "unknown": gaps,
        "suggestions": _plain(suggestions(budget)),
    }


def _plain(value: Any) -> Any:
    """Return a value of the model as JSON has it; a place is a text, and an empty text is null."""
    if isinstance(value, SourceLocation):
        return str(value)
    if isinstance(value, Quantity):
        return {"value": value.value, "origin": value.reason or value.origin}
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name not in _INTERNAL]
        return {name: _plain(getattr(value, name)) for name in names}
    if hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if value == "" else value


# -- Markdown -------------------------------------------------------------------------------


def as_markdown(budgets: Budgets) -> str:
    """Return a comment for a pull request: the verdict first, long lists folded."""
    title = f" ({_escaped(budgets.environment)})" if budgets.environment else ""
    *parts, verdict = sections(budgets)
    lines = [f"### Connection budget{title}", "", f"**{_escaped(verdict.title)}**"]
    lines += _lines(verdict)
    for part in parts:
        # The verdict on everything stands above.
        if not part.is_empty and part.title != verdict.title:
            mark = "#### {}" if part.verdict is None else "**{}**"
            lines += ["", mark.format(_escaped(part.title))] if part.title else []
            lines += _folded(_table(part.table)) if part.table else []
            lines += _lines(part)
            for group in part.groups:
                lines += ["", f"{_escaped(group.sentence)}  "]
                lines += [_escaped(f"Answer: {group.answer}")] if group.answer else []
                names = ("  ".join(filter(None, entry)) for entry in group.entries)
                lines += _folded([f"- {_escaped(name)}" for name in names])
    return "\n".join(lines) + "\n"


def _lines(section: Section) -> list[str]:
    """Return the lines of a section as a list; a line before a list of suggestions is none."""
    heads = [text for text in section.lines if section.verdict and not text.startswith("- ")]
    items = [text.removeprefix("- ") for text in section.lines if text not in heads]
    shown = [line for text in heads for line in ("", _escaped(text))]
    return shown + (_folded([f"- {_escaped(text)}" for text in items]) if items else [])


def _table(rows: tuple[Row, ...]) -> list[str]:
    """Return the lines of a table; the last row is the sum."""
    lines = ["| service | kind | instances x processes x pool | running | deploying |"]
    lines.append("|---|---|---|---:|---:|")
    for row in rows:
        name = ("" if row.is_counted else "↳ ") + _escaped(row.name)
        cells = [name, *map(_escaped, row[1:3]), row.steady, row.ceiling]
        if row is rows[-1]:
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _folded(lines: list[str]) -> list[str]:
    """Return lines after an empty one, or behind a click if they are many."""
    if len(lines) <= LONG:
        return ["", *lines]
    return ["", f"<details><summary>{len(lines)} lines</summary>", "", *lines, "", "</details>"]


def _escaped(text: str) -> str:
    """Return a text that is a text in Markdown: no markup, no HTML, no line of its own.

    Characters that are invisible or change the direction of writing become question marks. A space
    without width keeps GitHub from sending a mention, and from linking an issue or a URL.
    """
    text = printable(text, one_line=True)
    text = "".join("?" if unicodedata.category(each) == "Cf" else each for each in text)
    text = re.sub(r"([\\`*_{}\[\]|~#$!])", r"\\\1", html.escape(text, quote=False))
    text = re.sub(r"^(\d+(?=[.)])|(?=[-+=]))", r"\1\\", text)
    links = r"(@|#(?=\d)|\bGH(?=-\d)|(?<=[A-Za-z]):(?=//)|:(?=[a-z_]+:)|\bwww(?=\.))"
    return re.sub(links, "\\1\u200b", text)


# -- annotations and SARIF ------------------------------------------------------------------


class Finding(NamedTuple):
    """One message about one line."""

    rule: str
    level: Level
    text: str
    where: SourceLocation | None


RULES = {
    "does-not-fit": "The connection ceiling of the deployment is more than the database allows.",
    "too-many-clients": "A pooler would get more clients than it accepts.",
    "nothing-to-count": "No service in the files connects to the database, as far as they show.",
    "above-ceiling": "More connections were measured than the files allow.",
    "unknown-number": "A number of the connection ceiling is unknown.",
    "fits": "The connection ceiling of the deployment is within what the database allows.",
}


def findings(budgets: Budgets) -> Iterator[Finding]:
    """Return the verdicts, at the line of the largest service, and every unknown number."""
    for budget in budgets.each:
        text, where = headline(budget), budget.database.where
        if budget.is_over:
            largest = max(budget.direct, key=lambda service: service.ceiling or 0, default=None)
            text = " ".join([text, *ways_out(budget)[:4]])
            yield Finding("does-not-fit", "error", text, largest.where if largest else where)
        for each in budget.overloads:
            yield Finding("too-many-clients", "error", overload_text(each), each.pooler.where)
        if budget.verdict == "nothing to count":
            yield Finding("nothing-to-count", "warning", text, where)
        elif budget.verdict == "fits":
            yield Finding("fits", "note", text, where)
    for check in budgets.checks:
        if not check.is_within:
            yield Finding("above-ceiling", "error", check.text, None)
    gaps = {
        gap: answer(budget, gap.of).flag(gap.of) for budget in budgets.each for gap in budget.gaps
    }
    for gap, how in gaps.items():
        text = f"{gap.of}: {gap.number.replace('_', ' ')} is unknown: {gap.reason}"
        text += f". Answer: {how}" if how else ""
        yield Finding("unknown-number", "warning", text, gap.where)
    for part in budgets.unread:
        yield Finding("unknown-number", "warning", part.reason, part.where)


def as_annotations(budgets: Budgets) -> str:
    """Return GitHub's workflow commands (GitHub Docs, "Workflow commands", error and warning).

    GitHub shows ten warnings of a step. The tenth has all unknown numbers that are left.
    """
    found = list(findings(budgets))
    warnings = [each for each in found if each.rule == "unknown-number"][MOST_ANNOTATIONS - 1 :]
    if len(warnings) > 1:
        kinds = [
            f"{group.sentence}: {', '.join(name or at for name, at in group.entries)}"
            for group in unknown(budgets)
        ]
        text = "\n".join([f"{len(warnings)} more numbers are unknown. All of them:", *kinds])
        found = [each for each in found if each not in warnings]
        found.append(Finding("unknown-number", "warning", text, None))
    lines = []
    for each in found:
        name, place = each.level.replace("note", "notice"), {"title": "Connection budget"}
        if each.where is not None:
            place["file"] = _relative(each.where.file)
            place |= {"line": str(each.where.line)} if each.where.line is not None else {}
        lines.append(f"{workflow_command(name, each.text, **place)}\n")
    return "".join(lines)


def _relative(file: str) -> str:
    """Return a path within the working directory as the forge has it."""
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative.replace(os.sep, "/")


def as_sarif(budgets: Budgets, version: str) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log (OASIS, Static Analysis Results Interchange Format).

    Code scanning shows every result as an alert, so there is no result for what fits. It refuses
    results without a place: those get the place of another one.
    """
    from urllib.parse import quote  # noqa: PLC0415  (for SARIF only)

    rules = [{"id": each, "shortDescription": {"text": text}} for each, text in RULES.items()]
    driver = {"name": "poolkit budget", "version": version, "rules": rules}
    found = [each for each in findings(budgets) if each.level != "note"]
    anywhere = next((each.where for each in found if each.where), SourceLocation(".", 1))
    results = []
    for each in found:
        where = each.where or anywhere
        file = quote(_relative(where.file))
        uri = f"file://{file}" if file.startswith("/") else file
        place = {"artifactLocation": {"uri": uri}, "region": {"startLine": where.line or 1}}
        result = {"ruleId": each.rule, "ruleIndex": list(RULES).index(each.rule)}
        result |= {"level": each.level, "message": {"text": each.text}}
        results.append({**result, "locations": [{"physicalLocation": place}]})
    runs = [{"tool": {"driver": driver}, "results": results}]
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": runs}
