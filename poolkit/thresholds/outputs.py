"""Verdicts for people and for CI: terminal lines, JUnit XML, annotations of GitHub."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from poolkit.masking import printable
from poolkit.thresholds.verdict import unmet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.text import Text

    from poolkit.thresholds.verdict import Status, Verdict

# -- terminal -------------------------------------------------------------------------------

_MARKS: dict[Status, tuple[str, str, str]] = {
    "passed": ("✓", "ok", "green"),
    "failed": ("✗", "FAILED", "red"),
    "unknown": ("✗", "UNKNOWN", "red"),
    "not applicable": ("-", "-", "dim"),
}


def takes_marks(encoding: str | None) -> bool:
    """Return whether ticks and crosses can be written in an encoding; None is an unknown one."""
    try:
        "✓✗".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def lines(verdicts: Iterable[Verdict], *, words: bool = False) -> list[Text]:
    """Return a line for each verdict, for rich; with `words` in place of ticks and crosses."""
    from rich.text import Text  # noqa: PLC0415  (only terminals need it)

    return [
        Text.assemble((_MARKS[v.status][words], f"bold {_MARKS[v.status][2]}"), f" {v.message}")
        for v in verdicts
    ]


def plain_lines(verdicts: Iterable[Verdict], *, words: bool = False) -> list[str]:
    """Return the same lines for a log, without colours."""
    return [f"{_MARKS[verdict.status][words]} {verdict.message}" for verdict in verdicts]


# -- JUnit ----------------------------------------------------------------------------------

_text = partial(re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]").sub, "\ufffd")
"""Replace the characters that XML 1.0 does not allow, not even escaped (W3C, XML 1.0, 2.2)."""


def junit(
    verdicts: Iterable[Verdict],
    name: str,
    properties: Mapping[str, str] | None = None,
    *,
    when: datetime | None = None,
) -> str:
    """Return JUnit XML with a suite for each target and a case for each threshold.

    There is no one standard. The elements and attributes here are those that both published
    schemas allow: that of Ant's JUnit task (`JUnit.xsd` by Windy Road, which requires every element
    that is here) and that of Jenkins' xUnit plugin (`junit-10.xsd`).

    Args:
        verdicts: in any order.
        name: of the run, such as "poolkit compare".
        properties: of the run, such as the host.
        when: the run began (default: now).

    Returns:
        ASCII alone, so that it can be written in any encoding.

    """
    grouped: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        grouped.setdefault(verdict.target, []).append(verdict)
    root = ET.Element("testsuites")
    moment = (when or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    for number, (target, group) in enumerate(grouped.items()):
        statuses = [verdict.status for verdict in group]
        attributes = {
            "name": _text(target or name),
            "package": _text(name),
            "id": str(number),
            "tests": str(len(group)),
            "failures": str(statuses.count("failed")),
            "errors": str(statuses.count("unknown")),
            "skipped": str(statuses.count("not applicable")),
            "timestamp": moment,
            "hostname": "localhost",
            "time": "0",
        }
        suite = ET.SubElement(root, "testsuite", attributes)
        listed = ET.SubElement(suite, "properties")
        for key, value in (properties or {}).items():
            ET.SubElement(listed, "property", {"name": _text(key), "value": _text(value)})
        class_name = _text(".".join(part for part in (name, target) if part))
        for verdict in group:
            at = f" at {verdict.load}" if verdict.load else ""
            title = _text(f"{verdict.threshold.expression}{at}")
            case = ET.SubElement(
                suite, "testcase", {"name": title, "classname": class_name, "time": "0"}
            )
            message = {"message": _text(verdict.message)}
            if verdict.status == "not applicable":
                ET.SubElement(case, "skipped", message)
            elif verdict.status != "passed":
                # One element at most: Ant's schema allows no second.
                tag = "failure" if verdict.status == "failed" else "error"
                element = ET.SubElement(case, tag, {**message, "type": "threshold"})
                element.text = _text(f"{verdict.message}\nthreshold: {verdict.threshold.text}")
        ET.SubElement(suite, "system-out").text = _text("\n".join(v.message for v in group))
        ET.SubElement(suite, "system-err")
    ET.indent(root)
    body = ET.tostring(root, encoding="us-ascii", xml_declaration=False).decode("ascii")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


# -- GitHub ---------------------------------------------------------------------------------

MOST_ANNOTATIONS = 10
"""The errors of one step that GitHub shows (actions/toolkit, docs/problem-matchers.md, Limitations)."""


def github_annotations(verdicts: Iterable[Verdict]) -> list[str]:
    """Return an error for each threshold that failed or is not known, each one line to print.

    The last one of `MOST_ANNOTATIONS` has all that are left.
    """
    errors = []
    for verdict in unmet(verdicts):
        state = "Threshold failed" if verdict.status == "failed" else "Threshold not known"
        parts = (state, verdict.subject, verdict.threshold.key)
        errors.append((": ".join(part for part in parts if part), verdict.message))
    if len(errors) > MOST_ANNOTATIONS:
        rest = errors[MOST_ANNOTATIONS - 1 :]
        together = "\n".join(message for _, message in rest)
        errors[MOST_ANNOTATIONS - 1 :] = [(f"{len(rest)} more thresholds", together)]
    return [workflow_command("error", message, title=title) for title, message in errors]


def workflow_command(name: str, message: str, **properties: str) -> str:
    """Return a command to GitHub, such as `::error title=Budget,file=a.yaml::It does not fit`.

    The commands are those of GitHub Docs, "Workflow commands for GitHub Actions". The escapes are
    those of GitHub's toolkit (actions/toolkit, packages/core/src/command.ts): a property takes two
    more than the message.
    """
    escapes: dict[str, str | int | None] = {"%": "%25", "\r": "%0D", "\n": "%0A"}
    more = str.maketrans({**escapes, ":": "%3A", ",": "%2C"})
    shown = ",".join(f"{key}={text.translate(more)}" for key, text in properties.items())
    return f"::{name} {shown}::{printable(message).translate(str.maketrans(escapes))}"
