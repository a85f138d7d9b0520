"""The latency files of `--csv`: a table, and the histograms themselves for other tools.

Both are renewed while the run goes on, so whatever ends it, the files have what was measured.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path

from poolkit.loadtest.figures import DROPPED, TIMED_OUT
from poolkit.loadtest.latency.histogram import LatencyHistogram, can_encode
from poolkit.loadtest.latency.report import csv_rows
from poolkit.loadtest.latency.run_latencies import Latencies

INTERVAL_S = 10
FAILED = "failed"

logger = logging.getLogger("poolkit.loadtest")


class LatencyFiles:
    """`PREFIX_latency.csv`, and `PREFIX_latency.hlog` in HdrHistogram's log format.

    The log has a line for every interval of ten seconds and each method and name, tagged with
    them, and an untagged one for all answered requests; failed ones are tagged "failed". The waiting
    of what the end cut off is tagged "unanswered" and "unsent".
    Values are in µs. Sums of its lines are exact. Without hdrhistogram there is only the table.

    Args:
        prefix: of `--csv`.
        started: Unix time at which the first interval begins.

    """

    def __init__(self, prefix: str, started: float) -> None:
        self.table = Path(f"{prefix}_latency.csv")
        self.log = Path(f"{prefix}_latency.hlog") if can_encode() else None
        if self.log is None:
            logger.info("no %s_latency.hlog: hdrhistogram is not installed on this machine", prefix)
        self._begin(started)

    def _begin(self, started: float) -> None:
        self._started = self._since = started
        self._total, self._interval = Latencies(), Latencies()
        if self.log is not None:
            self.log.write_text(_head(started), encoding="utf-8")
        self._write_table()

    def begin_again(self, started: float) -> None:
        """Forget what was written: a new test starts."""
        self._begin(started)

    def add(self, latencies: Latencies, until: float) -> None:
        """Add what was recorded up to a moment, in Unix time."""
        self._interval.add(latencies)
        if until - self._since >= INTERVAL_S:
            self._write(until)

    def close(self, until: float) -> None:
        """Write what is not written yet."""
        self._write(until)

    def _write(self, until: float) -> None:
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as log:
                log.writelines(self._lines(until))
        self._total.add(self._interval)
        self._since, self._interval = until, Latencies()
        self._write_table()

    def _lines(self, until: float) -> list[str]:
        interval = self._interval
        histograms = [
            ("", interval.answered()),
            (FAILED, interval.failed()),
            (TIMED_OUT, interval.total().of("timed_out")),
            (DROPPED, interval.total().of("dropped")),
        ]
        for name in interval.names():
            tag = f"{name.method} {name.name}".strip()
            histograms += [
                (tag, interval.answered(name)),
                (f"{FAILED} {tag}", interval.failed(name)),
            ]
        return [self._line(tag, found, until) for tag, found in histograms if found.count]

    def _line(self, tag: str, histogram: LatencyHistogram, until: float) -> str:
        moment = f"{self._since - self._started:.3f},{until - self._since:.3f}"
        # A comma ends a tag, and a space ends what some readers split a line by.
        words = "_".join(tag.replace(",", " ").split())
        tagged = f"Tag={words}," if words else ""
        # The maximum is for people, and by custom a thousand times the unit of the values.
        return f"{tagged}{moment},{(histogram.max or 0):.3f},{histogram.encode()}\n"

    def _write_table(self) -> None:
        with self.table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(csv_rows(self._total))


def _head(started: float) -> str:
    return (
        "#[Logged by poolkit; values in microseconds]\n"
        "#[Histogram log format version 1.2]\n"
        f"#[StartTime: {started:.3f} (seconds since epoch)]\n"
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n'
    )
