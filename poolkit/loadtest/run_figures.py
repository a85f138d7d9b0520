"""The figures of a run by the names that thresholds have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.loadtest.latency.lower_bounds import LatenciesAtLeast, failed_unanswered
from poolkit.thresholds import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolkit.loadtest.recording import Recording

NOT_HERE = ("db.left_over", "lambda.cold_starts")
"""What only `poolkit compare` can tell, which starts and ends its targets."""
_PERCENTILES = {name: float(name.removeprefix("http.p")) for name in METRICS if "http.p" in name}


def figures(recording: Recording, target: str, seconds: float) -> dict[str, float | None]:
    """Return what a run came to in the seconds since its counting began; None is "not known".

    With a target, connections are those of its name alone; those opened are always the whole
    database's, whose server counts them. Without one, the share is that of the whole server.
    """
    http = http_figures(recording, seconds)
    return {**http, **_database_figures(recording, target, http["http.requests"] or 0.0)}


def http_figures(recording: Recording, seconds: float) -> dict[str, float | None]:
    """Return the figures of requests; what had no answer at the end is in them, see `lower_bounds`.

    Arrivals that an open loop could not even send count as errors.
    """
    latencies, unsent = recording.latencies, recording.loop().unsent
    answered = latencies.answered().count
    failed = latencies.failed().count + failed_unanswered(latencies)
    requests = answered + failed
    wanted = requests + unsent
    shown = LatenciesAtLeast(latencies)
    percentiles = shown.percentiles(tuple(_PERCENTILES.values()))
    return {
        **dict(zip(_PERCENTILES, percentiles, strict=True)),
        "http.max": shown.max,
        "http.mean": shown.mean,
        "http.errors": (failed + unsent) / wanted if wanted else None,
        "http.requests": float(requests),
        "http.rate": answered / seconds if seconds > 0 else None,
    }


def _database_figures(
    recording: Recording, target: str, requests: float
) -> dict[str, float | None]:
    tally, limits = recording.tally, recording.limits
    if not tally.samples or (target and target not in tally.peaks):
        return {}
    peak = tally.peaks[target] if target else tally.peak
    # What is left of a server's limit, all of its databases decide.
    share_of = peak if target else tally.server_peak
    idle = tally.idle_in_transaction_peaks
    return {
        "db.connections.max": peak,
        "db.connections.mean": tally.mean_of(target) if target else tally.mean,
        "db.connections.share": None if limits is None else share_of / limits.max_connections,
        "db.opened": tally.opened,
        "db.opened_per_request": tally.opened / requests if requests else None,
        "db.idle_in_transaction.max": idle[target] if target else tally.idle_in_transaction_peak,
    }


def why_not_known(recording: Recording, target: str) -> Mapping[str, str]:
    """Return, by metric, why it is not known if it is not."""
    database = recording.note or "the database was not asked yet"
    if recording.tally.samples:
        seen = ", ".join(sorted(recording.tally.peaks)) or "nobody"
        database = f"no connection is named {target}; seen: {seen}"
    reasons = {
        name: "no request was answered" if name.startswith("http.") else database
        for name in METRICS
    }
    if recording.tally.samples and target in {"", *recording.tally.peaks}:
        reasons["db.opened_per_request"] = "there was no request"
    return reasons | dict.fromkeys(NOT_HERE, "only poolkit compare can tell")
