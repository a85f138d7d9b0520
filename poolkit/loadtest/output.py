"""The output of a run: its lines, its files, and the JSON document that files and pages share.

A line between Locust's tables, two tables at the end; one more file of `--csv`, one beside
`--json-file`, and a section of `--html`. The latency files of `--csv` are in latency/report.py.
"""

from __future__ import annotations

import csv
import json
import logging
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.activity.by_target import STATES, Connected, total
from poolkit.loadtest.latency.report import AGGREGATED, rows, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from poolkit.loadtest.figures import MetricAccumulator
    from poolkit.loadtest.recording import Recording, Second
    from poolkit.thresholds import Verdict

SCHEMA = 1
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
    yield from recording.client().lines()
    yield measured_line(recording.measured)
    yield from recording.lost
    if (search := recording.limit()) is not None:
        yield from search.lines()
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


def measured_line(measured: MetricAccumulator) -> str:
    """Return the figures of thresholds that are not in the table of latencies, in one line."""
    found = measured.figures(time.time())
    rate, errors = found["http.rate"], found["http.errors"]
    return (
        f"http.requests {found['http.requests']:,.0f}, "
        f"http.errors {'not known' if errors is None else f'{errors:.3%}'}, "
        f"http.rate {'not known' if rate is None else f'{rate:,.1f}/s'}"
    )


# -- the document -------------------------------------------------------------------------


def document(
    recording: Recording,
    verdicts: Iterable[Verdict] = (),
    *,
    target: str = "",
    partial: bool = False,
    latency_rows: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the document. Moments are Unix times in seconds; null means unknown.

    Args:
        recording: the measurements.
        verdicts: on them.
        target: whose connections the figures count; empty for those of all together.
        partial: whether the run ended before its planned end.
        latency_rows: the result of `rows`, if the caller has it already.
    """
    last = recording.series.points[-1] if recording.series.points else None
    limits, connections = recording.limits, recording.measured.connections
    server = limits and {
        "version": limits.version,
        "max_connections": limits.max_connections,
        "usable": limits.usable,
    }
    now = None
    if last is not None and last.targets is not None:
        now = {
            "connections": last.connections,
            "other_databases": last.elsewhere,
            "targets": target_rows(recording)[:-1],
        }
    run = None
    if connections.samples:
        run = {
            "samples": connections.samples,
            "peak": connections.peak,
            "server_peak": connections.server_peak,
            "mean": round(connections.mean_of(), 3),
            "opened": connections.opened,
            "targets": {
                name: {"peak": peak, "mean": round(connections.mean_of(name), 3)}
                for name, peak in sorted(connections.peaks.items())
            },
        }
    return {
        "schema": SCHEMA,
        "started": round(recording.started, 3),
        "partial": partial,
        "note": recording.note,
        "server": server,
        "now": now,
        "run": run,
        "load": recording.loop().to_json(),
        "limit": search.to_json() if (search := recording.limit()) else None,
        "client": recording.client().to_json(),
        "figures": recording.measured.figures(time.time(), target),
        "thresholds": [{"status": each.status, "words": each.message} for each in verdicts],
        "latency_ms": rows(recording.latencies) if latency_rows is None else latency_rows,
        "lost": recording.lost,
        "step_s": recording.series.step_s,
        "series": recording.series.columns(),
    }


def target_rows(recording: Recording) -> list[dict[str, Any]]:
    """Return the table of this moment: a row for each target, and their sum as "Aggregated"."""
    points, connections = recording.series.points, recording.measured.connections
    if not points or points[-1].targets is None:
        return []
    now = {one.target: one for one in points[-1].targets}
    ended = Connected(target="", instances=0)
    named = [
        (name, now.get(name, ended), connections.peaks[name])
        for name in sorted({*now, *connections.peaks})
    ]
    return [
        {
            "instances": one.instances,
            **{state: getattr(one, state) for state in STATES},
            "connections": one.total,
            "name": name,
            "peak": peak,
        }
        for name, one, peak in [*named, (AGGREGATED, total(now.values()), connections.peak)]
    ]


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
        self.file = self.path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self.file, lineterminator="\n")
        self._rows.writerow(self.FIELDS)

    def write(self, second: Second) -> None:
        """Append a second; an unknown figure is empty."""
        moment, rates = f"{second.time:.3f}", second.rates
        counts: list[Any] = [""] * (2 + len(STATES))
        if second.targets is not None:
            # The sum comes last, has no name, and is a part of the row below.
            for one in (*second.targets, total(second.targets)):
                counts = [one.instances, one.total, *(getattr(one, state) for state in STATES)]
                if one.target:
                    self._rows.writerow([moment, one.target, *counts, *[""] * 7])
        load = [second.users, f"{rates.requests_per_s:.3f}", f"{rates.failures_per_s:.3f}"]
        opened, *latencies = (
            "" if value is None else f"{value:g}"
            for value in (second.opened, rates.p50_ms, rates.p95_ms, rates.p99_ms)
        )
        self._rows.writerow([moment, AGGREGATED, *counts, opened, *load, *latencies])
        self.file.flush()


def script(name: str) -> str:
    """Return one of the package's scripts."""
    return files("poolkit.loadtest").joinpath(name).read_text(encoding="utf-8")


def section(found: Mapping[str, Any]) -> str:
    """Return a section for a report: the data and the script that draws it, without a request."""
    # "</script>" in an application_name must not end the script.
    data = json.dumps(found).replace("<", "\\u003c")
    return (
        '<section style="max-width:76rem;margin:0 auto;padding:0 1.5rem 3rem">'
        f'<poolkit-connections theme="page"><script type="application/json">{data}</script>'
        f"</poolkit-connections></section><script>{script('connections.js')}</script>\n"
    )


def with_section(html: str, found: Mapping[str, Any]) -> str:
    """Return a report of Locust's with the charts of the connections at its end."""
    before, body_end, after = html.rpartition("</body>")
    return f"{before}{section(found)}{body_end}{after}" if body_end else f"{html}{section(found)}"


def write_report(report: Path, html: Callable[[], str], *, since: float) -> None:
    """Write Locust's report again, if Locust has written it after `since` (Unix time).

    Locust writes none when something fails before; then an old file stays unchanged. It writes its
    report before the end of the test, which has failures of its own: requests without an answer.

    Args:
        report: the file of `--html`.
        html: returns the report with the section of `section`.
        since: when this run began.
    """
    try:
        if report.stat().st_mtime >= since:
            report.write_text(html(), encoding="utf-8")
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("the report %s has no connections: %s", report, error)
