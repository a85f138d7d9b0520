"""Latencies as figures: for the page, the report, the document, the files and the console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from poolkit.loadtest.figures import LatenciesAtLeast
    from poolkit.loadtest.latency.histogram import LatencyHistogram
    from poolkit.loadtest.latency.run_latencies import Latencies, Name
    from poolkit.loadtest.open_loop.report import LoopReport
    from poolkit.loadtest.series import Second

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}
FIGURES = (*PERCENTILES, "max", "mean")
AGGREGATED = "Aggregated"
"""What Locust calls the row about everything."""


def figures(histogram: LatencyHistogram | LatenciesAtLeast) -> dict[str, float | None]:
    """Return percentiles, maximum and mean in ms; None each without a request."""
    found = zip(PERCENTILES, histogram.percentiles(tuple(PERCENTILES.values())), strict=True)
    all_of_them = {**dict(found), "max": histogram.max, "mean": histogram.mean}
    return {name: None if ms is None else round(ms, 3) for name, ms in all_of_them.items()}


def rows(latencies: Latencies) -> list[dict[str, Any]]:
    """Return a row a method and name, and one for all of them as "Aggregated".

    The latencies are those of answered requests; failed ones are counted beside them. Those of all
    together are at least as long as what the end cut off had waited, whose names are not known.
    """
    return [*(row(latencies, one) for one in latencies.names()), row(latencies, None)]


def row(latencies: Latencies, name: Name | None) -> dict[str, Any]:
    """Return one of `rows`; without a name that of all together."""
    answered = latencies.answered(name)
    failed = latencies.failed(name).count
    return {
        "method": "" if name is None else name.method,
        "name": AGGREGATED if name is None else name.name,
        "requests": answered.count + failed,
        "failures": failed,
        **figures(latencies.latency() if name is None else answered),
    }


def ms(value: float | None) -> str:
    """Return a time in ms with the three digits that are known; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def load_words(load: LoopReport) -> str:
    """Return how a run is loaded, in a few words."""
    how = "closed loop" if load.loop == "closed" else f"open loop, {load.rate:g}/s {load.kind}"
    return f"{how}, SATURATED" if load.saturated_by else how


def line(second: Second, latencies: Latencies, load: LoopReport) -> str:
    """Return the latencies of the last seconds and of the run so far, in one line."""
    recent = f"p50 {ms(second.p50_ms)}, p95 {ms(second.p95_ms)}, p99 {ms(second.p99_ms)} now"
    run = figures(latencies.answered())
    so_far = f"p99 {ms(run['p99'])}, max {ms(run['max'])} in the run"
    return f"Latency, ms: {recent}; {so_far} ({load_words(load)})"


def table(latencies: Latencies, load: LoopReport) -> Iterator[str]:
    """Return the lines of the table at the end, in the manner of Locust's own."""
    yield from load.lines()
    total = latencies.total()
    if total.timed_out:
        yield (
            f"{total.of('timed_out').count:,} requests had no answer at the end; {total.timed_out:,} of "
            f"them had waited for more than {total.long_ms:,.0f} ms and count as failed"
        )
    rule = f"{'-' * 8}|{'-' * 30}|{'-' * 9}|{'-' * 9}|{'-' * 57}"
    heads = (f"{name:>7}" for name in FIGURES)
    yield "Latency in ms, to three digits"
    yield f"{'Type':<8}|{'Name':<30}|{'# reqs':>8} |{'# fails':>8} | {' '.join(heads)}"
    yield rule
    *names, together = rows(latencies)
    yield from map(_table_row, names)
    yield rule
    yield _table_row(together)
    yield ""


def _table_row(row: dict[str, Any]) -> str:
    shown = " ".join(f"{ms(row[name]):>7}" for name in FIGURES)
    counts = f"{row['requests']:>8} |{row['failures']:>8}"
    return f"{row['method'][:8]:<8}|{row['name'][:30]:<30}|{counts} | {shown}"


def csv_rows(latencies: Latencies) -> Iterable[list[Any]]:
    """Return the rows of `PREFIX_latency.csv`; what is not known stays empty."""
    yield ["Type", "Name", "Request Count", "Failure Count", *FIGURES]
    for row in rows(latencies):
        counted = [row["method"], row["name"], row["requests"], row["failures"]]
        yield [*counted, *("" if row[name] is None else f"{row[name]:g}" for name in FIGURES)]
