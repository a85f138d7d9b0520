"""One target under load: start it, warm it up, measure, stop it, look what is left.

Everything seen goes into the target's folder as raw rows (docs/results.md); nothing is
computed here but what the next moment needs.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from poolkit.activity import ActivitySampler, Backend, Sample
from poolkit.compare.live_figures import LiveFigures
from poolkit.compare.load import LONGER_WARM_UP_S, Load
from poolkit.compare.run_folder import (
    ConnectionRow,
    InvokeRow,
    ProcessRow,
    Request,
    SampleRow,
    Window,
)
from poolkit.compare.running import inherited_variables
from poolkit.errors import LoadFailedError, ProcessEndedError
from poolkit.local.readiness import end_of, exit_words
from poolkit.local.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.compare.plan import Options, PlannedTarget
    from poolkit.compare.progress import Progress
    from poolkit.compare.run_folder import Level, RowWriter, TargetFolder
    from poolkit.compare.running import Launcher, Running
    from poolkit.compare.targets import Target
    from poolkit.local.processes import Supervised

USAGE_EVERY_S = 0.5
MISSED_SHARE = 0.05
"""The share of samples that may be missing before a report says so."""
END_MARGIN_S = 0.4
_DRAIN_S = 20.0
"""Seconds for requests in flight when the load ends; Locust itself gives up after 15."""
_LEAVE_S = 5.0
"""Seconds that a stopped target's backends may take to end before they count as left over."""


@dataclass(kw_only=True)
class Marks:
    """What of a Window is known so far; nothing of it is guessed when a run is cut short."""

    started: float = 0.0
    warm_from: float = 0.0
    from_: float = 0.0
    to: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def is_measured(self) -> bool:
        """True if there is a measured time, be it cut short."""
        return self.to > self.from_ > 0

    def cut_short(self, sessions: int | None) -> None:
        """End the measured time now, with the server's count of sessions as of now.

        What was in flight a moment ago may never have had the chance of an answer.
        """
        self.to = max(self.from_, min(self.to, time.time() - END_MARGIN_S))
        self.counts.setdefault("sessions_to", sessions)

    def window(self, *, partial: bool, instances: int) -> Window:
        """Return the window as of now."""
        now = time.time()
        return Window(
            started=self.started or now,
            warm_from=self.warm_from or now,
            from_=min(self.from_ or now, now),
            to=min(self.to or now, now),
            stopped=now,
            partial=partial,
            instances=instances,
            warnings=tuple(self.warnings),
            **self.counts,
        )


class Measurement:
    """The measuring of one target.

    Args:
        planned: the target and its limits.
        level: how much load it gets.
        options: for how long.
        launcher: starts it.
        folder: where its rows go.
    """

    def __init__(
        self,
        planned: PlannedTarget,
        level: Level,
        options: Options,
        launcher: Launcher,
        folder: TargetFolder,
    ) -> None:
        self.planned = planned
        self.level = level
        self.options = options
        self.launcher = launcher
        self.folder = folder
        self.marks = Marks()
        # Also the name of its log.
        self._locust = f"locust@{planned.target.name}"
        self._prepared: tuple[Load, Supervised] | None = None
        self._load_pid: int | None = None
        self._write_failure: OSError | None = None

    def prepare(self) -> None:
        """Start this target's Locust, which waits: a second less when its turn has come.

        Raises:
            LocalStackError: it cannot be started.
            OSError: the folder cannot be written to.
        """
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self._prepared = self._start_load()

    def run(self, progress: Progress, following: Measurement | None = None) -> Window:
        """Measure, and leave nothing of this target running.

        Args:
            progress: is told how far it is.
            following: is prepared while this target is stopped.

        Raises:
            LocalStackError: the target, Locust or a server did not start, or ended by itself.
            LoadFailedError: Locust did not do its work.
            DatabaseUnavailable, MonitoringNotAllowed: the server cannot be watched.
            OSError: the folder cannot be written to.
        """
        partial = True
        try:
            with self._sampling() as sampler:
                self._run(sampler, progress, following)
            partial = False
        finally:
            window = self.marks.window(partial=partial, instances=self.planned.instances_max)
            self.folder.write_window(window)
        return window

    def _run(
        self, sampler: ActivitySampler, progress: Progress, following: Measurement | None
    ) -> None:
        marks = self.marks
        marks.started = time.time()
        try:
            # Locust opens no connection before it is told to begin.
            load, locust = self._prepared or self._start_load()
            marks.counts["sessions_before"] = sampler.settled_sessions(still_s=0.2)
            running = self.launcher.start(self.planned.target, self.planned.instances_max)
            # Before there is load, so that a wrong path is found early.
            self._pool_events(running)
            with self._measuring_usage(running):
                self._load(load, locust, running, sampler, progress)
            progress.stage("stopping")
            if following is not None:
                following.prepare()
            marks.counts["sessions_after"] = sampler.settled_sessions(still_s=0.2)
            self._ask_the_fleet(running)
        finally:
            self._stop_all()
        self._end_pooling()
        marks.counts["left_over"] = sampler.wait_until_no_backends(
            f"{self.planned.preset.target}:", timeout_s=_LEAVE_S
        )
        marks.warnings += [f"no samples: {gap.reason}" for gap in sampler.gaps]
        marks.warnings += self._missed(sampler)

    def _missed(self, sampler: ActivitySampler) -> list[str]:
        """Say so where the sampler was late so often that a peak may have gone unseen."""
        moments = (time.time() - self.marks.started) / self.options.interval_s
        if sampler.missed <= MISSED_SHARE * moments:
            return []
        return [f"{sampler.missed} of {moments:.0f} samples were not taken: peaks may be higher"]

    def _stop_all(self) -> None:
        """End the load first, so that what it has in flight is answered."""
        supervisor = self.launcher.supervisor
        with ExitStack() as ending:
            for name in (self.planned.target.name, self._locust):
                if name in supervisor.names:
                    ending.callback(supervisor.stop, name)

    def _end_pooling(self) -> None:
        """Have the pooler close its connections: they are this target's, not the next one's."""
        pgbouncer = self.launcher.stack.pgbouncer
        if pgbouncer is not None and self.planned.target.through == "pgbouncer":
            pgbouncer.restart()

    # -- the load ---------------------------------------------------------------------------

    def _start_load(self) -> tuple[Load, Supervised]:
        """Start Locust, which waits until it is told to begin."""
        load = self._load_of(self.planned.target)
        environ = {**self.launcher.environ(self.planned.target), **load.environ}
        # The load generator is no instance of the target.
        environ.pop("POOLKIT_TARGET")
        started = self.launcher.supervisor.start(
            self._locust,
            load.command,
            environ=environ,
            inherited=inherited_variables(),
            cwd=self.launcher.root,
        )
        self._load_pid = started.pid
        return load, started

    def _load(
        self,
        load: Load,
        locust: Supervised,
        running: Running,
        sampler: ActivitySampler,
        progress: Progress,
    ) -> None:
        live = LiveFigures(load.requests, self.level)
        self.marks.warm_from = time.time()
        load.begin(running.url)
        begun = self._wait_for_load(live)
        progress.stage("warming up")
        self._watch(begun + self.options.warm_up_s, begun, sampler, live, progress)
        self._work_off(begun, sampler, live, progress)
        try:
            self._measure(running, sampler, live, progress)
        except BaseException:
            self.marks.cut_short(_sessions(sampler))
            raise
        progress.stage("draining")
        # Locust may cut off a request that begins as it ends: not one that counts.
        time.sleep(END_MARGIN_S)
        self._drain(locust)

    def _measure(
        self, running: Running, sampler: ActivitySampler, live: LiveFigures, progress: Progress
    ) -> None:
        marks = self.marks
        marks.from_ = time.time()
        marks.to = marks.from_ + self.options.duration_s
        marks.counts["sessions_from"] = _sessions(sampler)
        before = self._pool_events(running)
        progress.stage("measuring")
        self._watch(marks.to, marks.from_, sampler, live, progress)
        self._count_window(running, sampler, before)

    def _work_off(
        self, begun: float, sampler: ActivitySampler, live: LiveFigures, progress: Progress
    ) -> None:
        """Go on warming up while requests wait, as they do for cold starts.

        A target that cannot keep up is never steady; it gets the same time as the others.
        """
        latest = begun + self.options.warm_up_s + LONGER_WARM_UP_S
        while not live.is_steady and time.time() < latest:
            self._watch(min(latest, time.time() + 0.25), begun, sampler, live, progress)

    def _load_of(self, target: Target) -> Load:
        options = self.options
        return Load(
            locustfile=self.launcher.root / target.locustfile,
            level=self.level,
            warm_up_s=options.warm_up_s,
            duration_s=options.duration_s,
            requests=self.folder.path / Request.FILE,
        )

    def _wait_for_load(self, live: LiveFigures) -> float:
        """Return the moment of the first request: Locust takes a second to start."""
        deadline = time.monotonic() + 30
        while live.update() == 0:
            self._check()
            if time.monotonic() > deadline:
                log = self.launcher.logs / f"{self._locust}.log"
                raise LoadFailedError(f"Locust sent no request within 30 s; see {log}")
            time.sleep(0.05)
        return live.first

    def _watch(
        self,
        until: float,
        since: float,
        sampler: ActivitySampler,
        live: LiveFigures,
        progress: Progress,
    ) -> None:
        while (left := until - time.time()) > 0:
            self._check()
            live.update()
            latest = sampler.latest
            progress.figures(
                done=min(1.0, (time.time() - since) / max(0.001, until - since)),
                per_s=live.per_s,
                p95_ms=live.p95_ms,
                connections=len(_of_target(latest)) if latest is not None else 0,
            )
            time.sleep(min(0.25, left))

    def _check(self) -> None:
        """Look whether everything still runs and writes.

        Raises:
            LocalStackError: something has ended; the message names it.
            OSError: rows could not be written.
        """
        if self._write_failure is not None:
            raise self._write_failure
        self.launcher.check()

    def _drain(self, locust: Supervised) -> None:
        """Let the requests in flight be answered; Locust sends no more and ends by itself."""
        with suppress(ProcessLookupError):
            os.kill(locust.pid, signal.SIGTERM)
        deadline = time.monotonic() + _DRAIN_S
        while (status := locust.process.exit_status) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if status:
            raise LoadFailedError(f"Locust ended with {exit_words(status)}; {end_of(locust.log)}")
        self.launcher.supervisor.stop(self._locust)

    # -- the witnesses ----------------------------------------------------------------------

    def _count_window(
        self, running: Running, sampler: ActivitySampler, before: tuple[int, int] | None
    ) -> None:
        counts = self.marks.counts
        counts["sessions_to"] = _sessions(sampler)
        after = self._pool_events(running)
        if before is not None and after is not None:
            counts["pool_opened"] = after[0] - before[0]
            counts["pool_closed"] = after[1] - before[1]

    def _pool_events(self, running: Running) -> tuple[int, int] | None:
        """Return the connections that the pool has opened and closed, if the target says."""
        path = running.target.metrics
        if path is None:
            return None
        text = self._ask(running, path).decode()
        return _metric(text, "opened"), _metric(text, "closed")

    def _ask_the_fleet(self, running: Running) -> None:
        if running.target.kind != "lambda":
            return
        stats = json.loads(self._ask(running, "/_fleet/stats"))
        self.marks.counts |= {
            # Each was a new process, whether a request waited for it or not.
            "cold_starts": stats["execution_environments_started"],
            "warm_invokes": stats["warm"],
            "throttled": stats["throttled"],
            "execution_environments": stats["execution_environments_started"],
        }
        invokes = self.folder.path / InvokeRow.FILE
        invokes.write_bytes(self._ask(running, "/_fleet/invokes.csv"))

    def _ask(self, running: Running, path: str) -> bytes:
        try:
            return _get(running.url + path)
        except (OSError, http.client.HTTPException) as error:
            self.launcher.check()
            raise ProcessEndedError(
                f"{running.target.name} runs but does not answer {path}: {error}"
            ) from None

    @contextmanager
    def _sampling(self) -> Iterator[ActivitySampler]:
        url, interval_s = self.launcher.stack.monitor_url, self.options.interval_s
        with (
            self.folder.writer(ConnectionRow) as connections,
            self.folder.writer(SampleRow) as samples,
        ):

            def keep(sample: Sample) -> None:
                backends = _of_target(sample)
                with self._noting_failure():
                    samples.write(_sample_row(sample, len(backends)))
                    for backend in backends:
                        connections.write(_connection_row(sample.time, backend))

            with ActivitySampler(url, interval_s=interval_s, sink=keep) as sampler:
                yield sampler

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """Tell the main thread, which waits for the end of the measured time."""
        try:
            yield
        except OSError as error:
            self._write_failure = error
            raise

    @contextmanager
    def _measuring_usage(self, running: Running) -> Iterator[None]:
        ended = threading.Event()
        with self.folder.writer(ProcessRow) as rows:
            thread = threading.Thread(
                target=self._measure_usage, args=(running, rows, ended), name="usage", daemon=True
            )
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

    def _measure_usage(
        self, running: Running, rows: RowWriter[ProcessRow], ended: threading.Event
    ) -> None:
        while self._write_failure is None and not ended.wait(USAGE_EVERY_S):
            now = time.time()
            used = {role: Usage.of_tree(pid) for role, pid in self._pids(running).items()}
            # Alone: everything that runs is this process's descendant.
            used["sampler"] = Usage(
                processes=1, rss_bytes=_rss(os.getpid()), cpu_s=time.process_time()
            )
            # Noted, the failure has done its work here; a thread has nobody to raise it to.
            with suppress(OSError), self._noting_failure():
                for role, of_role in used.items():
                    rows.write(_process_row(now, role, of_role))

    def _pids(self, running: Running) -> dict[str, int]:
        pids = {"target": running.process.pid, **self.launcher.stack.pids}
        return pids if self._load_pid is None else {**pids, "load": self._load_pid}


def _of_target(sample: Sample) -> tuple[Backend, ...]:
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


def _sessions(sampler: ActivitySampler) -> int | None:
    return None if sampler.latest is None else sampler.latest.sessions


def _metric(text: str, word: str) -> int:
    """Sum the Prometheus samples of `poolkit_pool_<word>_total`."""
    name = f"poolkit_pool_{word}_total"
    lines = [line for line in text.splitlines() if line.startswith(name)]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


def _get(url: str) -> bytes:
    # A proxy set in the environment has no business on the loopback address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        body: bytes = answer.read()
    return body
