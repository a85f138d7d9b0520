"""The output of a run without a web page.

A line between Locust's tables, two tables at the end; one more file of `--csv`, one beside
`--json-file`, and a section of `--html`. The latency files of `--csv` are in latency/report.py.
"""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.activity.by_target import STATES, Connected, total
from poolkit.loadtest.latency.report import AGGREGATED, table
from poolkit.loadtest.web_pages import with_section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from poolkit.loadtest.recording import Recording
    from poolkit.loadtest.series import Second

_STATE_NAMES = {"idle_in_transaction": "idle in transaction"}

logger = logging.getLogger("poolkit.loadtest")


# -- the console ----------------------------------------------------------------------------


def connections_line(second: Second, usable: int | None) -> str:
    """Return the connections of a second, in one line."""
    if second.targets is None:
        return "Connections: not known, the database does not answer"
    of = "" if usable is None else f" of {usable}"
    parts = []
    for one in second.targets:
        states = [(getattr(one, state), _STATE_NAMES.get(state, state)) for state in STATES]
        counts = ", ".join(f"{number} {name}" for number, name in states if number)
        parts.append(f"{one.target} {one.total}: {counts}")
    if second.elsewhere:
        parts.append(f"other databases {second.elsewhere}")
    listed = f" ({'; '.join(parts)})" if parts else ""
    return f"Connections: {second.on_server}{of}{listed}, {second.opened or 0} opened/s"


def summary(recording: Recording) -> Iterator[str]:
    """Return the lines of the tables at the end, in the style of Locust's own."""
    yield from table(recording.latencies, recording.loop())
    yield from recording.lost
    connections = recording.measured.connections
    if not connections.samples:
        yield f"Connections: not measured, {recording.note}"
        return
    rule = f"{'-' * 41}|{'-' * 11}|{'-' * 12}"
    yield f"{'Connections':<40} | {'peak':>9} | {'mean':>10}"
    yield rule
    for name, peak in sorted(connections.peaks.items()):
        yield f"{name[:40]:<40} | {peak:>9} | {connections.mean_of(name):>10.1f}"
    yield rule
    yield f"{AGGREGATED:<40} | {connections.peak:>9} | {connections.mean_of():>10.1f}"
    if connections.elsewhere_peak:
        yield f"{'other databases of the server':<40} | {connections.elsewhere_peak:>9} |"
        yield f"{'all databases of the server':<40} | {connections.server_peak:>9} |"
    if recording.limits is not None:
        yield f"{'usable (max_connections less reserve)':<40} | {recording.limits.usable:>9} |"
    opened = "not known" if connections.opened is None else connections.opened
    yield f"{'opened':<40} | {opened:>9} |"
    yield ""


# -- the files ------------------------------------------------------------------------------


class ConnectionsCsv:
    """`PREFIX_connections.csv`: a row for each second and target, and one for all together.

    It grows while the run goes on, so it is complete however the run ends.
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
        """Append a second; an unknown figure is empty."""
        moment, rates = f"{second.time:.3f}", second.rates
        for one in second.targets or ():
            self._rows.writerow([moment, one.target, *_counts(one), *[""] * 7])
        unknown = [""] * (2 + len(STATES))
        counts = unknown if second.targets is None else _counts(total(second.targets))
        load = [second.users, f"{rates.requests_per_s:.3f}", f"{rates.failures_per_s:.3f}"]
        opened, *latencies = (
            "" if value is None else f"{value:g}"
            for value in (second.opened, rates.p50_ms, rates.p95_ms, rates.p99_ms)
        )
        self._rows.writerow([moment, AGGREGATED, *counts, opened, *load, *latencies])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _counts(one: Connected) -> list[Any]:
    return [one.instances, one.total, *(getattr(one, state) for state in STATES)]


def write_json(name: str, found: Mapping[str, Any]) -> None:
    """Write `NAME_connections.json`, beside the `NAME.json` that Locust writes."""
    path = Path(f"{name}_connections.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def add_to_report(report: Path, found: Mapping[str, Any], *, since: float) -> None:
    """Add the charts to Locust's report, if it was written after `since` (Unix time).

    Locust writes none when something fails before; then an old file stays unchanged.
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
