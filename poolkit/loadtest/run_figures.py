"""The figures of a Locust run by the names that thresholds have, and why one is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.thresholds import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolkit.loadtest.recording import Recording

NOT_HERE = ("db.left_over", "lambda.cold_starts")
"""The metrics of `poolkit compare` alone, which starts and stops its targets."""


def figures(recording: Recording, target: str, until: float) -> dict[str, float | None]:
    """Return the figures of a run up to a moment, in Unix time; None is "not known".

    `poolkit.loadtest.figures.MetricAccumulator` defines them. With a target, connections are those of
    its name alone.
    """
    found = recording.measured.figures(until, target)
    return {name: value for name, value in found.items() if name not in NOT_HERE}


def why_not_known(recording: Recording, target: str) -> Mapping[str, str]:
    """Return, by metric, why it is not known if it is not."""
    connections = recording.measured.connections
    database = recording.note or "the database was not asked yet"
    is_seen = connections.of(target) is not None
    if connections.samples:
        seen = ", ".join(sorted(connections.peaks)) or "no connection"
        database = f"no connection is named {target}; seen: {seen}"
    if is_seen and connections.opened is None:
        database = "the server's counter of sessions was reset"
    reasons = {
        name: "no request was answered" if name.startswith("http.") else database
        for name in METRICS
    }
    reasons["http.rate"] = "a rate is not known in the first second"
    if is_seen and connections.opened is not None:
        reasons["db.opened_per_request"] = "no request was answered or failed"
    return reasons | dict.fromkeys(NOT_HERE, "only poolkit compare can tell")
