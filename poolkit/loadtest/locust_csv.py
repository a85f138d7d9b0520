"""Locust's own CSV files, ended without a traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent
from locust.stats import StatsCSVFileWriter

if TYPE_CHECKING:
    from gevent import Greenlet


def end_the_writer_before_its_files() -> None:
    """Have Locust's writer of CSV files end before these are closed; to be called once.

    Locust closes them and leaves the writer asleep. With `--processes` it then waits for its workers,
    long enough for the writer to wake and fail on a closed file.
    """
    write, close = StatsCSVFileWriter.stats_writer, StatsCSVFileWriter.close_files
    writing: list[Greenlet] = []

    def stats_writer(self: StatsCSVFileWriter) -> None:
        writing.append(gevent.getcurrent())
        write(self)

    def close_files(self: StatsCSVFileWriter) -> None:
        gevent.killall(writing)
        close(self)

    StatsCSVFileWriter.stats_writer = stats_writer  # type: ignore[method-assign]
    StatsCSVFileWriter.close_files = close_files  # type: ignore[method-assign]
