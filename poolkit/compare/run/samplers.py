"""The samplers beside the load: who is connected, and what the processes use."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from poolkit.activity.by_target import IDLE_IN_TRANSACTION
from poolkit.activity.server import ActivitySampler, Sample
from poolkit.compare.results.run_folder import ConnectionRow, ProcessRow, SampleRow
from poolkit.loadtest.figures import Held
from poolkit.local.processes import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from poolkit.compare.results.run_folder import TargetFolder
    from poolkit.compare.run.attribution import Attributed, Attribution

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
        self.listener: Callable[[Sample, Held | None], None] | None = None
        """Receives every sample too, with the target's connections, in the sampler's thread."""
        self.held: Held | None = None
        """The target's connections in the latest sample; None if they are not known."""

    @contextmanager
    def connections(
        self, url: str, interval_s: float, attribution: Attribution
    ) -> Iterator[ActivitySampler]:
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
                # The load generator reads the worker's results.
                seen = [each for each in attribution.of(sample) if each.owner != "load"]
                self.held = held_by_target(seen) if attribution.is_known else None
                try:
                    write_sample(
                        SampleRow(
                            time=sample.time,
                            backends=len(seen),
                            sessions=sample.sessions,
                            xacts=sample.xacts,
                        )
                    )
                    for each in seen:
                        write_connection(connection_row(sample.time, each))
                except OSError as error:
                    self.failure = error
                    raise
                if self.listener is not None:
                    self.listener(sample, self.held)

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


def held_by_target(seen: Iterable[Attributed]) -> Held:
    """Return the number of the target's connections, and how many are idle in a transaction."""
    states = [each.backend.state for each in seen if each.owner == "target"]
    return Held(len(states), sum(state in IDLE_IN_TRANSACTION for state in states))


def connection_row(time: float, attributed: Attributed) -> ConnectionRow:
    """Return the row of a backend in a sample."""
    backend, owner, by = attributed
    return ConnectionRow(
        time=time,
        target=backend.target,
        instance=backend.instance,
        pid=backend.pid,
        state=backend.state,
        age_s=backend.age_s,
        state_age_s=backend.state_age_s,
        wait_event=backend.wait_event,
        owner=owner,
        by=by,
    )
