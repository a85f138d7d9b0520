"""The measurements of a run as one JSON document, which page, report and file share."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

import gevent
from gevent.lock import RLock

from poolkit.activity.by_target import STATES, Connected, total
from poolkit.loadtest.latency.report import AGGREGATED, row, rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from poolkit.loadtest.recording import Recording
    from poolkit.loadtest.threshold_checks import ThresholdChecks
    from poolkit.thresholds import Verdict

SCHEMA = 1
EVERY_S = 1.0
"""There is a new point every second."""
NAMES_EVERY_S = 5.0
"""The percentiles of each name need most of the work, and hardly move after a while."""
PAUSE_S = 0.01
"""Between two parts of the work, each of some milliseconds at most."""


def document(
    recording: Recording,
    verdicts: Iterable[Verdict] = (),
    *,
    partial: bool = False,
    latency_rows: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the document. Moments are Unix times in seconds; null means unknown.

    Args:
        recording: the measurements.
        verdicts: on them.
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


class LiveDocument:
    """The document for open pages: at most `EVERY_S` old, its rows of names `NAMES_EVERY_S`.

    It is built by the process that sends the load, where nothing else runs meanwhile. So all pages
    share one, and it is built in small parts: a long pause would be measured as latency, caused by
    an open page.
    """

    def __init__(self, recording: Recording, checks: ThresholdChecks) -> None:
        self._recording, self._checks = recording, checks
        self._building = RLock()
        self._encoded = ""
        self._rows: list[dict[str, Any]] = []
        self._encoded_at = self._rows_at = -math.inf
        self._run: float | None = None

    def json(self) -> str:
        """Return the cached JSON. Concurrent callers share one rebuild."""
        with self._building:
            if self._is_older(self._encoded_at, EVERY_S):
                found = self._document(NAMES_EVERY_S)
                gevent.sleep(PAUSE_S)
                # A series of two thousand points is encoded column by column.
                columns = []
                for name, column in found.pop("series").items():
                    columns.append(f"{json.dumps(name)}: {json.dumps(column)}")
                    gevent.sleep(0)
                self._encoded = f'{json.dumps(found)[:-1]}, "series": {{{", ".join(columns)}}}}}'
                self._encoded_at = time.monotonic()
            return self._encoded

    def now(self) -> dict[str, Any]:
        """Return the document with the latest figures only."""
        with self._building:
            return self._document(0.0)

    def _document(self, names_every_s: float) -> dict[str, Any]:
        latencies = self._recording.latencies
        if self._is_older(self._rows_at, names_every_s):
            found = []
            for name in latencies.names():
                found.append(row(latencies, name))
                gevent.sleep(PAUSE_S)
            self._rows = found
            self._rows_at, self._run = time.monotonic(), self._recording.started
        aggregated = row(self._recording.latencies, None)
        gevent.sleep(PAUSE_S)
        verdicts = self._checks.so_far()
        gevent.sleep(PAUSE_S)
        return document(self._recording, verdicts, latency_rows=[*self._rows, aggregated])

    def _is_older(self, moment: float, seconds: float) -> bool:
        # The rows of the test before are too old at any age.
        return time.monotonic() - moment >= seconds or self._run != self._recording.started
