"""Latencies as figures: for the page, the report, the document, the files and the console."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.loadtest.latency.counters import DROPPED, TIMED_OUT, Latencies, LatenciesAtLeast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from poolkit.loadtest.latency.counters import Name, Outcome, Rates
    from poolkit.loadtest.latency.histogram import LatencyHistogram
    from poolkit.loadtest.open_loop.report import LoopReport

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}
FIGURES = (*PERCENTILES, "max", "mean")
AGGREGATED = "Aggregated"
"""Locust's name for the row over all requests."""
NO_ANSWER = "(no answer)"
"""The row of the requests that were dropped or timed out."""
LOG_INTERVAL_S = 10
"""The seconds of a line in the histogram log."""
NAMES_A_PAUSE = 10
"""So many names are encoded in about half a millisecond."""
_OF_ALL_NAMES: dict[str, Outcome] = {
    "": "answered",
    "failed": "failed",
    TIMED_OUT: "timed_out",
    DROPPED: "dropped",
}
"""By tag of the log, the outcome of all names' requests."""


def figures(latency: LatencyHistogram | LatenciesAtLeast) -> dict[str, float | None]:
    """Return percentiles, maximum and mean in ms; each None without a request."""
    found = zip(PERCENTILES, latency.percentiles(tuple(PERCENTILES.values())), strict=True)
    every = {**dict(found), "max": latency.max, "mean": latency.mean}
    return {name: None if ms is None else round(ms, 3) for name, ms in every.items()}


def rows(latencies: Latencies) -> list[dict[str, Any]]:
    """Return a row for each method and name, and "Aggregated" for all of them.

    The figures are those of thresholds: `requests` is `http.requests`, `failures` is the number
    behind `http.errors`, and the latencies are `http.p50` and so on. Requests without an answer,
    whose names are unknown, have a row named `NO_ANSWER`. So the rows add up to the last one.
    """
    return list(rows_in_parts(latencies, lambda: None))


def row(latencies: Latencies, name: Name | None) -> dict[str, Any]:
    """Return one of `rows`; without a name the aggregated one."""
    counters = latencies.total() if name is None else latencies.of(name)
    return {
        "method": "" if name is None else name.method,
        "name": AGGREGATED if name is None else name.name,
        "requests": counters.count,
        "failures": counters.errors,
        **figures(counters.latency),
    }


def unnamed_rows(latencies: Latencies) -> list[dict[str, Any]]:
    """Return the row of the requests without an answer that count as failed, if there are any."""
    total = latencies.total()
    failed = total.timed_out + total.of("dropped").count
    counts = {"method": "", "name": NO_ANSWER, "requests": failed, "failures": failed}
    return [counts | dict.fromkeys(FIGURES)] if failed else []


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
    run = figures(latencies.total().latency)
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

    Both files are renewed while the run goes on. The table is replaced as a whole, and the lines of
    an interval are appended in one piece, so a run that is killed loses ten seconds.

    With thousands of names this takes tenths of a second. So it runs in a thread, and pauses after
    every `NAMES_A_PAUSE` names: a thread that computes would make the event loop wait as well.

    Args:
        prefix: of `--csv`.
        started: Unix time at which the first interval begins.
        pause: called between two parts of the work.
    """

    def __init__(
        self, prefix: str, started: float, *, pause: Callable[[], None] = lambda: None
    ) -> None:
        self.table = Path(f"{prefix}_latency.csv")
        self.log = Path(f"{prefix}_latency.hlog")
        self._pause = pause
        self.begin_again(started)

    def begin_again(self, started: float) -> None:
        """Discard the latencies so far: a new test starts."""
        self._started = self._since = started
        self._interval = Latencies()
        self.log.write_text(
            "#[Logged by poolkit; values in microseconds]\n"
            "#[Histogram log format version 1.2]\n"
            f"#[StartTime: {started:.3f} (seconds since epoch)]\n"
            '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n',
            encoding="utf-8",
        )
        self._write_table(Latencies())

    def add(self, latencies: Latencies, until: float, run: Latencies) -> None:
        """Add the latencies up to a moment, and write the files if an interval is over.

        Args:
            latencies: since the last call.
            until: Unix time.
            run: the latencies of the whole run so far.
        """
        self._add(latencies)
        if until - self._since >= LOG_INTERVAL_S:
            self.write(until, run)

    def finish(self, rest: Latencies, until: float, run: Latencies) -> None:
        """Add the last latencies, and write the files."""
        self._add(rest)
        self.write(until, run)

    def _add(self, latencies: Latencies) -> None:
        for _ in self._interval.keep_in_parts(latencies):
            self._pause()

    def write(self, until: float, run: Latencies) -> None:
        """Write the latencies added since the last call, up to a moment in Unix time."""
        interval = self._interval
        total = interval.total()
        moment = f"{self._since - self._started:.3f},{until - self._since:.3f}"
        lines = [
            _log_line(tag, moment, total.of(outcome))
            for tag, outcome in _OF_ALL_NAMES.items()
            if total.of(outcome).count
        ]
        for number, (name, outcome, histogram) in enumerate(interval.histograms(), start=1):
            failed = "failed " if outcome == "failed" else ""
            lines.append(_log_line(f"{failed}{name.method} {name.name}", moment, histogram))
            if not number % NAMES_A_PAUSE:
                self._pause()
        with self.log.open("a", encoding="utf-8") as log:
            log.write("".join(lines))
        self._since, self._interval = until, Latencies()
        self._write_table(run)

    def _write_table(self, run: Latencies) -> None:
        text = io.StringIO()
        write = csv.writer(text, lineterminator="\n").writerow
        write(["Type", "Name", "Request Count", "Failure Count", *FIGURES])
        for found in rows_in_parts(run, self._pause):
            counted = [found["method"], found["name"], found["requests"], found["failures"]]
            # An unknown figure is empty.
            shown = ("" if found[name] is None else f"{found[name]:g}" for name in FIGURES)
            write([*counted, *shown])
        replace_file(self.table, text.getvalue())


def rows_in_parts(
    latencies: Latencies, pause: Callable[[], None], *, most: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield `rows`, with a pause after every `NAMES_A_PAUSE` names.

    Args:
        latencies: of the run.
        pause: called between two parts.
        most: the highest number of names; those with the most requests are taken.
    """
    for number, name in enumerate(latencies.names(most, pause=pause), start=1):
        yield row(latencies, name)
        if not number % NAMES_A_PAUSE:
            pause()
    yield from unnamed_rows(latencies)
    yield row(latencies, None)


def replace_file(file: Path, text: str) -> None:
    """Write a file as a whole: whoever reads it meanwhile, or after a kill, finds a complete one."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _log_line(tag: str, moment: str, histogram: LatencyHistogram) -> str:
    # A comma ends a tag, and some readers split a line at spaces.
    text = "_".join(tag.replace(",", " ").split())
    tagged = f"Tag={text}," if text else ""
    # The maximum is for people, and by convention a thousand times the values' unit.
    return f"{tagged}{moment},{histogram.max or 0:.3f},{histogram.encode()}\n"
