"""What is written down beside the load: who is connected, and what the processes use."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

import psutil

from poolkit.activity.server import ActivitySampler, Backend, Sample
from poolkit.compare.results.run_folder import ConnectionRow, ProcessRow, SampleRow
from poolkit.local.processes import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from poolkit.compare.results.run_folder import RowWriter, TargetFolder

USAGE_EVERY_S = 0.5


class Witnesses:
    """Writes the rows of one measurement, in threads of their own.

    Args:
        folder: where the rows go.
    """

    def __init__(self, folder: TargetFolder) -> None:
        self._folder = folder
        self.failure: OSError | None = None
        """Why rows could not be written."""
        self.listener: Callable[[Sample], None] | None = None
        """Is given every sample too, in the sampler's thread."""

    @contextmanager
    def sampling(self, url: str, interval_s: float) -> Iterator[ActivitySampler]:
        """Sample who is connected to a database, for as long as this is open.

        Raises:
            DatabaseUnavailable: the server cannot be reached, or has no connection left.
            MonitoringNotAllowed: the role may not see other roles' activity.
        """
        with (
            self._folder.writer(ConnectionRow) as connections,
            self._folder.writer(SampleRow) as samples,
        ):

            def keep(sample: Sample) -> None:
                backends = of_target(sample)
                with self._noting_failure():
                    samples.write(_sample_row(sample, len(backends)))
                    for backend in backends:
                        connections.write(_connection_row(sample.time, backend))
                if self.listener is not None:
                    self.listener(sample)

            with ActivitySampler(url, interval_s=interval_s, sink=keep) as sampler:
                yield sampler

    @contextmanager
    def measuring_usage(self, pids: Callable[[], Mapping[str, int]]) -> Iterator[None]:
        """Measure what the processes use, by role, for as long as this is open."""
        ended = threading.Event()
        with self._folder.writer(ProcessRow) as rows:
            thread = threading.Thread(
                target=self._measure_usage, args=(pids, rows, ended), name="usage", daemon=True
            )
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

    def _measure_usage(
        self,
        pids: Callable[[], Mapping[str, int]],
        rows: RowWriter[ProcessRow],
        ended: threading.Event,
    ) -> None:
        while self.failure is None and not ended.wait(USAGE_EVERY_S):
            now = time.time()
            used = {role: Usage.of_tree(pid) for role, pid in pids().items()}
            # Alone: everything that runs is this process's descendant.
            used["sampler"] = Usage(
                processes=1, rss_bytes=_rss(os.getpid()), cpu_s=time.process_time()
            )
            # Noted, the failure has done its work here; a thread has nobody to raise it to.
            with suppress(OSError), self._noting_failure():
                for role, of_role in used.items():
                    rows.write(_process_row(now, role, of_role))

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """Tell the main thread, which waits for the end of the measured time."""
        try:
            yield
        except OSError as error:
            self.failure = error
            raise


def of_target(sample: Sample) -> tuple[Backend, ...]:
    """Everybody but the load generator, which asks for the worker's results."""
    return tuple(b for b in sample.backends if b.target != "loadtest")


def _sample_row(sample: Sample, backends: int) -> SampleRow:
    return SampleRow(
        time=sample.time, backends=backends, sessions=sample.sessions, xacts=sample.xacts
    )


def _connection_row(moment: float, backend: Backend) -> ConnectionRow:
    return ConnectionRow(time=moment, **asdict(backend))


def _process_row(moment: float, role: str, used: Usage) -> ProcessRow:
    return ProcessRow(
        time=moment,
        role=role,
        processes=used.processes,
        cpu_s=used.cpu_s,
        rss_mb=used.rss_bytes / 1e6,
    )


def _rss(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)
