"""The files of a run: one more of `--csv`, one beside `--json-file`, a part of `--html`.

Those of `--csv` about latencies are in latency_files.py.
"""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.activity.by_target import STATES, Connected, total
from poolkit.loadtest.latency.report import AGGREGATED
from poolkit.loadtest.page import section

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from poolkit.loadtest.series import Second

logger = logging.getLogger("poolkit.loadtest")


class ConnectionsCsv:
    """`PREFIX_connections.csv`: a row a second and target, and one for all of them together.

    It grows while the run goes on, so whatever ends the run, the file has what was measured.
    """

    FIELDS = (
        *("Timestamp", "Target", "Instances", "Connections"),
        *("Active", "Idle in transaction", "Other", "Idle"),
        *("Opened", "User Count", "Requests/s", "Failures/s", "50%", "95%", "99%"),
    )

    def __init__(self, prefix: str) -> None:
        self.path = Path(f"{prefix}_connections.csv")
        self._file = self.path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(self.FIELDS)

    def write(self, second: Second) -> None:
        """Append a second; what is not known stays empty."""
        for row in _rows(second):
            self._rows.writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rows(second: Second) -> Iterable[list[Any]]:
    moment = f"{second.time:.3f}"
    for one in second.targets or ():
        yield [moment, one.target, *_counts(one), *[""] * 7]
    counts = [""] * (2 + len(STATES)) if second.targets is None else _counts(total(second.targets))
    load = [second.users, f"{second.requests_per_s:.3f}", f"{second.failures_per_s:.3f}"]
    latency = [_known(ms) for ms in (second.p50_ms, second.p95_ms, second.p99_ms)]
    yield [moment, AGGREGATED, *counts, _known(second.opened), *load, *latency]


def _counts(one: Connected) -> list[Any]:
    return [one.instances, one.total, *(getattr(one, state) for state in STATES)]


def _known(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def write_json(name: str, found: Mapping[str, Any]) -> None:
    """Write `NAME_connections.json`, beside the `NAME.json` that Locust writes."""
    path = Path(f"{name}_connections.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def add_to_report(report: Path, found: Mapping[str, Any], *, since: float) -> None:
    """Add the charts to Locust's report, if it was written after `since` (Unix time).

    Locust writes none when something fails before; an old file is left as it is.
    """
    try:
        if report.stat().st_mtime < since:
            return
        text = report.read_text(encoding="utf-8")
        report.write_text(with_section(text, found), encoding="utf-8")
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("the report %s has no connections: %s", report, error)


def with_section(html: str, found: Mapping[str, Any]) -> str:
    """Return a report of Locust's with the charts of connections at its end."""
    before, body_end, after = html.rpartition("</body>")
    return f"{before}{section(found)}{body_end}{after}" if body_end else f"{html}{section(found)}"
