"""Verdicts as JUnit XML, which CI servers read: a suite a target, a case a threshold.

There is no one standard. The elements and attributes here are those that both published schemas
take: that of Ant's JUnit task (`JUnit.xsd` by Windy Road, which wants every element that is here)
and that of Jenkins' xUnit plugin (`junit-10.xsd`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from poolkit.thresholds.verdict import Verdict

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""All that XML 1.0 does not take, not even escaped (W3C, XML 1.0, 2.2)."""


def junit(
    verdicts: Iterable[Verdict],
    name: str,
    properties: Mapping[str, str] | None = None,
    *,
    when: datetime | None = None,
) -> str:
    """Return a document; ASCII alone, so that it can be written in any encoding.

    Args:
        verdicts: in any order.
        name: of the run, such as "poolkit compare".
        properties: what else is to be known of the run.
        when: it began (default: now).

    """
    grouped: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        grouped.setdefault(verdict.target, []).append(verdict)
    root = ET.Element("testsuites")
    moment = (when or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    for number, (target, group) in enumerate(grouped.items()):
        named = {"name": _text(target or name), "package": _text(name), "id": str(number)}
        given = {"timestamp": moment, "hostname": "localhost", "time": "0"}
        suite = ET.SubElement(root, "testsuite", {**named, **_counts(group), **given})
        _fill(suite, group, ".".join(part for part in (name, target) if part), properties or {})
    ET.indent(root)
    body = ET.tostring(root, encoding="us-ascii", xml_declaration=False).decode("ascii")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _counts(verdicts: Sequence[Verdict]) -> dict[str, str]:
    found = [verdict.status for verdict in verdicts]
    return {
        "tests": str(len(found)),
        "failures": str(found.count("failed")),
        "errors": str(found.count("unknown")),
        "skipped": str(found.count("not applicable")),
    }


def _fill(
    suite: ET.Element, verdicts: Sequence[Verdict], where: str, properties: Mapping[str, str]
) -> None:
    listed = ET.SubElement(suite, "properties")
    for key, value in properties.items():
        ET.SubElement(listed, "property", {"name": _text(key), "value": _text(value)})
    for verdict in verdicts:
        at = f" at {verdict.load}" if verdict.load else ""
        name = {"name": _text(f"{verdict.threshold.expression}{at}"), "classname": _text(where)}
        _say(ET.SubElement(suite, "testcase", {**name, "time": "0"}), verdict)
    ET.SubElement(suite, "system-out").text = _text("\n".join(v.words for v in verdicts))
    ET.SubElement(suite, "system-err")


def _say(case: ET.Element, verdict: Verdict) -> None:
    """Add what a case that did not simply pass has to say: one element, as Ant's schema wants."""
    message = {"message": _text(verdict.words)}
    if verdict.status == "not applicable":
        ET.SubElement(case, "skipped", message)
    elif verdict.status != "passed":
        tag = "failure" if verdict.status == "failed" else "error"
        said = ET.SubElement(case, tag, {**message, "type": "threshold"})
        said.text = _text(f"{verdict.words}\nthreshold: {verdict.threshold.text}")


def _text(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
