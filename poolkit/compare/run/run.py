"""A whole run: its folder, its servers, each measurement in turn; nothing stays running."""

from __future__ import annotations

import signal
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain, count
from typing import TYPE_CHECKING

from poolkit.activity.server import ActivityConnection
from poolkit.compare.plan.plan import pool_size_within
from poolkit.compare.results import wording
from poolkit.compare.results.run_folder import RunFolder
from poolkit.compare.results.target_result import difference
from poolkit.compare.run.hosts import LocalHost, RemoteHost
from poolkit.compare.run.machine import this_machine, with_network
from poolkit.compare.run.measure import Measurement
from poolkit.compare.run.preparation import prepare_database
from poolkit.errors import ConfigurationError, PoolkitError, StateDirectoryError
from poolkit.local.processes import Supervisor
from poolkit.local.stack import EmbeddedStack, StackNeeds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from poolkit.compare.plan.plan import CheckedPlan
    from poolkit.compare.results.run_folder import Window
    from poolkit.compare.run.hosts import Host
    from poolkit.compare.run.progress import Progress
    from poolkit.project import Project

STATE = ".poolkit"
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
"""Exit statuses as shells report them."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run that ended: its folder, what was measured, and why it ended early if it did."""

    folder: Path
    measured: tuple[str, ...]
    """The measurements with a measured time, even a shortened one."""
    failures: Mapping[str, Window] = field(default_factory=dict)
    """The measurements that failed, by title; the others were made all the same."""
    stopped: int = 0
    """The exit status after Ctrl-C or SIGTERM; 0 without either."""
    failure: Exception | None = None


@dataclass(frozen=True)
class _Done:
    """The measurements so far, as in an `Outcome`."""

    measured: list[str] = field(default_factory=list)
    failures: dict[str, Window] = field(default_factory=dict)


def run(project: Project, plan: CheckedPlan, progress: Progress) -> Outcome:
    """Measure every target of the plan, one after the other, and leave nothing running.

    A target that fails does not keep the others from being measured. Ctrl-C, SIGTERM (where it
    raises SystemExit) and any other failure end the run early: what was measured stays, and the
    target of that moment is marked partial.

    Raises:
        ConfigurationError, StateDirectoryError: the run folder cannot be made.
    """
    folder = RunFolder(_make_folder(project, plan))
    done = _Done()
    stopped = 0
    failure: Exception | None = None
    try:
        _run_all(project, plan, folder, done, progress)
    except KeyboardInterrupt:
        stopped = INTERRUPTED
    except SystemExit:
        stopped = TERMINATED
    except (PoolkitError, ValueError) as error:
        failure = error
    except OSError as error:
        failure = _cannot_write(folder.path, error)
    return Outcome(
        folder=folder.path,
        measured=tuple(done.measured),
        failures=done.failures,
        stopped=stopped,
        failure=failure,
    )


def _make_folder(project: Project, plan: CheckedPlan) -> Path:
    folder = plan.options.out or project.root / STATE / "runs"
    try:
        state_folder(project)
        if plan.options.out is None:
            folder = new_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigurationError(f"{folder} is not empty; name a new folder with --out")
        # An existing folder may lie on a read-only file system.
        (folder / "log").mkdir()
    except OSError as error:
        raise _cannot_write(folder, error) from None
    return folder.resolve()


def state_folder(project: Project) -> Path:
    """Return the folder of the project's runs and servers, which git ignores.

    Raises:
        OSError: it cannot be made.
    """
    folder = project.root / STATE
    folder.mkdir(exist_ok=True)
    ignored = folder / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n")
    return folder


def new_folder(parent: Path) -> Path:
    """Make a folder named after the time; its name is no other run's.

    Raises:
        OSError: it cannot be made.
    """
    stem = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    for name in chain([stem], (f"{stem}-{number}" for number in count(2))):
        with suppress(FileExistsError):
            (parent / name).mkdir(parents=True)
            break
    return parent / name


def _cannot_write(folder: Path, error: OSError) -> StateDirectoryError:
    reason = error.strerror or str(error)
    return StateDirectoryError(
        f"cannot write to {folder}: {reason}; name a folder with room for it with --out"
    )


def _run_all(
    project: Project,
    plan: CheckedPlan,
    folder: RunFolder,
    done: _Done,
    progress: Progress,
) -> None:
    """Make every measurement, and note each in `done`."""
    record, options = plan.record, plan.options
    logs = folder.path / "log"
    folder.write_plan(record)
    with ExitStack() as parts:
        hosts: dict[str, Host] = {}
        if plan.local:
            local = start_stack(parts, project, plan, logs, progress)
            hosts |= {target.name: local for target in plan.local}
            supervisor = local.supervisor
        else:
            supervisor = parts.enter_context(Supervisor(logs))
        for deployed in plan.deployed:
            hosts[deployed.target.name] = RemoteHost(
                root=project.root,
                logs=logs,
                supervisor=supervisor,
                environment=options.environment,
                monitor_url=options.database_url or "",
                url=deployed.url,
            )
        # This also shows early whether the server may be sampled at all.
        with ActivityConnection(next(iter(hosts.values())).monitor_url) as activity:
            version = activity.connect().version
            machine = this_machine(version, project.root, plan.local)
            folder.write_machine(with_network(machine, local.stack) if plan.local else machine)
        every = [
            Measurement(
                step,
                options,
                hosts[step.target.name],
                folder.step(record, of_record),
                plan.thresholds,
            )
            for step, of_record in zip(plan.steps(), record.steps, strict=True)
        ]
        queue = Queue(every)
        while (measurement := queue.next()) is not None:
            title = measurement.step.title
            progress.target(title, queue.number, len(every), measurement.step.brief)
            try:
                window = measurement.run(progress, queue.prepare_next)
            finally:
                if measurement.state.is_measured:
                    done.measured.append(title)
            if window.failure:
                done.failures[title] = window
            progress.finished(title, summary(window))


class Queue:
    """The measurements that are still to be made.

    A level at which a threshold has ended a measurement is the highest for its target from then
    on, in later rounds too. A target that did not start is not started again.
    """

    def __init__(self, every: list[Measurement]) -> None:
        self._pending = deque(every)
        self._present: Measurement | None = None
        self._of = len(every)

    @property
    def number(self) -> int:
        """The number of the present measurement, from 1; those left out have numbers too."""
        return self._of - len(self._pending)

    def next(self) -> Measurement | None:
        """Return the next measurement; None at the end."""
        self._leave_out()
        self._present = self._pending.popleft() if self._pending else None
        return self._present

    def prepare_next(self) -> None:
        """Prepare the next measurement: the load of the present one has ended."""
        self._leave_out()
        if self._pending:
            self._pending[0].prepare()

    def _leave_out(self) -> None:
        """Drop the higher levels of a target whose measurement was aborted, or all if it failed."""
        if self._present is None:
            return
        state, aborted = self._present.state, self._present.step
        if state.failure and not state.is_measured:
            self._pending = deque(
                one for one in self._pending if one.step.target.name != aborted.target.name
            )
        if not state.aborted_by:
            return
        self._pending = deque(
            one
            for one in self._pending
            if one.step.target.name != aborted.target.name
            or one.step.level.offered_per_s <= aborted.level.offered_per_s
        )


def start_stack(
    parts: ExitStack, project: Project, plan: CheckedPlan, logs: Path, progress: Progress
) -> LocalHost:
    """Start the servers that the plan's targets need, and return the host that starts targets.

    Raises:
        PoolkitError: a server did not start, or the database cannot be prepared.
    """
    options = plan.options
    url = options.local_database_url
    supervisor = parts.enter_context(Supervisor(logs))
    progress.stage("starting PostgreSQL" if url is None else "starting servers")
    needs = StackNeeds(
        broker=any(target.needs_broker for target in plan.local),
        pgbouncer=any(target.through == "pgbouncer" for target in plan.local),
        pool_size=pool_size_within(options.usable_connections),
        max_connections=options.max_connections,
        postgres_bin=project.postgres_bin,
        database_url=url,
        distance=options.distance,
    )
    stack = parts.enter_context(EmbeddedStack(project.root / STATE, needs))
    prepare_database(project, stack, supervisor, options, progress)
    return LocalHost(
        root=project.root,
        environment=options.environment,
        supervisor=supervisor,
        monitor_url=stack.monitor_url,
        stack=stack,
        logs=logs,
        note=progress.stage,
    )


def summary(window: Window) -> str:
    """Return the result of a measurement in one line, without unknown figures."""
    if window.failure:
        return "failed"
    opened = difference(window.sessions_from, window.sessions_to)
    number = "an unknown number of connections"
    if opened is not None:
        number = wording.count(opened, "connection")
    text = f"{number} opened in {window.to - window.from_:.0f} s"
    if window.cold_starts is not None:
        # The fleet counts the whole time.
        text += f"; {wording.count(window.cold_starts, 'cold start')}, with those of the warm-up"
    return f"{text}; ended early: {window.aborted_by}" if window.aborted_by else text
