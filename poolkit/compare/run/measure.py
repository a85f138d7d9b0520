"""One target under one load: have it there, warm it up, measure, leave it, look what is left.

Everything seen goes into the folder of the measurement as raw rows (docs/results.md); nothing
is computed here but what the next moment needs.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.compare.results.run_folder import InvokeRow, Request
from poolkit.compare.run.live_figures import LiveFigures
from poolkit.compare.run.load import LONGER_WARM_UP_S, Load
from poolkit.compare.run.marks import END_MARGIN_S, Marks
from poolkit.compare.run.running import inherited_variables
from poolkit.compare.run.window_figures import WindowFigures
from poolkit.compare.run.witnesses import Witnesses, of_target
from poolkit.errors import LoadFailedError, ProcessEndedError
from poolkit.local.readiness import end_of, exit_text
from poolkit.thresholds import should_abort

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit.activity.server import ActivitySampler
    from poolkit.compare.plan.options import Options
    from poolkit.compare.plan.plan import PlannedStep
    from poolkit.compare.results.run_folder import TargetFolder, Window
    from poolkit.compare.run.place import Place
    from poolkit.compare.run.progress import Progress
    from poolkit.compare.run.running import Running
    from poolkit.local.processes import Supervised
    from poolkit.thresholds import Threshold

MISSED_SHARE = 0.05
"""The share of samples that may be missing before a report says so."""
LOOK_EVERY_S = 0.25
_BEGIN_S = 60.0
"""Seconds that Locust has for its first request."""
_ANSWER_S = 20.0
"""Seconds that a target has to say something about itself."""
_DRAIN_S = 20.0
"""Seconds for requests in flight when the load ends; Locust itself gives up after 15."""
_LEAVE_S = 15.0
"""Seconds that a stopped target's backends may take to end before they count as left over."""
_SETTLE_S = 5.0
"""Seconds within which nobody connects to a database of our own any more."""
_SETTLE_ELSEWHERE_S = 0.5
"""The same where others may connect all the time, so that waiting is of no use."""


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """What is there while the load runs."""

    running: Running
    sampler: ActivitySampler
    live: LiveFigures
    progress: Progress


class Measurement:
    """The measuring of one target at one load.

    Args:
        step: the target, its limits and the load.
        options: for how long.
        place: where the target runs.
        folder: where its rows go.
        thresholds: those that may end it early.
    """

    def __init__(
        self,
        step: PlannedStep,
        options: Options,
        place: Place,
        folder: TargetFolder,
        thresholds: tuple[Threshold, ...] = (),
    ) -> None:
        self.step = step
        self.marks = Marks()
        self._options = options
        self._place = place
        self._folder = folder
        self._name = step.planned.target.name
        self._aborting = tuple(t for t in thresholds if t.abort and t.applies_to(self._name))
        self._witnesses = Witnesses(folder)
        # Also the name of its log.
        self._locust = f"locust@{step.label}"
        self._prepared: tuple[Load, Supervised] | None = None
        self._load_pid: int | None = None

    def prepare(self) -> None:
        """Start this target's Locust, which waits: a second less when its turn has come.

        Raises:
            LocalStackError: it cannot be started.
            OSError: the folder cannot be written to.
        """
        self._folder.path.mkdir(parents=True, exist_ok=True)
        self._prepared = self._start_load()

    def run(self, progress: Progress, prepare_next: Callable[[], None]) -> Window:
        """Measure, and leave nothing of this target running that was started for it.

        Args:
            progress: is told how far it is.
            prepare_next: is called when the load has ended.

        Raises:
            LocalStackError: the target, Locust or a server did not start, or ended by itself.
            LoadFailedError: Locust did not do its work.
            DatabaseUnavailable, MonitoringNotAllowed: the server cannot be watched.
            OSError: the folder cannot be written to.
        """
        partial = True
        url, interval_s = self._place.monitor_url, self._options.interval_s
        try:
            with self._witnesses.sampling(url, interval_s) as sampler:
                self._run(sampler, progress, prepare_next)
            partial = False
        finally:
            window = self.marks.window(partial=partial, planned=self.step.planned)
            self._folder.write_window(window)
        return window

    def _run(
        self, sampler: ActivitySampler, progress: Progress, prepare_next: Callable[[], None]
    ) -> None:
        marks = self.marks
        marks.started = time.time()
        try:
            # Locust opens no connection before it is told to begin.
            load, locust = self._prepared or self._start_load()
            marks.counts["sessions_before"] = self._settled(sampler)
            running = self._place.enter(self.step.planned, self.step.label)
            # Before there is load, so that a wrong path is found early.
            self._pool_events(running)
            with self._witnesses.measuring_usage(lambda: self._pids(running)):
                live = LiveFigures(load.requests, self.step.level)
                scene = _Scene(running=running, sampler=sampler, live=live, progress=progress)
                self._load(load, locust, scene)
            progress.stage("stopping")
            prepare_next()
            marks.counts["sessions_after"] = self._settled(sampler)
            self._ask_the_fleet(running)
        finally:
            self._stop_all()
        self._look_what_is_left(running, sampler)

    def _settled(self, sampler: ActivitySampler) -> int | None:
        timeout_s = _SETTLE_S if self.step.planned.url is None else _SETTLE_ELSEWHERE_S
        return sampler.settled_sessions(still_s=0.2, timeout_s=timeout_s)

    def _look_what_is_left(self, running: Running, sampler: ActivitySampler) -> None:
        self._place.leave(running.target)
        if running.process is not None:
            self.marks.counts["left_over"] = sampler.wait_until_no_backends(
                f"{self.step.planned.preset.target}:", timeout_s=_LEAVE_S
            )
        self.marks.warnings += [f"no samples: {gap.reason}" for gap in sampler.gaps]
        self.marks.warnings += self._missed(sampler)

    def _missed(self, sampler: ActivitySampler) -> list[str]:
        """Say so where the sampler was late so often that a peak may have gone unseen."""
        moments = (time.time() - self.marks.started) / self._options.interval_s
        if sampler.missed <= MISSED_SHARE * moments:
            return []
        return [f"{sampler.missed} of {moments:.0f} samples were not taken: peaks may be higher"]

    def _stop_all(self) -> None:
        """End the load first, so that what it has in flight is answered."""
        supervisor = self._place.supervisor
        with ExitStack() as ending:
            for name in (self.step.label, self._locust):
                if name in supervisor.names:
                    ending.callback(supervisor.stop, name)

    # -- the load ---------------------------------------------------------------------------

    def _start_load(self) -> tuple[Load, Supervised]:
        """Start Locust, which waits until it is told to begin."""
        target = self.step.planned.target
        load = Load(
            locustfile=self._place.root / target.locustfile,
            level=self.step.level,
            warm_up_s=self._options.warm_up_s,
            duration_s=self._options.duration_s,
            requests=self._folder.path / Request.FILE,
        )
        environ = {**self._place.environ(target), **load.environ}
        # The load generator is no instance of the target.
        environ.pop("POOLKIT_TARGET")
        started = self._place.supervisor.start(
            self._locust,
            load.command,
            environ=environ,
            inherited=inherited_variables(),
            cwd=self._place.root,
        )
        self._load_pid = started.pid
        return load, started

    def _load(self, load: Load, locust: Supervised, scene: _Scene) -> None:
        self.marks.warm_from = time.time()
        load.begin(scene.running.url)
        begun = self._wait_for_load(scene.live)
        scene.progress.stage("warming up")
        self._watch(begun + self._options.warm_up_s, begun, scene)
        self._work_off(begun, scene)
        try:
            self._measure(scene)
        except BaseException:
            self.marks.cut_short(_sessions(scene.sampler))
            raise
        scene.progress.stage("draining")
        # Locust may cut off a request that begins as it ends: not one that counts.
        time.sleep(END_MARGIN_S)
        self._drain(locust)

    def _measure(self, scene: _Scene) -> None:
        marks, sampler = self.marks, scene.sampler
        marks.from_ = time.time()
        marks.to = marks.from_ + self._options.duration_s
        marks.counts["sessions_from"] = _sessions(sampler)
        before = self._pool_events(scene.running)
        scene.progress.stage("measuring")
        ends = self._breaks_a_threshold(scene) if self._aborting else None
        self._watch(marks.to, marks.from_, scene, ends)
        marks.counts["sessions_to"] = _sessions(sampler)
        self._count_pool_events(scene.running, before)

    def _breaks_a_threshold(self, scene: _Scene) -> Callable[[], bool]:
        """Return what tells whether a threshold ends the measured time, and which."""
        marks, planned = self.marks, self.step.planned
        figures = WindowFigures(
            marks.from_,
            marks.to,
            backends=planned.preset.target,
            max_connections=planned.max_connections,
            sessions=marks.counts["sessions_from"],
        )
        scene.live.window = figures
        self._witnesses.listener = figures.take_sample
        cold_starts = self._cold_starts_since_now(scene.running)

        def look() -> bool:
            now = time.time()
            so_far = figures.so_far(now, cold_starts=cold_starts())
            verdict = should_abort(self._aborting, self._name, so_far, now - marks.from_)
            if verdict is None:
                return False
            marks.aborted_by = verdict.outcome
            marks.to = now
            return True

        return look

    def _cold_starts_since_now(self, running: Running) -> Callable[[], int | None]:
        """Return what asks the fleet, if a threshold wants to know."""
        asked = any(t.metric == "lambda.cold_starts" for t in self._aborting)
        if not asked or running.process is None or running.target.kind != "lambda":
            return lambda: None
        before = self._started(running)
        return lambda: self._started(running) - before

    def _work_off(self, begun: float, scene: _Scene) -> None:
        """Go on warming up while requests wait, as they do for cold starts.

        A target that cannot keep up is never steady; it gets the same time as the others.
        """
        latest = begun + self._options.warm_up_s + LONGER_WARM_UP_S
        while not scene.live.is_steady and time.time() < latest:
            self._watch(min(latest, time.time() + LOOK_EVERY_S), begun, scene)

    def _wait_for_load(self, live: LiveFigures) -> float:
        """Return the moment of the first request: Locust takes a second to start."""
        deadline = time.monotonic() + _BEGIN_S
        while live.update() == 0:
            self._check()
            if time.monotonic() > deadline:
                log = self._place.logs / f"{self._locust}.log"
                raise LoadFailedError(f"Locust sent no request within {_BEGIN_S:g} s; see {log}")
            time.sleep(0.05)
        return live.first

    def _watch(
        self,
        until: float,
        since: float,
        scene: _Scene,
        ends: Callable[[], bool] | None = None,
    ) -> None:
        """Show what goes on until a moment, or until `ends` says so."""
        while (left := until - time.time()) > 0:
            self._check()
            scene.live.update()
            latest = scene.sampler.latest
            scene.progress.figures(
                done=min(1.0, (time.time() - since) / max(0.001, until - since)),
                per_s=scene.live.per_s,
                p95_ms=scene.live.p95_ms,
                connections=len(of_target(latest)) if latest is not None else 0,
            )
            if ends is not None and ends():
                return
            time.sleep(min(LOOK_EVERY_S, left))

    def _check(self) -> None:
        """Look whether everything still runs and writes.

        Raises:
            LocalStackError: something has ended; the message names it.
            OSError: rows could not be written.
        """
        if self._witnesses.failure is not None:
            raise self._witnesses.failure
        self._place.check()

    def _drain(self, locust: Supervised) -> None:
        """Let the requests in flight be answered; Locust sends no more and ends by itself."""
        with suppress(ProcessLookupError):
            os.kill(locust.pid, signal.SIGTERM)
        deadline = time.monotonic() + _DRAIN_S
        while (status := locust.process.exit_status) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if status:
            raise LoadFailedError(f"Locust ended with {exit_text(status)}; {end_of(locust.log)}")
        self._place.supervisor.stop(self._locust)

    # -- the witnesses ----------------------------------------------------------------------

    def _pids(self, running: Running) -> dict[str, int]:
        pids = self._place.pids
        if running.process is not None:
            pids = {"target": running.process.pid, **pids}
        return pids if self._load_pid is None else {**pids, "load": self._load_pid}

    def _count_pool_events(self, running: Running, before: tuple[int, int] | None) -> None:
        after = self._pool_events(running)
        if before is not None and after is not None:
            self.marks.counts["pool_opened"] = after[0] - before[0]
            self.marks.counts["pool_closed"] = after[1] - before[1]

    def _pool_events(self, running: Running) -> tuple[int, int] | None:
        """Return the connections that the pool has opened and closed, if the target says.

        Where it was deployed, any one of several instances may answer, which says nothing.
        """
        path = running.target.metrics
        if path is None or running.process is None:
            return None
        text = self._ask(running, path).decode()
        return _metric(text, "opened"), _metric(text, "closed")

    def _ask_the_fleet(self, running: Running) -> None:
        if running.target.kind != "lambda" or running.process is None:
            return
        stats = json.loads(self._ask(running, "/_fleet/stats"))
        self.marks.counts |= {
            # Each was a new process, whether a request waited for it or not.
            "cold_starts": stats["execution_environments_started"],
            "warm_invokes": stats["warm"],
            "throttled": stats["throttled"],
            "execution_environments": stats["execution_environments_started"],
        }
        invokes = self._folder.path / InvokeRow.FILE
        invokes.write_bytes(self._ask(running, "/_fleet/invokes.csv"))
        if dropped := stats["records_dropped"]:
            self.marks.warnings.append(
                f"{InvokeRow.FILE} lacks {dropped} of the oldest invokes, which the "
                "fleet did not keep; the counts have them"
            )

    def _started(self, running: Running) -> int:
        stats = json.loads(self._ask(running, "/_fleet/stats"))
        return int(stats["execution_environments_started"])

    def _ask(self, running: Running, path: str) -> bytes:
        try:
            return _get(running.url + path)
        except (OSError, http.client.HTTPException) as error:
            self._place.check()
            raise ProcessEndedError(
                f"{running.target.name} runs but does not answer {path}: {error}"
            ) from None


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
    with opener.open(url, timeout=_ANSWER_S) as answer:
        body: bytes = answer.read()
    return body
