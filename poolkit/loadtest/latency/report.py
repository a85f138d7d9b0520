"""Latencies as figures: for the page, the report, the document, the files and the console."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.loadtest.latency.counters import DROPPED, TIMED_OUT, Latencies, LatenciesAtLeast
from poolkit.loadtest.latency.histogram import can_encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.loadtest.latency.counters import Name, Rates
    from poolkit.loadtest.latency.histogram import LatencyHistogram
    from poolkit.loadtest.open_loop.report import LoopReport

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}
FIGURES = (*PERCENTILES, "max", "mean")
AGGREGATED = "Aggregated"
"""Locust's name for the row over all requests."""
LOG_INTERVAL_S = 10
"""The seconds of a line in the histogram log."""

logger = logging.getLogger("poolkit.loadtest")


def figures(histogram: LatencyHistogram | LatenciesAtLeast) -> dict[str, float | None]:
    """Return percentiles, maximum and mean in ms; each None without a request."""
    found = zip(PERCENTILES, histogram.percentiles(tuple(PERCENTILES.values())), strict=True)
    every = {**dict(found), "max": histogram.max, "mean": histogram.mean}
    return {name: None if ms is None else round(ms, 3) for name, ms in every.items()}


def rows(latencies: Latencies) -> list[dict[str, Any]]:
    """Return a row for each method and name, and "Aggregated" for all of them.

    Latencies are those of answered requests; failed requests are only counted. The aggregated row
    includes the requests that the end cut off, whose names are unknown.
    """
    return [*(row(latencies, one) for one in latencies.names()), row(latencies, None)]


def row(latencies: Latencies, name: Name | None) -> dict[str, Any]:
    """Return one of `rows`; without a name the aggregated one.

    That one is at least as long as the requests without an answer had waited.
    """
    answered, failed = latencies.ended("answered", name), latencies.ended("failed", name).count
    shown: LatencyHistogram | LatenciesAtLeast = answered
    if name is None:
        total = latencies.total()
        shown = LatenciesAtLeast(answered, [total.of("timed_out"), total.of("dropped")])
    return {
        "method": "" if name is None else name.method,
        "name": AGGREGATED if name is None else name.name,
        "requests": answered.count + failed,
        "failures": failed,
        **figures(shown),
    }


def ms(value: float | None) -> str:
    """Return a time in ms with the histogram's three digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def load_text(load: LoopReport) -> str:
    """Return the kind of load as a short text."""
    how = "closed loop"
    if load.loop == "open":
        how = f"open loop, {load.rate_text}"
        if load.stages:
            how += f", {load.rate:.4g}/s now"
    return f"{how}, SATURATED" if load.saturated_by else how


def line(rates: Rates, latencies: Latencies, load: LoopReport) -> str:
    """Return the latencies of the last seconds and of the run so far, in one line."""
    recent = f"p50 {ms(rates.p50_ms)}, p95 {ms(rates.p95_ms)}, p99 {ms(rates.p99_ms)} now"
    run = figures(latencies.ended("answered"))
    so_far = f"p99 {ms(run['p99'])}, max {ms(run['max'])} in the run"
    return f"Latency, ms: {recent}; {so_far} ({load_text(load)})"


def table(latencies: Latencies, load: LoopReport) -> Iterator[str]:
    """Return the lines of the table at the end, in the style of Locust's own."""
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
    *names, aggregated = rows(latencies)
    for row in (*names, aggregated):
        if row is aggregated:
            yield rule
        shown = " ".join(f"{ms(row[name]):>7}" for name in FIGURES)
        counts = f"{row['requests']:>8} |{row['failures']:>8}"
        yield f"{row['method'][:8]:<8}|{row['name'][:30]:<30}|{counts} | {shown}"
    yield ""


class LatencyFiles:
    """`PREFIX_latency.csv`, and `PREFIX_latency.hlog` in HdrHistogram's log format.

    For every interval of ten seconds, the log has a tagged line for each method and name, and an
    untagged one for all answered requests. Failed ones are tagged "failed". The waits that the end
    cut off are tagged "unanswered" and "unsent". Values are in µs, and sums of lines are exact.
    Without hdrhistogram there is only the table. Both files are renewed while the run goes on, so
    they are complete however it ends.

    Args:
        prefix: of `--csv`.
        started: Unix time at which the first interval begins.
    """

    def __init__(self, prefix: str, started: float) -> None:
        self.table = Path(f"{prefix}_latency.csv")
        self.log = Path(f"{prefix}_latency.hlog") if can_encode() else None
        if self.log is None:
            logger.info("no %s_latency.hlog: hdrhistogram is not installed on this machine", prefix)
        self.begin_again(started)

    def begin_again(self, started: float) -> None:
        """Discard the latencies so far: a new test starts."""
        self._started = self._since = started
        self._total, self._interval = Latencies(), Latencies()
        if self.log is not None:
            self.log.write_text(
                "#[Logged by poolkit; values in microseconds]\n"
                "#[Histogram log format version 1.2]\n"
                f"#[StartTime: {started:.3f} (seconds since epoch)]\n"
                '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n',
                encoding="utf-8",
            )
        self._write_table()

    def add(self, latencies: Latencies, until: float) -> None:
        """Add the latencies up to a moment, in Unix time."""
        self._interval.add(latencies)
        if until - self._since >= LOG_INTERVAL_S:
            self.write(until)

    def write(self, until: float) -> None:
        """Write the latencies added since the last call, up to a moment in Unix time."""
        interval = self._interval
        if self.log is not None:
            histograms = [
                ("", interval.ended("answered")),
                ("failed", interval.ended("failed")),
                (TIMED_OUT, interval.total().of("timed_out")),
                (DROPPED, interval.total().of("dropped")),
            ]
            for name in interval.names():
                tag = f"{name.method} {name.name}".strip()
                histograms.append((tag, interval.ended("answered", name)))
                histograms.append((f"failed {tag}", interval.ended("failed", name)))
            moment = f"{self._since - self._started:.3f},{until - self._since:.3f}"
            with self.log.open("a", encoding="utf-8") as log:
                for tag, histogram in histograms:
                    if histogram.count:
                        # A comma ends a tag, and some readers split a line at spaces.
                        text = "_".join(tag.replace(",", " ").split())
                        tagged = f"Tag={text}," if text else ""
                        # The maximum is for people, and by convention a thousand times the
                        # values' unit.
                        highest = f"{histogram.max or 0:.3f}"
                        log.write(f"{tagged}{moment},{highest},{histogram.encode()}\n")
        self._total.add(interval)
        self._since, self._interval = until, Latencies()
        self._write_table()

    def _write_table(self) -> None:
        with self.table.open("w", newline="", encoding="utf-8") as file:
            write = csv.writer(file, lineterminator="\n").writerow
            write(["Type", "Name", "Request Count", "Failure Count", *FIGURES])
            for row in rows(self._total):
                counted = [row["method"], row["name"], row["requests"], row["failures"]]
                # An unknown figure is empty.
                shown = ("" if row[name] is None else f"{row[name]:g}" for name in FIGURES)
                write([*counted, *shown])
