"""The samplers beside the load: who is connected, and what the processes use."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import psutil

from poolkit.activity.server import ActivitySampler, Backend, Sample
from poolkit.compare.results.run_folder import ConnectionRow, ProcessRow, SampleRow
from poolkit.local.processes import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from poolkit.compare.results.run_folder import TargetFolder

USAGE_EVERY_S = 0.5


class Samplers:
    """The samplers of one measurement, which write rows in threads of their own.

    Args:
        folder: the folder of the rows.
    """

    def __init__(self, folder: TargetFolder) -> None:
        self._folder = folder
        self.failure: OSError | None = None
        """The reason if rows could not be written; the main thread raises it."""
        self.listener: Callable[[Sample], None] | None = None
        """Receives every sample too, in the sampler's thread."""

    @contextmanager
    def connections(self, url: str, interval_s: float) -> Iterator[ActivitySampler]:
        """Sample who is connected to a database, for as long as this is open.

        Raises:
            DatabaseUnavailable: the server cannot be reached, or has no connection left.
            MonitoringNotAllowed: the role may not see other roles' activity.
        """
        with (
            self._folder.writer(ConnectionRow) as write_connection,
            self._folder.writer(SampleRow) as write_sample,
        ):

            def write(sample: Sample) -> None:
                backends = of_target(sample)
                try:
                    write_sample(
                        SampleRow(
                            time=sample.time,
                            backends=len(backends),
                            sessions=sample.sessions,
                            xacts=sample.xacts,
                        )
                    )
                    for backend in backends:
                        write_connection(ConnectionRow(time=sample.time, **asdict(backend)))
                except OSError as error:
                    self.failure = error
                    raise
                if self.listener is not None:
                    self.listener(sample)

            with ActivitySampler(url, interval_s=interval_s, sink=write) as sampler:
                yield sampler

    @contextmanager
    def usage(self, pids: Callable[[], Mapping[str, int]]) -> Iterator[None]:
        """Measure what the processes use, by role, for as long as this is open."""
        ended = threading.Event()
        with self._folder.writer(ProcessRow) as write_row:

            def measure() -> None:
                while not ended.wait(USAGE_EVERY_S):
                    now = time.time()
                    used = {role: Usage.of_tree(pid) for role, pid in pids().items()}
                    # Without its descendants: every process of the run is one of them.
                    used["sampler"] = Usage(
                        processes=1,
                        rss_bytes=int(psutil.Process(os.getpid()).memory_info().rss),
                        cpu_s=time.process_time(),
                    )
                    try:
                        for role, usage in used.items():
                            write_row(
                                ProcessRow(
                                    time=now,
                                    role=role,
                                    processes=usage.processes,
                                    cpu_s=usage.cpu_s,
                                    rss_mb=usage.rss_bytes / 1e6,
                                )
                            )
                    except OSError as error:
                        self.failure = error
                        return

            thread = threading.Thread(target=measure, name="usage", daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()


def of_target(sample: Sample) -> tuple[Backend, ...]:
    """Return all backends but the load generator's, which reads the worker's results."""
    return tuple(backend for backend in sample.backends if backend.target != "loadtest")
