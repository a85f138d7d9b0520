"""Metrics of a worker for Prometheus: the pools and the tasks of all its child processes.

A scrape reaches the parent process, and tasks run in its children. So each child writes its counters
to a file of its own each second, and the parent adds them up. When a child has ended, its counters
move into one sum and its file is removed: sums never decrease, and files do not accumulate. A child
that is killed takes the last second with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from celery import signals
from prometheus_client import REGISTRY, start_http_server
from prometheus_client.registry import Collector

from poolkit.celery.database import Database
from poolkit.celery.delivery import dead_letter_recorded, is_redelivered
from poolkit.celery.figures import TASK_BUCKETS, Figures
from poolkit.celery.queues import SENT_AT, QueueSampler
from poolkit.errors import TaskGivenUp
from poolkit.prometheus import PoolCollector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from prometheus_client.core import Metric

__all__ = ("TASK_BUCKETS", "serve_metrics")

_EVERY: Final = 1.0  # seconds
_FOLD_EVERY: Final = 10.0  # seconds
_PREFIX: Final = "poolkit-celery-"
# In the environment, because a child that is spawned inherits nothing else.
_FOLDER: Final = "CELERY_POOLKIT_METRICS_FOLDER"


def serve_metrics(app: Celery, *, port: int, host: str = "0.0.0.0") -> None:
    """Serve metrics of pools, tasks and queues from the worker, on a port of its own.

        database = Database(app)
        serve_metrics(app, port=9100)

    The metrics of pools have the same names as in a web service. The label `state` of tasks is
    SUCCESS, FAILURE, RETRY and so on. The default registry of `prometheus_client` is served with
    them.

    Args:
        app: the Celery application; it needs a `Database`.
        port: the port to listen on.
        host: the address to listen on; by default every one of the machine.
    """
    _Metrics(app, host, port)


class _Metrics(Collector):
    """The counters of this process, the files of its children, and the server of both."""

    def __init__(self, app: Celery, host: str, port: int) -> None:
        self.app = app
        self.host = host
        self.port = port
        self.is_served = False
        self.lock = threading.Lock()
        self.own = Figures()  # the tasks of this process
        self.ended = Figures()  # the children that have ended
        self.file: Path | None = None
        self.began: dict[str, float] = {}
        self.queues = QueueSampler(app)
        self.folder_lock: int | None = None
        self.is_over = threading.Event()
        for signal, receiver in (
            (signals.worker_init, self._on_worker_init),
            (signals.worker_process_init, self._on_process_init),
            (signals.worker_ready, self._on_worker_ready),
            (signals.task_prerun, self._on_task_start),
            (signals.task_postrun, self._on_task_end),
            (signals.task_retry, self._on_task_retry),
            (signals.task_failure, self._on_task_failure),
            (dead_letter_recorded, self._on_dead_letter),
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
        self.own = Figures()  # not what the parent had counted at the fork
        self.file = Path(folder, f"{os.getpid()}-{time.time_ns()}")

        def write_each_second() -> None:
            while True:
                self._write()
                time.sleep(_EVERY)

        threading.Thread(target=write_each_second, daemon=True).start()

    def _on_task_start(self, task_id: str, task: Any, **kwargs: Any) -> None:
        if task.app is not self.app:
            return
        self.began[task_id] = time.perf_counter()
        request = task.request
        if is_redelivered(request):
            with self.lock:
                self.own.count("poolkit_task_redeliveries", task.name)
        elif not request.retries and (sent_at := getattr(request, SENT_AT, None)) is not None:
            with contextlib.suppress(TypeError, ValueError):  # of another program
                due = datetime.fromisoformat(request.eta).timestamp() if request.eta else sent_at
                # The sender's clock may be ahead.
                waited = max(0.0, time.time() - float(due))
                with self.lock:
                    self.own.observe("poolkit_task_wait_seconds", waited, task.name)

    def _on_task_end(self, task_id: str, task: Any, state: Any, **kwargs: Any) -> None:
        began = self.began.pop(task_id, None)
        if began is None:
            return
        seconds = time.perf_counter() - began
        labels = task.name, str(state or "UNKNOWN")
        with self.lock:
            self.own.count("poolkit_tasks", *labels)
            self.own.observe("poolkit_task_duration_seconds", seconds, *labels)

    def _on_task_retry(self, sender: Any, reason: Any, **kwargs: Any) -> None:
        self._count_error(sender, "RETRY", getattr(reason, "exc", None) or reason)

    def _on_task_failure(self, sender: Any, exception: Any, **kwargs: Any) -> None:
        if isinstance(exception, TaskGivenUp):
            exception = exception.__cause__ or exception
        self._count_error(sender, "FAILURE", exception)

    def _count_error(self, task: Any, state: str, error: object) -> None:
        if getattr(task, "app", None) is self.app:
            with self.lock:
                self.own.count("poolkit_task_errors", task.name, state, type(error).__name__)

    def _on_dead_letter(self, sender: Any, **kwargs: Any) -> None:
        if sender.app is self.app:
            with self.lock:
                self.own.count("poolkit_dead_letters", sender.name)

    def _write(self, **kwargs: Any) -> None:
        if self.file is None:
            return
        with contextlib.suppress(OSError):  # the parent has ended and removed the folder
            begun = self.file.with_suffix(f".{threading.get_ident()}")
            begun.write_text(self._own_figures().text())
            begun.replace(self.file)

    def _own_figures(self) -> Figures:
        figures = Figures()
        with self.lock:
            figures.add(self.own.text(), gauges=True)
        database = Database.of(self.app)
        figures.add_pool(database.snapshot())
        figures.sites = database.metrics.holds.rows()
        return figures

    # -- in the worker's own process ---------------------------------------------------------

    def _on_worker_init(self, sender: Any, **kwargs: Any) -> None:
        if sender.app is self.app:
            _remove_leftovers()
            folder = tempfile.mkdtemp(prefix=_PREFIX, suffix=f"-{os.getpid()}")
            # Open, and so locked, until this process and its children have ended.
            self.folder_lock = _locked(Path(folder))
            os.environ[_FOLDER] = folder

    def _on_worker_ready(self, sender: Any, **kwargs: Any) -> None:
        if sender.app is self.app and not self.is_served:
            self.is_served = True
            REGISTRY.register(self)
            start_http_server(self.port, self.host)
            self.queues.start()
            threading.Thread(target=self._fold, name="poolkit metrics", daemon=True).start()

    def _fold(self) -> None:
        """Add up children that have ended, and remove their files, although nobody scrapes."""
        while not self.is_over.wait(_FOLD_EVERY):
            self._sums()

    def _on_worker_shutdown(self, **kwargs: Any) -> None:
        self.queues.stop()
        self.is_over.set()
        folder = os.environ.pop(_FOLDER, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def describe(self) -> list[Metric]:
        """Return nothing: a registry need not read the files to know the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the sums over this process and all children, and the queues."""
        figures = self._sums()
        name = Database.of(self.app).target
        pools = PoolCollector(lambda: {name: figures.snapshot()}, lambda: {name: figures.sites})
        yield from pools.collect()
        yield from figures.metrics()
        yield from self.queues.metrics()

    def _sums(self) -> Figures:
        sums = self._own_figures()
        with self.lock:
            files: dict[int, list[Path]] = {}
            for file in sorted(Path(os.environ.get(_FOLDER, "/nowhere")).glob("*-*")):
                files.setdefault(int(file.name.partition("-")[0]), []).append(file)
            for pid, of_pid in files.items():
                is_running = _is_child(pid)
                # The number may belong to a later child by now: only the last file is its own.
                latest = (
                    max((file for file in of_pid if not file.suffix), default=None)
                    if is_running
                    else None
                )
                for file in of_pid:
                    if file == latest:
                        sums.add(file.read_text(), gauges=True)
                    elif not file.suffix:
                        self.ended.add(file.read_text(), gauges=False)
                        file.unlink()
                    elif not is_running:  # it was killed while it wrote this
                        file.unlink(missing_ok=True)
            sums.add(self.ended.text(), gauges=False)
        return sums


def _locked(folder: Path) -> int | None:
    """Lock the file `lock` of a folder and return its descriptor, or None if another process has it.

    The system takes the lock away at the end of the process, however it ends.
    """
    if sys.platform == "win32":  # no fcntl
        return None
    import fcntl  # noqa: PLC0415

    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers() -> None:
    """Remove the folders of workers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        with contextlib.suppress(OSError):  # of another user
            # Without the file it is of a worker that is just starting.
            if (folder / "lock").exists() and (descriptor := _locked(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def _is_child(pid: int) -> bool:
    """Return whether this process has such a child.

    Its number alone would not do: the system gives it to another process, at some time after its
    end.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return False
    else:
        # The name in parentheses may have any character; then come the state and the parent.
        return stat.rpartition(")")[2].split()[1] == str(os.getpid())
    try:
        os.kill(pid, 0)
    except OSError:  # no such process, or by now one of another user
        return False
    return True
