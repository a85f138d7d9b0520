"""Metrics of a worker for Prometheus: the pools and the tasks of all its child processes.

A scrape reaches the parent process, and tasks run in its children. So each child writes its counters
to a file of its own each second, and the parent adds them up. Counters of children that have ended
stay in the sums. A child that is killed takes the last second with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from celery import signals
from prometheus_client import REGISTRY, start_http_server
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from poolkit.celery.database import Database
from poolkit.config.holds import CallSite, merged
from poolkit.config.metrics import Histogram, PoolSnapshot
from poolkit.prometheus import PoolCollector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from prometheus_client.core import Metric

__all__ = ("TASK_BUCKETS", "serve_metrics")

TASK_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0)
"""Upper bounds of a task's duration in seconds."""

_EVERY: Final = 1.0  # seconds
# In the environment, because a child that is spawned inherits nothing else.
_FOLDER: Final = "CELERY_POOLKIT_METRICS_FOLDER"
_GAUGES: Final = ("size", "checked_out", "overflow", "waiting")


def serve_metrics(app: Celery, *, port: int, host: str = "0.0.0.0") -> None:
    """Serve `poolkit_pool_...` and `poolkit_task_...` from the worker, on a port of its own.

        database = Database(app)
        serve_metrics(app, port=9100)

    Durations and ends of tasks have the labels `task` and `state` (SUCCESS, FAILURE, RETRY and so
    on). The default registry of `prometheus_client` is served with them.

    Args:
        app: the Celery application; it needs a `Database`.
        port: the port to listen on.
        host: the address to listen on; by default every one of the machine.
    """
    _Metrics(app, host, port)


class _Figures:
    """Counters that can be written, read and added: one pool, its call sites, tasks by state."""

    def __init__(self) -> None:
        self.pool: Counter[str] = Counter()
        self.times: dict[str, Histogram] = {}
        self.sites: list[CallSite] = []
        self.tasks: dict[tuple[str, str], tuple[list[int], float]] = {}

    def add_pool(self, snapshot: PoolSnapshot) -> None:
        for name, value in snapshot._asdict().items():
            if isinstance(value, Histogram):
                self._add_times(name, value.counts, value.total)
            else:
                self.pool[name] += value

    def add_task(self, name: str, state: str, counts: list[int], total: float) -> None:
        before, seconds = self.tasks.get((name, state), ([0] * len(counts), 0.0))
        added = [a + b for a, b in zip(before, counts, strict=True)]
        self.tasks[name, state] = added, seconds + total

    def add(self, text: str, *, gauges: bool) -> None:
        """Add what another process has written; the gauges of one that has ended are nothing."""
        found = json.loads(text)
        for name, value in found["pool"].items():
            self.pool[name] += value if gauges or name not in _GAUGES else 0
        for name, (counts, total) in found["times"].items():
            self._add_times(name, counts, total)
        for task in found["tasks"]:
            self.add_task(*task)
        self.sites = merged([*self.sites, *(CallSite(**site) for site in found["sites"])])

    def _add_times(self, name: str, counts: list[int], total: float) -> None:
        times = self.times.setdefault(name, Histogram())
        times.counts = [a + b for a, b in zip(times.counts, counts, strict=True)]
        times.total += total

    def text(self) -> str:
        times = {name: (each.counts, each.total) for name, each in self.times.items()}
        tasks = [(*key, *value) for key, value in self.tasks.items()]
        sites = [dataclasses.asdict(site) for site in self.sites]
        return json.dumps({"pool": self.pool, "times": times, "tasks": tasks, "sites": sites})

    def snapshot(self) -> PoolSnapshot:
        values: dict[str, Any] = {name: self.pool[name] for name in PoolSnapshot._fields}
        times = {name: self.times.get(name, Histogram()) for name in _HISTOGRAMS}
        return PoolSnapshot(**values | times)


_HISTOGRAMS: Final = ("checkout_wait", "connect_time", "hold_time")


class _Metrics(Collector):
    """The counters of this process, the files of its children, and the server of both."""

    def __init__(self, app: Celery, host: str, port: int) -> None:
        self.app = app
        self.host = host
        self.port = port
        self.is_served = False
        self.lock = threading.Lock()
        self.own = _Figures()  # the tasks of this process
        self.ended = _Figures()  # the children that have ended
        self.file: Path | None = None
        self.began: dict[str, float] = {}
        for signal, receiver in (
            (signals.worker_init, self._on_worker_init),
            (signals.worker_process_init, self._on_process_init),
            (signals.worker_ready, self._on_worker_ready),
            (signals.task_prerun, self._on_task_start),
            (signals.task_postrun, self._on_task_end),
            (signals.worker_process_shutdown, self._write),
            (signals.worker_shutdown, self._on_worker_shutdown),
        ):
            signal.connect(receiver, weak=False)

    # -- in each process that runs tasks ----------------------------------------------------

    def _on_process_init(self, **kwargs: Any) -> None:
        folder = os.environ.get(_FOLDER)
        # Solo sends this signal in the worker's own process.
        if folder is None or Path(folder).name.endswith(f"-{os.getpid()}"):
            return
        self.lock = threading.Lock()
        self.file = Path(folder, f"{os.getpid()}-{time.time_ns()}")

        def write_each_second() -> None:
            while True:
                self._write()
                time.sleep(_EVERY)

        threading.Thread(target=write_each_second, daemon=True).start()

    def _on_task_start(self, task_id: str, **kwargs: Any) -> None:
        self.began[task_id] = time.perf_counter()

    def _on_task_end(self, task_id: str, task: Any, state: Any, **kwargs: Any) -> None:
        began = self.began.pop(task_id, None)
        if began is None or task.app is not self.app:
            return
        seconds = time.perf_counter() - began
        counts = [0] * (len(TASK_BUCKETS) + 1)
        counts[bisect_left(TASK_BUCKETS, seconds)] = 1
        with self.lock:
            self.own.add_task(task.name, str(state or "UNKNOWN"), counts, seconds)

    def _write(self, **kwargs: Any) -> None:
        if self.file is None:
            return
        with contextlib.suppress(OSError):  # the parent has ended and removed the folder
            begun = self.file.with_suffix(f".{threading.get_ident()}")
            begun.write_text(self._own_figures().text())
            begun.replace(self.file)

    def _own_figures(self) -> _Figures:
        figures = _Figures()
        with self.lock:
            figures.tasks = dict(self.own.tasks)
        database = Database.of(self.app)
        figures.add_pool(database.snapshot())
        figures.sites = database.metrics.holds.rows()
        return figures

    # -- in the worker's own process ---------------------------------------------------------

    def _on_worker_init(self, sender: Any, **kwargs: Any) -> None:
        if sender.app is self.app:
            os.environ[_FOLDER] = tempfile.mkdtemp(
                prefix="poolkit-celery-", suffix=f"-{os.getpid()}"
            )

    def _on_worker_ready(self, sender: Any, **kwargs: Any) -> None:
        if sender.app is self.app and not self.is_served:
            self.is_served = True
            REGISTRY.register(self)
            start_http_server(self.port, self.host)

    def _on_worker_shutdown(self, **kwargs: Any) -> None:
        folder = os.environ.pop(_FOLDER, None)
        if folder is not None:
            for file in Path(folder).iterdir():
                file.unlink(missing_ok=True)
            Path(folder).rmdir()

    def describe(self) -> list[Metric]:
        """Return nothing: a registry need not read the files to know the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the sums over this process and all children."""
        figures = self._sums()
        name = Database.of(self.app).target
        pools = PoolCollector(lambda: {name: figures.snapshot()}, lambda: {name: figures.sites})
        yield from pools.collect()
        labels = ["task", "state"]
        ends = CounterMetricFamily("poolkit_tasks", "Deliveries that ended.", labels=labels)
        durations = HistogramMetricFamily(
            "poolkit_task_duration_seconds", "How long deliveries ran.", labels=labels
        )
        bounds = (*map(str, TASK_BUCKETS), "+Inf")
        for key, (counts, total) in figures.tasks.items():
            ends.add_metric(key, sum(counts))
            buckets = list(zip(bounds, map(float, accumulate(counts)), strict=True))
            durations.add_metric(key, buckets, total)
        yield from (ends, durations)

    def _sums(self) -> _Figures:
        sums = self._own_figures()
        with self.lock:
            for file in sorted(Path(os.environ.get(_FOLDER, "/nowhere")).glob("*")):
                if file.suffix:  # not complete yet
                    continue
                is_running = True
                try:
                    os.kill(int(file.name.partition("-")[0]), 0)
                except OSError:  # no such process, or by now one of another user
                    is_running = False
                text = file.read_text()
                if is_running:
                    sums.add(text, gauges=True)
                else:
                    self.ended.add(text, gauges=False)
                    file.unlink()
            sums.add(self.ended.text(), gauges=False)
        return sums
