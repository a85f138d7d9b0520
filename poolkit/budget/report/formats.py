"""The budget as JSON, Markdown, GitHub annotations and SARIF 2.1.0."""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from poolkit.budget.answers import answer
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

    from poolkit.budget.report.rows import Group, Section
    from poolkit.budget.verdict import Budget, Budgets

VERSION = 2
"""The version of the JSON; it changes if a key is removed or changes its meaning."""
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_INTERNAL = {"resource", "resources", "hosts", "leads_to", "server_hosts", "login"}

Level: TypeAlias = Literal["error", "warning", "note"]


# -- JSON -----------------------------------------------------------------------------------


def as_json(budgets: Budgets, *, status: int) -> dict[str, Any]:
    """Return what `--json` prints; docs/budget.md describes every key."""
    return {
        "version": VERSION,
        "verdict": budgets.verdict,
        "exit_status": status,
        "headline": summary(budgets),
        "environment": budgets.environment or None,
        "databases": [_of_database(budget) for budget in budgets.each],
        "not_counted": _plain(budgets.not_counted),
        "unread": _plain(budgets.unread),
    }


def _of_database(budget: Budget) -> dict[str, Any]:
    limit = budget.max_connections
    return {
        **_plain(budget.database),
        "verdict": budget.verdict,
        "headline": headline(budget),
        "available": budget.available,
        "bounds": budget.database.bounds,
        "needed": budget.needed,
        "known": budget.known,
        "migrations": budget.migrations,
        "operators": budget.operators,
        "services": [
            {
                **_plain(each),
                "formula": each.formula,
                "running": each.steady,
                "ceiling": each.ceiling,
            }
            for each in budget.services
        ],
        "poolers": [
            {
                **_plain(each),
                "formula": each.formula(limit),
                "running": each.ceiling(limit, is_deployed=False),
                "ceiling": each.ceiling(limit),
                "client_limit": each.client_limit(),
            }
            for each in budget.poolers
        ],
        "unknown": [
            {**_plain(gap), "answer": how.flag or None, "entry": how.entry(gap.of) or None}
            for gap in budget.gaps
            for how in (answer(budget, gap.of),)
        ],
        "suggestions": _plain(suggestions(budget)),
    }


def _plain(value: Any) -> Any:
    """Return a value of the model as JSON has it; a place is a text, and an empty text is null."""
    if isinstance(value, SourceLocation):
        return str(value)
    if isinstance(value, Quantity):
        return {"value": value.value, "origin": value.origin or value.reason}
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name not in _INTERNAL]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        fields: dict[str, Any] | None = value._asdict() if hasattr(value, "_asdict") else None
        return [_plain(each) for each in value] if fields is None else fields
    return None if value == "" else value


# -- Markdown -------------------------------------------------------------------------------


def as_markdown(budgets: Budgets) -> str:
    """Return a comment for a pull request: the verdict first, long lists folded."""
    title = f" ({_escaped(budgets.environment)})" if budgets.environment else ""
    *parts, verdict = sections(budgets)
    lines = [f"### Connection budget{title}", "", f"**{_escaped(verdict.title)}**", ""]
    lines += _bullets(verdict.lines)
    for section in parts:
        if section.verdict is not None:
            lines += ["", f"**{_escaped(section.title)}**", ""] if section.lines else []
        elif section.title and (section.table or section.lines or section.groups):
            lines += ["", f"#### {_escaped(section.title)}", ""]
        lines += _body(section)
    return "\n".join(lines) + "\n"


def _body(section: Section) -> Iterator[str]:
    """Return the lines of a section; what is long is folded."""
    table = [
        "| service | kind | instances x processes x pool | running | deploying |",
        "|---|---|---|---:|---:|",
    ]
    for row in section.table:
        name = _escaped(row.name) if row.is_counted else f"↳ {_escaped(row.name)}"
        cells = [name, _escaped(row.what), _escaped(row.formula), row.steady, row.ceiling]
        table.append(f"| {' | '.join(cells)} |")
    if section.table:
        *table, last = table
        table.append(last.replace("in all", "**in all**"))
        yield from _folded(table, f"{len(section.table) - 1} rows")
    yield from _folded(_bullets(section.lines), f"{len(section.lines)} lines")
    for group in section.groups:
        yield from ["", *(f"{_escaped(text)}  " for text in group.sentences)]
        yield f"Answer: {_escaped(group.answer)}" if group.answer else ""
        names = [f"- {_escaped('  '.join(filter(None, entry)))}" for entry in group.entries]
        yield from _folded(names, f"{len(names)} names")


def _folded(lines: list[str], title: str) -> list[str]:
    """Return lines as they are, or behind a click if they are many."""
    if len(lines) <= LONG:
        return ["", *lines]
    return ["", f"<details><summary>{title}</summary>", "", *lines, "", "</details>"]


def _bullets(texts: tuple[str, ...]) -> list[str]:
    return [f"- {_escaped(text.removeprefix('- '))}" for text in texts]


def _escaped(text: str) -> str:
    """Return a text that is a text in Markdown: no markup, no HTML, no line of its own.

    Characters that are invisible or change the direction of writing become question marks. A space
    without width keeps GitHub from sending a mention, and from linking an issue or a URL.
    """
    text = printable(text, one_line=True)
    text = "".join("?" if unicodedata.category(each) == "Cf" else each for each in text)
    text = re.sub(r"([\\`*_{}\[\]<>|&~#$!])", r"\\\1", text)
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
    "unknown-number": "A number of the connection ceiling is unknown.",
    "fits": "The connection ceiling of the deployment is within what the database allows.",
}


def findings(budgets: Budgets) -> Iterator[Finding]:
    """Return the verdicts, at the line of the largest service, and every unknown number."""
    for budget in budgets.each:
        text, where = headline(budget), budget.database.where
        if budget.is_over:
            largest = max(budget.direct, key=lambda service: service.ceiling or 0, default=None)
            ways = " ".join(ways_out(budget))
            where = largest.where if largest else where
            yield Finding("does-not-fit", "error", f"{text} {ways}", where)
        for each in budget.overloads:
            yield Finding("too-many-clients", "error", overload_text(each), each.pooler.where)
        if budget.verdict == "nothing to count":
            yield Finding("nothing-to-count", "warning", text, where)
        elif budget.verdict == "fits":
            yield Finding("fits", "note", text, where)
    for budget in budgets.each:
        for gap in budget.gaps:
            how = answer(budget, gap.of).flag
            text = f"{gap.of}: {gap.number.replace('_', ' ')} is unknown: {gap.reason}"
            text = f"{text}. Answer: {how}" if how else text
            yield Finding("unknown-number", "warning", text, gap.where)
    for part in budgets.unread:
        yield Finding("unknown-number", "warning", part.reason, part.where)


def as_annotations(budgets: Budgets) -> str:
    """Return GitHub's workflow commands (GitHub Docs, "Workflow commands", error and warning).

    GitHub shows ten warnings of a step. The tenth has all unknown numbers that are left.
    """
    found = [each for each in findings(budgets) if each.rule != "unknown-number"]
    warnings = [each for each in findings(budgets) if each.rule == "unknown-number"]
    if len(warnings) > MOST_ANNOTATIONS:
        kinds = [_in_one_line(group) for group in unknown(budgets)]
        first = warnings[: MOST_ANNOTATIONS - 1]
        text = "\n".join([f"{len(warnings) - len(first)} more numbers are unknown.", *kinds])
        warnings = [*first, Finding("unknown-number", "warning", text, None)]
    names = {"error": "error", "warning": "warning", "note": "notice"}
    lines = []
    for each in (*found, *warnings):
        place = {"title": "Connection budget"}
        if each.where is not None:
            place["file"] = _relative(each.where.file)
            place |= {"line": str(each.where.line)} if each.where.line is not None else {}
        lines.append(f"{workflow_command(names[each.level], each.text, **place)}\n")
    return "".join(lines)


def _in_one_line(group: Group) -> str:
    names = ", ".join(name or where for name, where in group.entries)
    return f"{'; '.join(group.sentences)}: {names}"


def _relative(file: str) -> str:
    """Return a path within the working directory as the forge has it."""
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative.replace(os.sep, "/")


def as_sarif(budgets: Budgets, version: str) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log (OASIS, Static Analysis Results Interchange Format).

    Code scanning shows every result as an alert, so there is no result for what fits. It refuses
    results without a place: those get the place of another one.
    """
    from pathlib import Path  # noqa: PLC0415  (for SARIF only)
    from urllib.parse import quote  # noqa: PLC0415  (the same)

    rule_ids = list(RULES)
    rules = [{"id": each, "shortDescription": {"text": text}} for each, text in RULES.items()]
    driver = {"name": "poolkit budget", "version": version, "rules": rules}
    found = [each for each in findings(budgets) if each.level != "note"]
    places = [each.where for each in found] + [each.database.where for each in budgets.each]
    anywhere = next((where for where in places if where), SourceLocation(".", 1))
    results = []
    for each in found:
        where = each.where or anywhere
        file = _relative(where.file)
        uri = Path(file).as_uri() if Path(file).is_absolute() else quote(file)
        place = {"artifactLocation": {"uri": uri}, "region": {"startLine": where.line or 1}}
        results.append(
            {
                "ruleId": each.rule,
                "ruleIndex": rule_ids.index(each.rule),
                "level": each.level,
                "message": {"text": each.text},
                "locations": [{"physicalLocation": place}],
            }
        )
    return {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
