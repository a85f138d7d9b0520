"""What a run without a web page says: lines between Locust's tables, two tables at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.activity.by_target import STATES, Connected
from poolkit.loadtest.latency.report import table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit.loadtest.recording import Recording
    from poolkit.loadtest.series import Second

_WORDS = {"idle_in_transaction": "idle in transaction"}


def line(second: Second, usable: int | None) -> str:
    """Return what is connected in a second, in one line."""
    if second.targets is None:
        return "Connections: not known, the database does not answer"
    of = "" if usable is None else f" of {usable}"
    each = [_target(one) for one in second.targets]
    if second.elsewhere:
        each.append(f"other databases {second.elsewhere}")
    listed = f" ({'; '.join(each)})" if each else ""
    return f"Connections: {second.on_server}{of}{listed}, {second.opened or 0} opened/s"


def _target(one: Connected) -> str:
    states = [(getattr(one, state), _WORDS.get(state, state)) for state in STATES]
    return f"{one.target} {one.total}: " + ", ".join(f"{n} {word}" for n, word in states if n)


def summary(recording: Recording) -> Iterable[str]:
    """Return the lines of the tables at the end, in the manner of Locust's own."""
    yield from table(recording.latencies, recording.loop())
    yield from recording.lost
    yield from _connections(recording)


def _connections(recording: Recording) -> Iterable[str]:
    counters = recording.measured.connections
    if not counters.samples:
        yield f"Connections: not measured, {recording.note}"
        return
    rule = f"{'-' * 41}|{'-' * 11}|{'-' * 12}"
    yield f"{'Connections':<40} | {'peak':>9} | {'mean':>10}"
    yield rule
    for name, peak in sorted(counters.peaks.items()):
        yield f"{name[:40]:<40} | {peak:>9} | {counters.mean_of(name):>10.1f}"
    yield rule
    yield f"{'Aggregated':<40} | {counters.peak:>9} | {counters.mean_of():>10.1f}"
    if counters.elsewhere_peak:
        yield f"{'other databases of the server':<40} | {counters.elsewhere_peak:>9} |"
        yield f"{'all databases of the server':<40} | {counters.server_peak:>9} |"
    limits = recording.limits
    if limits is not None:
        yield f"{'usable (max_connections less reserve)':<40} | {limits.usable:>9} |"
    opened = "not known" if counters.opened is None else counters.opened
    yield f"{'opened':<40} | {opened:>9} |"
    yield ""
