"""The budget as JSON, Markdown, GitHub annotations and SARIF 2.1.0."""

from __future__ import annotations

import dataclasses
import html
import os
import re
import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.budget.limits import useful_connections
from poolkit.budget.model import Quantity, SourceLocation
from poolkit.budget.report import rows
from poolkit.budget.suggestions import suggestions
from poolkit.masking import printable
from poolkit.thresholds.outputs import MOST_ANNOTATIONS, workflow_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.verdict import Budget, Budgets

VERSION = 2
"""The version of the JSON; it changes if a key is removed or changes its meaning."""
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_INTERNAL = {"each", "resource", "resources", "hosts", "leads_to", "server_hosts", "login"}


# -- JSON -----------------------------------------------------------------------------------


def as_json(budgets: Budgets, *, status: int) -> dict[str, Any]:
    """Return what `--json` prints; docs/budget.md describes every key."""
    found: dict[str, Any] = {"version": VERSION, "exit_status": status}
    found |= {"verdict": budgets.verdict, "headline": rows.summary(budgets), **_plain(budgets)}
    return {**found, "databases": [_of_database(budget) for budget in budgets.each]}


def _of_database(budget: Budget) -> dict[str, Any]:
    names = ("verdict", "available", "needed", "known", "migrations", "operators")
    found = _plain(budget.database) | {name: getattr(budget, name) for name in names}
    found |= {"headline": rows.headline(budget), "bounds": budget.database.bounds}
    found["useful"] = useful_connections(budget.database)
    found["services"] = [
        {**_plain(each), "formula": each.formula, "running": each.steady, "ceiling": each.ceiling}
        for each in budget.services
    ]
    limit = budget.max_connections
    found["poolers"] = [
        {**_plain(each), "formula": each.formula(limit), "client_limit": each.client_limit()}
        | {"running": each.ceiling(limit, is_deployed=False), "ceiling": each.ceiling(limit)}
        for each in budget.poolers
    ]
    found["unknown"] = [
        {**_plain(gap), "answer": how.flag(gap.of) or None, "entry": how.entry(gap.of) or None}
        for gap in budget.gaps
        for how in (gap.answer,)
    ]
    return {**found, "suggestions": _plain(suggestions(budget))}


def _plain(value: Any) -> Any:
    """Return a value of the model as JSON has it; a place is a text, and an empty text is null."""
    if isinstance(value, SourceLocation):
        return str(value)
    if isinstance(value, Quantity):
        return {"value": value.value, "origin": value.reason or value.origin}
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name not in _INTERNAL]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        # A named one is an object.
        found = [_plain(each) for each in value]
        return dict(zip(value._fields, found, strict=True)) if hasattr(value, "_fields") else found
    return None if value == "" else value


# -- Markdown -------------------------------------------------------------------------------


def as_markdown(budgets: Budgets) -> str:
    """Return a comment for a pull request: the verdict first, long lists folded."""
    title = f" ({_escaped(budgets.environment)})" if budgets.environment else ""
    *parts, verdict = rows.sections(budgets)
    lines = [f"### Connection budget{title}"]
    for part in (verdict, *parts):
        mark = "#### {}" if part.verdict is None else "**{}**"
        lines += ["", mark.format(_escaped(part.title))] if part.title else []
        lines += _folded(_table(part.table)) if part.table else []
        for group in part.groups:
            answer = [f"Answer: {group.answer}"] if group.answer else []
            # Two spaces at its end break a line.
            lines += ["", "  \n".join(map(_escaped, (group.sentence, *answer)))]
            names = ("  ".join(filter(None, entry)) for entry in group.entries)
            lines += _folded([f"- {_escaped(name)}" for name in names]) if group.entries else []
    return "\n".join(lines) + "\n"


def _table(table: tuple[rows.Row, ...]) -> list[str]:
    """Return the lines of a table; the last row is the sum."""
    *listed, last = ([_escaped(cell) for cell in row] for row in table)
    lines = [
        ["service", "kind", "instances x processes x pool", "running", "deploying"],
        ["---", "---", "---", "---:", "---:"],
        *listed,
        [f"**{cell}**" if cell else "" for cell in last],
    ]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _folded(lines: list[str]) -> list[str]:
    """Return lines after an empty one, or behind a click if they are many."""
    if len(lines) <= rows.LONG:
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


RULES = {
    "does-not-fit": "The connection ceiling of the deployment is more than the database allows.",
    "too-many-clients": "A pooler would get more clients than it accepts.",
    "nothing-to-count": "No service in the files connects to the database, as far as they show.",
    "above-ceiling": "More connections were measured than the files allow.",
    "unknown-number": "A number of the connection ceiling is unknown.",
    "fits": "The connection ceiling of the deployment is within what the database allows.",
}
_LEVELS = {"nothing-to-count": "warning", "unknown-number": "warning", "fits": "note"}
"""The levels of the rules that are no errors, by their names in SARIF."""


class Finding(NamedTuple):
    """One message about one line."""

    rule: str
    text: str
    where: SourceLocation | None = None

    @property
    def level(self) -> str:
        """`error`, `warning` or `note`."""
        return _LEVELS.get(self.rule, "error")


def findings(budgets: Budgets) -> Iterator[Finding]:
    """Return the verdicts, at the line of the largest service, and every unknown number."""
    for budget in budgets.each:
        rule, text = budget.verdict.replace(" ", "-"), rows.headline(budget)
        if budget.is_over:
            largest = max(
                budget.direct, key=lambda each: each.ceiling or 0, default=budget.database
            )
            yield Finding(rule, " ".join([text, *map(str, rows.ways_out(budget))]), largest.where)
        elif rule in ("fits", "nothing-to-count"):
            yield Finding(rule, text, budget.database.where)
        for over in budget.overloads:
            yield Finding("too-many-clients", rows.overload_text(over), over.pooler.where)
    for check in budgets.checks:
        if not check.is_within:
            yield Finding("above-ceiling", check.text)
    for gap in budgets.gaps:
        text = f"{gap.of}: {gap.sentence}" if gap.of else gap.sentence
        text += f". Answer: {gap.answer.flag(gap.of)}" if gap.answer.option else ""
        yield Finding("unknown-number", text, gap.where)


def as_annotations(budgets: Budgets) -> str:
    """Return GitHub's workflow commands (GitHub Docs, "Workflow commands", error and warning).

    GitHub shows ten warnings of a step. The tenth has all unknown numbers that are left.
    """
    found = list(findings(budgets))
    rest = [each for each in found if each.rule == "unknown-number"][MOST_ANNOTATIONS - 1 :]
    if len(rest) > 1:
        text = f"{len(rest)} more numbers are unknown. All of them:"
        text = "\n".join([text, *map(str, rows.unknown(budgets))])
        found = [each for each in found if each not in rest] + [Finding("unknown-number", text)]
    lines = []
    for each in found:
        place = {"title": "Connection budget"}
        if each.where is not None:
            place |= {"file": _relative(each.where.file), "line": str(each.where.line or 1)}
        command = "notice" if each.level == "note" else each.level
        lines.append(f"{workflow_command(command, each.text, **place)}\n")
    return "".join(lines)


def _relative(file: str) -> str:
    """Return a path within the working directory as the forge has it."""
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative.replace(os.sep, "/")


def as_sarif(budgets: Budgets) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log (OASIS, Static Analysis Results Interchange Format).

    Code scanning shows every result as an alert, so there is no result for what fits. It refuses
    results without a place: those get the place of another one.
    """
    from importlib.metadata import version  # noqa: PLC0415  (for SARIF only)
    from urllib.parse import quote  # noqa: PLC0415  (the same)

    found = [each for each in findings(budgets) if each.level != "note"]
    anywhere = next((each.where for each in found if each.where), SourceLocation("."))
    results = []
    for each in found:
        where = each.where or anywhere
        file = quote(_relative(where.file))
        uri = f"file://{file}" if file.startswith("/") else file
        place = {"artifactLocation": {"uri": uri}, "region": {"startLine": where.line or 1}}
        rule = {"ruleId": each.rule, "ruleIndex": list(RULES).index(each.rule)}
        message = {"level": each.level, "message": {"text": each.text}}
        results.append({**rule, **message, "locations": [{"physicalLocation": place}]})
    rules = [{"id": each, "shortDescription": {"text": text}} for each, text in RULES.items()]
    driver = {"name": "poolkit budget", "version": version("poolkit"), "rules": rules}
    runs = [{"tool": {"driver": driver}, "results": results}]
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": runs}
