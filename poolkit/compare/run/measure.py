"""One measurement: start the target, warm it up, measure, stop it, count left-over connections.

Every observation goes into the folder of the measurement as raw rows (docs/results.md).
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.compare.plan.plan import pool_size_within
from poolkit.compare.results.run_folder import HoldRow, InvokeRow, PoolRow, Request, Window
from poolkit.compare.results.target_result import LOAD
from poolkit.compare.results.wording import count
from poolkit.compare.run.attribution import Attribution, pgappname
from poolkit.compare.run.database_guard import DatabaseGuard
from poolkit.compare.run.evidence import evidence_of
from poolkit.compare.run.hold_rows import begin_window, between, read_holds, read_pools
from poolkit.compare.run.hosts import inherited_variables
from poolkit.compare.run.load import COLD_STARTS_S, FIRST_S, LONGER_WARM_UP_S, LiveFigures, Load
from poolkit.compare.run.samplers import Samplers
from poolkit.compare.run.window_figures import WindowFigures
from poolkit.errors import (
    ConfigurationError,
    LoadFailedError,
    NotReadyError,
    ProcessEndedError,
    ServerStartError,
)
from poolkit.local.readiness import end_of, exit_text
from poolkit.thresholds import should_abort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from poolkit.activity.server import ActivitySampler
    from poolkit.compare.plan.options import Options
    from poolkit.compare.plan.plan import PlannedStep
    from poolkit.compare.results.run_folder import Evidence, PlannedTarget, TargetFolder
    from poolkit.compare.run.hosts import Host, Running
    from poolkit.compare.run.progress import Progress
    from poolkit.local.network import NetworkFigures
    from poolkit.local.processes import Supervised
    from poolkit.thresholds import Threshold

MISSED_SHARE = 0.05
"""The share of missed samples from which a report warns."""
LOOK_EVERY_S = 0.25
END_MARGIN_S = 0.4
"""A request that was in flight this short a time ago may have had no chance of an answer."""
_LOCUST = "locust@"
"""How the names of all processes of the load generator begin."""
_FAILURES = (ProcessEndedError, ServerStartError, NotReadyError, LoadFailedError)
"""The errors of one target or its load, after which the others are still measured."""
_BEGIN_S = 60.0
"""Seconds that Locust has for its first request."""
_ANSWER_S = 20.0
"""Seconds that a target has to answer a question about itself."""
_AFTER_COLD_START_S = 3.0
"""Seconds after a cold start in which the requests that waited for it are answered."""
_DRAIN_S = 20.0
"""Seconds for requests in flight when the load ends; Locust itself gives up after 15."""
_LEAVE_S = 15.0
"""Seconds that a stopped target's backends may take to end before they count as left over."""
_SETTLE_S = 5.0
"""Seconds after which no further client connects to a database of the run's own."""
_SETTLE_REMOTE_S = 0.5
"""The same on a remote database: others may connect all the time, so waiting is of no use."""


@dataclass(kw_only=True)
class MeasurementState:
    """The known moments and counts of a measurement; a run that is cut short guesses none."""

    started: float = 0.0
    warm_from: float = 0.0
    from_: float = 0.0
    to: float = 0.0
    aborted_by: str = ""
    failure: str = ""
    """Why the target could not be measured, or not to the end."""
    counts: dict[str, Any] = field(default_factory=dict)
    """Other fields of the window, by name."""
    warnings: list[str] = field(default_factory=list)

    @property
    def is_measured(self) -> bool:
        """True if there is a measured time, even a shortened one."""
        return self.to > self.from_ > 0

    def cut_short(self, sessions: int | None) -> None:
        """End the measured time now, with the server's present count of sessions."""
        self.to = max(self.from_, min(self.to, time.time() - END_MARGIN_S))
        self.counts.setdefault("sessions_to", sessions)

    def window(self, *, partial: bool, planned: PlannedTarget) -> Window:
        """Return the window as of now, with the limits of the target."""
        now = time.time()
        return Window(
            started=self.started or now,
            warm_from=self.warm_from or now,
            from_=min(self.from_ or now, now),
            to=min(self.to or now, now),
            stopped=now,
            partial=partial or bool(self.aborted_by or self.failure),
            instances=planned.instances_max,
            ceiling=planned.ceiling,
            ceiling_reason=planned.ceiling_reason,
            warnings=tuple(self.warnings),
            aborted_by=self.aborted_by,
            failure=self.failure,
            **self.counts,
        )


class PoolEvents(NamedTuple):
    """Connections that a target's pools have opened and closed."""

    opened: int
    closed: int


class _FleetStats(NamedTuple):
    """The counts of the local Lambda fleet since its start."""

    started: int
    warm: int
    throttled: int
    dropped: int
    """Invokes whose records the fleet no longer has."""
    starting: int
    """Execution environments in their init phase now."""


@dataclass(frozen=True, kw_only=True)
class _UnderLoad:
    """A target under load, and its observers."""

    running: Running
    sampler: ActivitySampler
    live: LiveFigures
    progress: Progress


class Measurement:
    """The measurement of one target at one level.

    Args:
        step: the target, its limits and the load.
        options: the times.
        host: the host of the target.
        folder: the folder of its rows.
        thresholds: a broken one of them may end it early.
    """

    def __init__(
        self,
        step: PlannedStep,
        options: Options,
        host: Host,
        folder: TargetFolder,
        thresholds: tuple[Threshold, ...] = (),
    ) -> None:
        self.step = step
        self.state = MeasurementState()
        self._options = options
        self._host = host
        self._folder = folder
        self._aborting = tuple(t for t in thresholds if t.abort and t.applies_to(step.target.name))
        self._samplers = Samplers(folder)
        # Also the names of their logs.
        self._target, self._locust = step.label, f"{_LOCUST}{step.label}"
        self._guard: DatabaseGuard | None = None
        self._live: LiveFigures | None = None
        self._prepared: tuple[Load, Supervised] | None = None

    # -- the target -------------------------------------------------------------------------

    def run(self, progress: Progress, prepare_next: Callable[[], None]) -> Window:
        """Measure, and stop what was started for this target.

        Args:
            progress: shows the state.
            prepare_next: is called when the load has ended.

        Returns:
            Its window; with a `failure` if the target or its load failed.

        Raises:
            LocalStackError: a server ended, or a program cannot be run.
            WrongDatabaseError: the target takes its database from elsewhere.
            DatabaseUnavailable, MonitoringNotAllowed: the server cannot be sampled.
            OSError: the folder cannot be written to.
        """
        state, host, partial = self.state, self._host, True
        state.counts["is_own_server"] = host.is_own_server
        if self.step.target.through == "pgbouncer" and host.is_own_server:
            state.counts["pooler_ceiling"] = pool_size_within(self._options.usable_connections)
        attribution = Attribution(
            preset=self.step.planned.preset if self.step.planned.is_known_by_preset else None,
            # A deployed target does not have the variables of this run.
            pgappname=(
                host.environ(self.step.target)["PGAPPNAME"] if self.step.planned.url is None else ""
            ),
            marks=self.step.planned.marks,
            is_own_server=host.is_own_server,
            target_pids=self._target_pids,
            # Also that of the next target, which is prepared while this one ends.
            load_pids=lambda: host.supervisor.pids(lambda name: name.startswith(_LOCUST)),
            is_running=self.step.planned.url is not None,
        )
        before = host.network_figures(self.step.target)
        try:
            with self._samplers.connections(
                host.monitor_url, self._options.interval_s, attribution
            ) as sampler:
                self._run(sampler, attribution, progress, prepare_next)
            partial = False
        except _FAILURES as error:
            # A target also fails without its database: then that is the error to report.
            host.check_servers()
            state.failure = str(error)
        finally:
            state.counts["evidence"] = self._evidence()
            # A network that has ended is an error of its own.
            with suppress(ServerStartError):
                after = host.network_figures(self.step.target)
                state.warnings += _notes_on_tls(before, after)
            window = state.window(partial=partial, planned=self.step.planned)
            self._folder.write_window(window)
        return window

    def _run(
        self,
        sampler: ActivitySampler,
        attribution: Attribution,
        progress: Progress,
        prepare_next: Callable[[], None],
    ) -> None:
        state, host, step = self.state, self._host, self.step
        settle_s = _SETTLE_S if step.planned.url is None else _SETTLE_REMOTE_S
        state.started = time.time()
        try:
            # Locust opens no connection before `begin`.
            load, locust = self._prepared or self._start_locust()
            state.counts["sessions_before"] = sampler.settled_sessions(
                still_s=0.2, timeout_s=settle_s
            )
            attribution.begin(sampler.latest)
            running = host.start(step.target, step.planned.instances_max or 1, step.label)
            if self._is_guarded:
                self._guard = DatabaseGuard(
                    name=step.target.name,
                    pids=self._target_pids,
                    load_pid=locust.pid,
                    attribution=attribution,
                    sampler=sampler,
                    sessions_before=state.counts["sessions_before"],
                    database_urls=host.database_urls,
                    is_own_server=host.is_own_server,
                    agreed=self._options.agreed,
                    names_database=lambda: host.names_database(running),
                )
            # Before the load, so that a wrong path is found early.
            self._pool_events(running)
            pids = {} if running.process is None else {"target": running.process.pid}
            pids["load"] = locust.pid
            with self._samplers.usage(lambda: {**pids, **host.pids}):
                self._live = live = LiveFigures(load.requests, step.level)
                under_load = _UnderLoad(
                    running=running, sampler=sampler, live=live, progress=progress
                )
                self._load(load, locust, under_load)
            progress.stage("stopping")
            prepare_next()
            state.counts["sessions_after"] = sampler.settled_sessions(
                still_s=0.2, timeout_s=settle_s
            )
            self._read_fleet(running)
        finally:
            # The load ends first, so that its requests in flight are answered.
            with ExitStack() as ending:
                for name in (self._target, self._locust):
                    if name in host.supervisor.names:
                        ending.callback(host.supervisor.stop, name)
        host.release(step.target)
        if running.process is not None:
            # The target's connections that stay open; None if they cannot be counted.
            samplers = self._samplers
            sampler.wait_for(lambda _: not (samplers.held and samplers.held.total), _LEAVE_S)
            state.counts["left_over"] = samplers.held and samplers.held.total
        state.warnings += [f"no samples: {gap.reason}" for gap in sampler.gaps]
        expected = (time.time() - state.started) / self._options.interval_s
        if sampler.missed > MISSED_SHARE * expected:
            state.warnings.append(
                f"{sampler.missed} of {expected:.0f} samples were not taken: peaks may be higher"
            )

    @property
    def _is_guarded(self) -> bool:
        """Whether the target's use of its database is checked: a deployed one is not seen enough."""
        return self.step.planned.url is None and self.step.target.database

    def _target_pids(self) -> list[int]:
        return self._host.supervisor.pids(lambda name: name == self._target)

    def _evidence(self) -> Evidence | None:
        """Return what the logs say about a failed load; None if half of it succeeded."""
        live, logs, target = self._live, self._host.logs, self._target
        # The message about a target that did not start quotes its log.
        if live is None or (not self.state.failure and live.answered * 2 >= live.count):
            return None
        of_environments = (logs / f"{target}-execution-environments").glob("*.log")
        return evidence_of(
            logs.parent,
            logs / f"{self._locust}.log",
            [logs / f"{target}.log", *sorted(of_environments)],
            live.first_failure,
        )

    # -- the load ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """Start this target's Locust early; it waits until the measurement begins.

        Raises:
            LocalStackError: it cannot be started.
            OSError: the folder cannot be written to.
        """
        self._folder.path.mkdir(parents=True, exist_ok=True)
        self._prepared = self._start_locust()

    def _start_locust(self) -> tuple[Load, Supervised]:
        target = self.step.target
        load = Load(
            locustfile=self._host.root / target.locustfile,
            level=self.step.level,
            warm_up_s=self._options.warm_up_s,
            duration_s=self._options.duration_s,
            requests=self._folder.path / Request.FILE,
            begins_alone=self._is_guarded,
        )
        environ = {**self._host.environ(target), **load.environ}
        # The load generator is not an instance of the target.
        environ.pop("POOLKIT_TARGET", None)
        environ["PGAPPNAME"] = pgappname(LOAD)
        started = self._host.supervisor.start(
            self._locust,
            load.command,
            environ=environ,
            inherited=inherited_variables(),
            cwd=self._host.root,
        )
        return load, started

    def _load(self, load: Load, locust: Supervised, under_load: _UnderLoad) -> None:
        """Warm up, measure, and wait for the requests in flight."""
        self._warm_up(load, under_load)
        try:
            self._measure(under_load)
        except BaseException:
            self.state.cut_short(_sessions(under_load.sampler))
            raise
        under_load.progress.stage("draining")
        # Locust may cut off a request that begins as it ends; it must not be a counted one.
        time.sleep(END_MARGIN_S)
        with suppress(ProcessLookupError):
            os.kill(locust.pid, signal.SIGTERM)
        deadline = time.monotonic() + _DRAIN_S
        while (status := locust.process.exit_status) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if status:
            raise LoadFailedError(f"Locust ended with {exit_text(status)}; {end_of(locust.log)}")
        self._host.supervisor.stop(self._locust)

    def _warm_up(self, load: Load, under_load: _UnderLoad) -> None:
        state, options, live, guard = self.state, self._options, under_load.live, self._guard
        state.warm_from = time.time()
        is_alone = guard is not None and not guard.is_used
        if guard is not None:
            guard.refuse_foreign()
            if not is_alone:
                load.go_on()
        load.begin(under_load.running.url)
        deadline = time.monotonic() + _BEGIN_S
        while live.update() == 0:
            self._check()
            if time.monotonic() > deadline:
                raise LoadFailedError(f"Locust sent no request within {_BEGIN_S:g} s")
            time.sleep(0.05)
        if guard is not None and is_alone:
            self._check_database(guard, live)
            load.go_on()
        under_load.progress.stage("warming up")
        begin = time.time()
        self._watch(begin + options.warm_up_s, begin, under_load)
        # Longer while requests wait for cold starts. A target that cannot keep up is never
        # steady; it gets the same time as the others.
        latest = begin + options.warm_up_s + LONGER_WARM_UP_S
        most = begin + options.warm_up_s + COLD_STARTS_S
        while not live.is_steady and time.time() < latest:
            self._watch(min(latest, time.time() + LOOK_EVERY_S), begin, under_load)
            if self._has_cold_starts(under_load.running):
                latest = max(latest, min(most, time.time() + _AFTER_COLD_START_S))
        if guard is not None:
            guard.refuse_foreign()

    def _check_database(self, guard: DatabaseGuard, live: LiveFigures) -> None:
        """Check by the first requests whether the target uses its database.

        Raises:
            WrongDatabaseError: it does not.
        """
        deadline = time.monotonic() + FIRST_S
        while not guard.is_used and time.monotonic() < deadline:
            self._check()
            live.update()
            guard.check(live.answered)
            time.sleep(0.05)
        guard.check(live.answered, at_end=True)

    def _measure(self, under_load: _UnderLoad) -> None:
        state, sampler = self.state, under_load.sampler
        if under_load.running.holds is not None:
            begin_window(under_load.running.holds)
        state.from_ = time.time()
        state.to = state.from_ + self._options.duration_s
        state.counts["sessions_from"] = _sessions(sampler)
        before = self._pool_events(under_load.running)
        running = under_load.running
        held_before = None if running.holds is None else read_holds(running.holds)
        under_load.progress.stage("measuring")
        aborts = self._aborts(under_load) if self._aborting else None
        self._watch(state.to, state.from_, under_load, aborts)
        state.counts["sessions_to"] = _sessions(sampler)
        held_after = None
        if running.holds is not None:
            held_after = read_holds(running.holds)
            if pools := read_pools(running.holds, self._host.ports):
                with self._folder.writer(PoolRow) as write_pool:
                    for pool in pools:
                        write_pool(pool)
        if (rows := between(held_before, held_after)) is not None:
            with self._folder.writer(HoldRow) as write_row:
                for row in rows:
                    write_row(row)
        most = self.step.planned.instances_max
        engines = self._host.engine_ceiling(under_load.running, most)
        if engines is not None:
            state.counts["engine_ceiling"] = engines.connections
            state.counts["engine_ceiling_reason"] = engines.reason
            state.warnings += engines.notes
        after = self._pool_events(under_load.running)
        if before is not None and after is not None:
            state.counts["pool_opened"] = after.opened - before.opened
            state.counts["pool_closed"] = after.closed - before.closed

    def _aborts(self, under_load: _UnderLoad) -> Callable[[], bool]:
        """Return the check whether a threshold ends the measured time."""
        state, planned, running = self.state, self.step.planned, under_load.running
        figures = WindowFigures(
            state.from_,
            state.to,
            target=planned.name,
            max_connections=planned.max_connections or self._options.max_connections,
            sessions=state.counts["sessions_from"],
            selectors=[each.selector for each in self._aborting if each.selector is not None],
        )
        under_load.live.window = figures
        self._samplers.listener = figures.take_sample
        counts_cold_starts = (
            any(threshold.metric == "lambda.cold_starts" for threshold in self._aborting)
            and running.process is not None
            and running.target.kind == "lambda"
        )
        begin = self._fleet_stats(running).started if counts_cold_starts else 0

        def aborts() -> bool:
            now = time.time()
            cold_starts = None
            if counts_cold_starts:
                cold_starts = self._fleet_stats(running).started - begin
            so_far = figures.so_far(now, cold_starts=cold_starts)
            verdict = should_abort(self._aborting, planned.name, so_far, now - state.from_)
            if verdict is None:
                return False
            state.aborted_by = verdict.outcome
            state.to = now
            return True

        return aborts

    def _watch(
        self,
        until: float,
        since: float,
        under_load: _UnderLoad,
        aborts: Callable[[], bool] | None = None,
    ) -> None:
        """Show the figures until a moment, or until `aborts` returns True."""
        live = under_load.live
        while (left := until - time.time()) > 0:
            self._check()
            live.update()
            held = self._samplers.held
            under_load.progress.figures(
                done=min(1.0, (time.time() - since) / max(0.001, until - since)),
                per_s=live.per_s,
                p95_ms=live.p95_ms,
                connections=None if held is None else held.total,
            )
            if aborts is not None and aborts():
                return
            time.sleep(min(LOOK_EVERY_S, left))

    def _check(self) -> None:
        """Check that every process still runs and every row could be written.

        Raises:
            LocalStackError: a process has ended; the message names it.
            OSError: rows could not be written.
        """
        if self._samplers.failure is not None:
            raise self._samplers.failure
        self._host.check()

    # -- the target's own reports ------------------------------------------------------------

    def _pool_events(self, running: Running) -> PoolEvents | None:
        """Return the pool's own counts, if the target has metrics.

        Of a deployed target any one of several instances may answer, so its counts are unknown.
        """
        path = running.target.metrics
        if path is None or running.process is None:
            return None
        lines = self._get(running, path).decode().splitlines()
        opened, closed = (
            sum(
                float(line.rpartition(" ")[2])
                for line in lines
                if line.startswith(f"poolkit_pool_{event}_total")
            )
            for event in PoolEvents._fields
        )
        return PoolEvents(int(opened), int(closed))

    def _fleet_stats(self, running: Running) -> _FleetStats:
        stats = json.loads(self._get(running, "/_fleet/stats"))
        return _FleetStats(
            started=stats["execution_environments_started"],
            warm=stats["warm"],
            throttled=stats["throttled"],
            dropped=stats["records_dropped"],
            starting=stats["execution_environments"]["init"],
        )

    def _has_cold_starts(self, running: Running) -> bool:
        """Return whether execution environments of a local Lambda function are starting."""
        if running.target.kind != "lambda" or running.process is None:
            return False
        return self._fleet_stats(running).starting > 0

    def _read_fleet(self, running: Running) -> None:
        """Store the invokes of a local Lambda function, and their counts."""
        if running.target.kind != "lambda" or running.process is None:
            return
        stats = self._fleet_stats(running)
        self.state.counts |= {
            # Each was a new process, even if no request waited for it.
            "cold_starts": stats.started,
            "warm_invokes": stats.warm,
            "throttled": stats.throttled,
            "execution_environments": stats.started,
        }
        invokes = self._folder.path / InvokeRow.FILE
        invokes.write_bytes(self._get(running, "/_fleet/invokes.csv"))
        if stats.dropped:
            self.state.warnings.append(
                f"{InvokeRow.FILE} lacks {stats.dropped} of the oldest invokes, which the "
                "fleet no longer has; the counts include them"
            )

    def _get(self, running: Running, path: str) -> bytes:
        # A proxy from the environment must not see requests to the loopback address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(running.url + path, timeout=_ANSWER_S) as answer:
                body: bytes = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._host.check()
            message = f"{running.target.name} runs but does not answer {path}: {error}"
            # An answer that refuses the path: the table of the target is wrong.
            is_wrong = isinstance(error, urllib.error.HTTPError)
            raise (ConfigurationError if is_wrong else ProcessEndedError)(message) from None
        return body


def _notes_on_tls(before: NetworkFigures | None, after: NetworkFigures | None) -> Iterator[str]:
    """Yield what a target's own settings made of the TLS of the distance."""
    if before is None or after is None:
        return
    if without := after.without_tls - before.without_tls:
        yield (
            f"{count(without, 'connection')} used no TLS: the target's own settings ask for none "
            "(sslmode or ssl), or a refused connect was tried again without it; such a connect has "
            "fewer round trips"
        )
    if failed := after.failed_tls - before.failed_tls:
        yield (
            f"{count(failed, 'connect')} failed in the handshake of TLS: the target trusts another "
            "certificate; leave sslrootcert to the run's PGSSLROOTCERT, or measure with --no-tls"
        )


def _sessions(sampler: ActivitySampler) -> int | None:
    return None if sampler.latest is None else sampler.latest.sessions
