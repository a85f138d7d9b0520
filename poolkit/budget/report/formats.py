"""The budget for machines and pull requests: JSON, Markdown, GitHub annotations, SARIF 2.1.0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from poolkit.budget.report.rows import database_lines, figure, headline, rows, tight_note
from poolkit.budget.suggestions import suggestions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.model import Service
    from poolkit.budget.quantity import Quantity
    from poolkit.budget.read.documents import SourceLocation
    from poolkit.budget.verdict import Budget

VERSION = 1
"""The version of the JSON; it changes when a key goes away or changes its meaning."""
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

Level: TypeAlias = Literal["error", "warning", "note"]


# -- JSON -----------------------------------------------------------------------------------


def as_json(budget: Budget, *, status: int) -> dict[str, Any]:
    """Return what `--json` prints; docs/budget.md describes every key."""
    return {
        "version": VERSION,
        "verdict": budget.verdict,
        "exit_status": status,
        "headline": headline(budget),
        "environment": budget.environment or None,
        "database": _database(budget),
        "available": budget.available,
        "needed": budget.needed,
        "known": budget.known,
        "services": [_service(service) for service in budget.services],
        "poolers": [_pooler(budget, number) for number in range(len(budget.poolers))],
        "migrations": budget.migrations,
        "operators": budget.operators,
        "not_counted": [
            {
                "name": each.name,
                "platform": each.platform,
                "where": each.where,
                "reason": each.reason,
            }
            for each in budget.not_counted
        ],
        "unknown": [
            *(
                {"of": g.of, "number": g.number, "reason": g.reason, "where": g.where}
                for g in budget.gaps
            ),
            *(
                {"of": None, "number": None, "reason": u.reason, "where": str(u.where)}
                for u in budget.unread
            ),
        ],
        "suggestions": [
            {
                "kind": each.kind,
                "text": each.text,
                "changes": [
                    {"of": of, "number": number, "value": value}
                    for of, number, value in each.changes
                ],
            }
            for each in suggestions(budget)
        ],
    }


def _quantity(quantity: Quantity | None) -> dict[str, Any] | None:
    if quantity is None:
        return None
    return {"value": quantity.value, "origin": quantity.origin or quantity.reason}


def _database(budget: Budget) -> dict[str, Any]:
    database = budget.database
    return {
        "name": database.name,
        "kind": database.kind,
        "where": str(database.where or ""),
        "max_connections": _quantity(database.max_connections),
        "formula": database.formula,
        "nominal": database.nominal,
        "carried": database.carried,
        "reserved": _quantity(database.reserved),
    }


def _service(service: Service) -> dict[str, Any]:
    return {
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


def _pooler(budget: Budget, number: int) -> dict[str, Any]:
    pooler = budget.poolers[number]
    return {
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


# -- Markdown -------------------------------------------------------------------------------


def as_markdown(budget: Budget) -> str:
    """Return a comment for a pull request."""
    title = f" ({budget.environment})" if budget.environment else ""
    lines = [f"### Connection budget{title}", "", f"**{_escaped(headline(budget))}**", ""]
    lines += [
        "| service | kind | instances x processes x pool | running | deploying |",
        "|---|---|---|---:|---:|",
    ]
    lines += [_markdown_row(budget, number) for number in range(len(list(rows(budget))))]
    total = f"{budget.known:,}{'' if budget.needed is not None else ' or more'} of {figure(budget.available)}"
    lines += [f"| **in all** | | | | **{total}** |", ""]
    lines += [f"- {_escaped(line)}" for line in database_lines(budget)]
    lines += _listed(
        "Not known", [f"{gap.of}, {gap.number}: {gap.reason} ({gap.where})" for gap in budget.gaps]
    )
    lines += _listed("Not read", [f"{each.where}: {each.reason}" for each in budget.unread])
    lines += _listed("Not counted", [f"{each.name}: {each.reason}" for each in budget.not_counted])
    ways = [tight_note(budget), *(each.text for each in suggestions(budget))]
    lines += _listed("It fits with one of these", [way for way in ways if way])
    return "\n".join(lines) + "\n"


def _markdown_row(budget: Budget, number: int) -> str:
    row = list(rows(budget))[number]
    name = _escaped(row.name) if row.counts else f"↳ {_escaped(row.name)}"
    numbers = [figure(row.steady), figure(row.ceiling)]
    if not row.counts:
        numbers = [f"({each})" for each in numbers]
    return (
        f"| {name} | {_escaped(row.what)} | {_escaped(row.formula)} | {numbers[0]} | {numbers[1]} |"
    )


def _listed(title: str, lines: list[str]) -> list[str]:
    return ["", f"{title}:", "", *(f"- {_escaped(line)}" for line in lines)] if lines else []


def _escaped(text: str) -> str:
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


# -- findings -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to say about one place."""

    rule: str
    level: Level
    text: str
    where: SourceLocation | None


RULES = {
    "does-not-fit": "The fleet's connection ceiling exceeds what the database takes.",
    "too-many-clients": "A pooler would get more clients than it takes.",
    "unknown-number": "A number that the ceiling needs cannot be determined.",
    "fits": "The fleet's connection ceiling is within what the database takes.",
}


def findings(budget: Budget) -> Iterator[Finding]:
    """Give what there is to say: the verdict, its largest part first, and every unknown number."""
    over = budget.available is not None and budget.known > budget.available
    if over:
        ways = [each.text for each in suggestions(budget)]
        advice = f" It fits with: {'; or '.join(ways)}." if ways else ""
        largest = max(budget.direct, key=lambda service: service.ceiling or 0, default=None)
        where = largest.where if largest else budget.database.where
        yield Finding(
            rule="does-not-fit", level="error", text=headline(budget) + advice, where=where
        )
    for crowd in budget.crowded:
        pooler = next(each for each in budget.poolers if each.name == crowd.pooler)
        text = f"{crowd.pooler} takes {crowd.limit:,} clients and would get {crowd.clients:,}."
        yield Finding(rule="too-many-clients", level="error", text=text, where=pooler.where)
    yield from _unknown(budget)
    if budget.verdict == "fits":
        yield Finding(rule="fits", level="note", text=headline(budget), where=budget.database.where)


def _unknown(budget: Budget) -> Iterator[Finding]:
    places = {service.name: service.where for service in budget.services}
    places |= {pooler.name: pooler.where for pooler in budget.poolers}
    places[budget.database.name] = budget.database.where
    for gap in budget.gaps:
        text = f"{gap.of}: {gap.number.replace('_', ' ')} is not known: {gap.reason}"
        yield Finding(rule="unknown-number", level="warning", text=text, where=places.get(gap.of))
    for each in budget.unread:
        yield Finding(rule="unknown-number", level="warning", text=each.reason, where=each.where)


def as_annotations(budget: Budget) -> str:
    """Return GitHub's workflow commands (GitHub Docs, "Workflow commands", error and warning)."""
    names = {"error": "error", "warning": "warning", "note": "notice"}
    return "".join(
        f"::{names[each.level]} {_place(each)}::{_data(each.text)}\n" for each in findings(budget)
    )


def _place(finding: Finding) -> str:
    parts = [f"title={_property('Connection budget')}"]
    if finding.where is not None:
        parts.append(f"file={_property(finding.where.file)}")
        if finding.where.line is not None:
            parts.append(f"line={finding.where.line}")
    return ",".join(parts)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def as_sarif(budget: Budget, version: str) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log (OASIS, Static Analysis Results Interchange Format)."""
    rule_ids = list(RULES)
    driver = {
        "name": "poolkit budget",
        "version": version,
        "rules": [{"id": each, "shortDescription": {"text": text}} for each, text in RULES.items()],
    }
    results = [_result(each, rule_ids.index(each.rule)) for each in findings(budget)]
    return {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


def _result(finding: Finding, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": finding.level,
        "message": {"text": finding.text},
    }
    if finding.where is not None:
        place: dict[str, Any] = {"artifactLocation": {"uri": _uri(finding.where.file)}}
        if finding.where.line is not None:
            place["region"] = {"startLine": finding.where.line}
        result["locations"] = [{"physicalLocation": place}]
    return result


def _uri(file: str) -> str:
    from pathlib import Path  # noqa: PLC0415  (for SARIF alone)
    from urllib.parse import quote  # noqa: PLC0415  (the same)

    path = Path(file)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())
