"""The budget as JSON, Markdown, GitHub annotations and SARIF 2.1.0."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from poolkit.budget.report.rows import (
    database_lines,
    figure,
    headline,
    overload_text,
    rows,
    tight_note,
    ways_out,
)
from poolkit.budget.suggestions import suggestions
from poolkit.masking import printable
from poolkit.thresholds.outputs import workflow_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.model import Quantity, SourceLocation
    from poolkit.budget.verdict import Budget

VERSION = 1
"""The version of the JSON; it changes if a key is removed or changes its meaning."""
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

Level: TypeAlias = Literal["error", "warning", "note"]


# -- JSON -----------------------------------------------------------------------------------


def as_json(budget: Budget, *, status: int) -> dict[str, Any]:
    """Return what `--json` prints; docs/budget.md describes every key."""
    database = budget.database
    gaps = [
        {"of": gap.of, "number": gap.number, "reason": gap.reason, "where": gap.where}
        for gap in budget.gaps
    ]
    unread = [
        {"of": None, "number": None, "reason": each.reason, "where": str(each.where)}
        for each in budget.unread
    ]
    return {
        "version": VERSION,
        "verdict": budget.verdict,
        "exit_status": status,
        "headline": headline(budget),
        "environment": budget.environment or None,
        "database": {
            "name": database.name,
            "kind": database.kind,
            "where": str(database.where or ""),
            "max_connections": _quantity(database.max_connections),
            "formula": database.formula,
            "lowest": database.lowest,
            "highest": database.highest,
            "carried": database.carried,
            "reserved": _quantity(database.reserved),
        },
        "available": budget.available,
        "needed": budget.needed,
        "known": budget.known,
        "services": [
            {
                "name": service.name,
                "platform": service.platform,
                "target": service.target or None,
                "where": str(service.where or ""),
                "through": service.through or None,
                **{name: _quantity(quantity) for name, quantity in service.numbers.items()},
                "overlap": {
                    "instances": service.overlap.more(service.instances.value),
                    "origin": service.overlap.origin or service.overlap.reason,
                },
                "formula": service.formula,
                "running": service.steady,
                "ceiling": service.ceiling,
            }
            for service in budget.services
        ],
        "poolers": [
            {
                "name": pooler.name,
                "kind": pooler.kind,
                "where": str(pooler.where or ""),
                "formula": pooler.formula(budget.max_connections),
                "ceiling": pooler.ceiling(budget.max_connections),
                "server_connections": _quantity(pooler.server_connections),
                "percent": _quantity(pooler.percent),
                "client_limit": pooler.client_limit(),
                "clients": [service.name for service in budget.clients_of(pooler.name)],
            }
            for pooler in budget.poolers
        ],
        "migrations": budget.migrations,
        "operators": budget.operators,
        "not_counted": [dataclasses.asdict(each) for each in budget.not_counted],
        "unknown": [*gaps, *unread],
        "suggestions": [
            {
                "kind": each.kind,
                "text": each.text,
                "changes": [change._asdict() for change in each.changes],
            }
            for each in suggestions(budget)
        ],
    }


def _quantity(quantity: Quantity | None) -> dict[str, Any] | None:
    if quantity is None:
        return None
    return {"value": quantity.value, "origin": quantity.origin or quantity.reason}


# -- Markdown -------------------------------------------------------------------------------


def as_markdown(budget: Budget) -> str:
    """Return a comment for a pull request."""
    title = f" ({budget.environment})" if budget.environment else ""
    lines = [
        f"### Connection budget{title}",
        "",
        f"**{_escaped(headline(budget))}**",
        "",
        "| service | kind | instances x processes x pool | running | deploying |",
        "|---|---|---|---:|---:|",
    ]
    for row in rows(budget):
        name = _escaped(row.name) if row.is_counted else f"↳ {_escaped(row.name)}"
        cells = [name, _escaped(row.what), _escaped(row.formula), *row.figures]
        lines.append(f"| {' | '.join(cells)} |")
    or_more = "" if budget.needed is not None else " or more"
    total = f"{budget.known:,}{or_more} of {figure(budget.available)}"
    lines += [f"| **in all** | | | | **{total}** |", ""]
    lines += [f"- {_escaped(line)}" for line in database_lines(budget)]
    unknown = [f"{gap.of}, {gap.number}: {gap.reason} ({gap.where})" for gap in budget.gaps]
    note, (way_heading, ways) = tight_note(budget), ways_out(budget)
    for heading, found in (
        ("Unknown", unknown),
        ("Not read", [f"{each.where}: {each.reason}" for each in budget.unread]),
        ("Not counted", [f"{each.name}: {each.reason}" for each in budget.not_counted]),
        ("Note", [note] if note else []),
        (way_heading or "Note", ways),
    ):
        if found:
            lines += ["", f"{heading}:", "", *(f"- {_escaped(line)}" for line in found)]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Return a text that is a text in Markdown: no markup, no HTML, no line of its own.

    A space without width keeps GitHub from sending a mention, and from linking an issue or a URL.
    """
    text = re.sub(r"([\\`*_{}\[\]<>|&~#$!])", r"\\\1", printable(text, one_line=True))
    return re.sub(r"(@|#(?=\d)|(?<=[A-Za-z]):(?=//)|\bwww(?=\.))", "\\1\u200b", text)


# -- annotations and SARIF ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Finding:
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


def findings(budget: Budget) -> Iterator[Finding]:
    """Return the verdict, at the line of the largest service, and every unknown number."""
    if budget.is_over:
        heading, ways = ways_out(budget)
        advice = f" {heading}: {'; or '.join(ways)}." if heading else ""
        largest = max(budget.direct, key=lambda service: service.ceiling or 0, default=None)
        where = largest.where if largest else budget.database.where
        text = headline(budget) + advice
        yield Finding(rule="does-not-fit", level="error", text=text, where=where)
    for each in budget.overloads:
        where = each.pooler.where
        yield Finding(rule="too-many-clients", level="error", text=overload_text(each), where=where)
    for gap in budget.gaps:
        text = f"{gap.of}: {gap.number} is unknown: {gap.reason}"
        yield Finding(rule="unknown-number", level="warning", text=text, where=gap.location)
    for part in budget.unread:
        yield Finding(rule="unknown-number", level="warning", text=part.reason, where=part.where)
    if budget.verdict == "nothing to count":
        text, where = headline(budget), budget.database.where
        yield Finding(rule="nothing-to-count", level="warning", text=text, where=where)
    if budget.verdict == "fits":
        yield Finding(rule="fits", level="note", text=headline(budget), where=budget.database.where)


def as_annotations(budget: Budget) -> str:
    """Return GitHub's workflow commands (GitHub Docs, "Workflow commands", error and warning)."""
    names = {"error": "error", "warning": "warning", "note": "notice"}
    lines = []
    for each in findings(budget):
        place = {"title": "Connection budget"}
        if each.where is not None:
            place["file"] = each.where.file
            if each.where.line is not None:
                place["line"] = str(each.where.line)
        lines.append(f"{workflow_command(names[each.level], each.text, **place)}\n")
    return "".join(lines)


def as_sarif(budget: Budget, version: str) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log (OASIS, Static Analysis Results Interchange Format)."""
    from urllib.parse import quote  # noqa: PLC0415  (for SARIF only)

    rule_ids = list(RULES)
    driver = {
        "name": "poolkit budget",
        "version": version,
        "rules": [{"id": each, "shortDescription": {"text": text}} for each, text in RULES.items()],
    }
    results = []
    for each in findings(budget):
        result: dict[str, Any] = {
            "ruleId": each.rule,
            "ruleIndex": rule_ids.index(each.rule),
            "level": each.level,
            "message": {"text": each.text},
        }
        if each.where is not None:
            file = Path(each.where.file)
            uri = file.as_uri() if file.is_absolute() else quote(file.as_posix())
            place: dict[str, Any] = {"artifactLocation": {"uri": uri}}
            if each.where.line is not None:
                place["region"] = {"startLine": each.where.line}
            result["locations"] = [{"physicalLocation": place}]
        results.append(result)
    return {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
