"""What was measured, as the one JSON document that page, report and file share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.activity.by_target import STATES, Connected, total
from poolkit.loadtest.latency.report import rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from poolkit.loadtest.recording import Recording
    from poolkit.loadtest.series import Second
    from poolkit.thresholds import Verdict

SCHEMA = 1


def document(
    recording: Recording,
    verdicts: Iterable[Verdict] = (),
    *,
    partial: bool = False,
    latency_rows: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the document. Moments are Unix times in seconds; null is "not known".

    Args:
        recording: what was measured.
        verdicts: on it.
        partial: whether the run ended before it was to.
        latency_rows: those of `rows`, from whoever has them already.
    """
    last = recording.series.points[-1] if recording.series.points else None
    return {
        "schema": SCHEMA,
        "started": round(recording.started, 3),
        "partial": partial,
        "note": recording.note,
        "server": _server(recording),
        "now": None if last is None or last.targets is None else _now(recording, last),
        "run": _run(recording),
        "load": recording.loop().plain(),
        "thresholds": [{"status": each.status, "words": each.words} for each in verdicts],
        "latency_ms": rows(recording.latencies) if latency_rows is None else latency_rows,
        "lost": recording.lost,
        "step_s": recording.series.step_s,
        "series": recording.series.columns(),
    }


def target_rows(recording: Recording) -> list[dict[str, Any]]:
    """Return the table of this moment: a row a target, and their sum as "Aggregated"."""
    points = recording.series.points
    if not points or points[-1].targets is None:
        return []
    now = {one.target: one for one in points[-1].targets}
    gone = Connected(target="", instances=0)
    rows = [
        {
            **_row(now.get(name, gone)),
            "name": name,
            "peak": recording.measured.connections.peaks[name],
        }
        for name in sorted({*now, *recording.measured.connections.peaks})
    ]
    everybody = _row(total(now.values()))
    return [*rows, {**everybody, "name": "Aggregated", "peak": recording.measured.connections.peak}]


def _server(recording: Recording) -> Mapping[str, Any] | None:
    limits = recording.limits
    if limits is None:
        return None
    return {
        "version": limits.version,
        "max_connections": limits.max_connections,
        "usable": limits.usable,
    }


def _now(recording: Recording, last: Second) -> Mapping[str, Any]:
    return {
        "connections": last.connections,
        "other_databases": last.elsewhere,
        "targets": target_rows(recording)[:-1],
    }


def _run(recording: Recording) -> Mapping[str, Any] | None:
    counters = recording.measured.connections
    if not counters.samples:
        return None
    return {
        "samples": counters.samples,
        "peak": counters.peak,
        "server_peak": counters.server_peak,
        "mean": round(counters.mean_of(), 3),
        "opened": counters.opened,
        "targets": {
            name: {"peak": peak, "mean": round(counters.mean_of(name), 3)}
            for name, peak in sorted(counters.peaks.items())
        },
    }


def _row(one: Connected) -> dict[str, Any]:
    states = {state: getattr(one, state) for state in STATES}
    return {"instances": one.instances, **states, "connections": one.total}
