"""The lines that hold connections, as an application's `/metrics` has them.

The metrics `poolkit_hold_site_...` (`poolkit.prometheus`) count since the start of the process that answers.
What was held during some seconds is the difference of two readings.
"""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from poolkit.errors import ConfigurationError, PoolkitError
from poolkit.masking import masked, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

ANSWER_S = 5.0
LARGEST = 10_000_000
"""Bytes of an answer that are read; a pool has 50 lines at most, so this is another page."""
_LINE = re.compile(r"poolkit_hold_site_(\w+)\{(.*)\} (\S+)(?: \d+)?")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, kw_only=True)
class HeldFrom:
    """The checkouts of one line for one endpoint or task. Times are in seconds."""

    target: str
    where: str
    unit: str
    checkouts: int
    held_s: float
    busy_share: float | None
    """The share of that time in which SQL ran; None if it is not seen."""
    p95_s: float
    """Since the start of the process, as `longest_s`."""
    longest_s: float
    nested: int
    after_response: int


Reading = dict[tuple[str, str, str], dict[str, float]]


def read_metrics(url: str) -> Reading:
    """Return the figures of each line by target, line and unit.

    Args:
        url: such as `http://127.0.0.1:8000/metrics`.

    Raises:
        ConfigurationError: it is no URL of HTTP.
        PoolkitError: it does not answer, or with an error.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigurationError(
            f"--metrics: wanted an http:// or https:// URL, found {masked(url)!r}"
        )
    # A proxy from the environment must not see a request to a host of one's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=ANSWER_S) as answer:
            text = answer.read(LARGEST).decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise PoolkitError(f"--metrics: {masked(url)} cannot be read: {error}") from None
    found: Reading = defaultdict(dict)
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            labels = {name: _plain(value) for name, value in _LABEL.findall(match[2])}
            key = (labels.get("target", ""), labels.get("where", ""), labels.get("unit", ""))
            try:
                found[key][match[1]] = float(match[3])
            except ValueError:
                continue
    return dict(found)


def _plain(value: str) -> str:
    text = _ESCAPED.sub(lambda match: "\n" if match[1] == "n" else match[1], value)
    return printable(text, one_line=True)


def held_between(
    before: Mapping[tuple[str, str, str], Mapping[str, float]],
    after: Mapping[tuple[str, str, str], Mapping[str, float]],
) -> tuple[HeldFrom, ...]:
    """Return what was held from one reading to the other, the lines with most idle time first.

    Of a line with a smaller count than before, all of the second reading counts: another process has
    answered, or it was started again.
    """
    rows = []
    for key, now in after.items():
        then = before.get(key, {})
        if now.get("checkouts_total", 0) < then.get("checkouts_total", 0):
            then = {}
        grown = {
            name: now.get(f"{name}_total", 0.0) - then.get(f"{name}_total", 0.0)
            for name in (
                "checkouts",
                "seconds",
                "busy_seconds",
                "unseen_seconds",
                "nested",
                "after_response",
            )
        }
        if not any(grown.values()):
            continue
        seen = grown["seconds"] - grown["unseen_seconds"]
        target, where, unit = key
        idle = max(0.0, seen - grown["busy_seconds"])
        row = HeldFrom(
            target=target,
            where=where,
            unit=unit,
            checkouts=round(grown["checkouts"]),
            held_s=round(grown["seconds"], 3),
            busy_share=round(min(1.0, grown["busy_seconds"] / seen), 4) if seen > 0 else None,
            p95_s=round(now.get("p95_seconds", 0.0), 4),
            longest_s=round(now.get("longest_seconds", 0.0), 4),
            nested=round(grown["nested"]),
            after_response=round(grown["after_response"]),
        )
        rows.append((idle, row))
    return tuple(row for _, row in sorted(rows, key=lambda pair: -pair[0]))
