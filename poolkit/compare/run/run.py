"""A whole run: plan, stack, each target in turn; it leaves a run folder and nothing else."""

from __future__ import annotations

import signal
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING

from poolkit.activity.server import ActivityConnection
from poolkit.compare.plan.deployed import check_answers, check_unlike, deployed_of
from poolkit.compare.plan.plan import make_plan, pool_size_within
from poolkit.compare.plan.targets import choose, targets_of
from poolkit.compare.results import wording
from poolkit.compare.results.run_folder import RunFolder
from poolkit.compare.results.target_result import difference
from poolkit.compare.run.load import check_locustfiles
from poolkit.compare.run.machine import describe
from poolkit.compare.run.measure import Measurement
from poolkit.compare.run.place import Elsewhere
from poolkit.compare.run.running import Launcher
from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError, PoolkitError, StateDirectoryError
from poolkit.local.processes import Supervisor
from poolkit.local.stack import EmbeddedStack, StackNeeds
from poolkit.migrations import Migrations, module_named
from poolkit.output_file import check_output_file
from poolkit.thresholds import check_targets, thresholds_of

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.compare.plan.deployed import Deployed
    from poolkit.compare.plan.options import Options
    from poolkit.compare.plan.plan import Plan, PlannedStep
    from poolkit.compare.plan.targets import Target
    from poolkit.compare.results.run_folder import Window
    from poolkit.compare.run.place import Place
    from poolkit.compare.run.progress import Progress
    from poolkit.project import Project

STATE = ".poolkit"
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
"""Exit statuses as shells have them."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run that ended: its folder, what was measured, and why it ended early if it did."""

    folder: Path
    measured: tuple[str, ...]
    """The measurements with a measured time, be it cut short."""
    stopped: int = 0
    """The exit status after what ended it early: Ctrl-C or SIGTERM; 0 if neither did."""
    failure: Exception | None = None


def plan_run(project: Project, options: Options) -> Plan:
    """Return the plan, with every mistake found that can be found before anything starts.

    Raises:
        ConfigurationError: an unknown target, a wrong table, a locustfile that does not
            import, a wrong threshold, a deployed target that is not there.
        DatabaseUnavailable, MonitoringNotAllowed: the server of --database-url cannot be
            reached, or may not be watched.
        ValueError: there is no such environment.
    """
    tables = targets_of(project)
    deployed = deployed_of(options.deployed, tables)
    # Who names only what is deployed wants nothing started.
    local = choose(tables, options.targets) if options.targets or not deployed else []
    check_unlike(deployed, local)
    thresholds = thresholds_of(project.table, options.thresholds)
    check_targets(thresholds, [*tables, *(each.target.name for each in deployed)])
    if deployed and options.database_url is None:
        raise ConfigurationError(
            "--target needs --database-url: the connections of what is deployed are seen there; "
            "a role with pg_monitor is enough"
        )
    if options.junit is not None:
        check_output_file("--junit", options.junit, makes_folders=False)
    for each in deployed:
        check_answers(each, agreed=options.agreed)
    options, deployed = _with_limits(options, deployed, local)
    plan = make_plan(local, options, deployed=deployed, thresholds=thresholds)
    if local:
        check_migrations(project)
    check_locustfiles(
        [project.root / planned.target.locustfile for planned in plan.targets], project.root
    )
    return plan


def check_migrations(project: Project) -> None:
    """Import the migrations that start_stack will run, so that a mistake is found before it.

    Raises:
        ConfigurationError: they do not import, or are no module of migrations.
    """
    if name := project.table.get("migrations"):
        module_named(name, project)


def _with_limits(
    options: Options, deployed: tuple[Deployed, ...], local: list[Target]
) -> tuple[Options, tuple[Deployed, ...]]:
    """Take the limits of a server that is there from the server itself."""
    if options.database_url is None:
        return options, deployed
    try:
        with ActivityConnection(options.database_url) as activity:
            limits = activity.connect()
    except PoolkitError as error:
        raise type(error)(f"--database-url: {error}") from None
    if not (deployed and local):
        reserve = limits.max_connections - limits.usable
        options = replace(options, max_connections=limits.max_connections, reserve=reserve)
    most, usable = limits.max_connections, limits.usable
    return options, tuple(
        replace(each, max_connections=most, usable_connections=usable) for each in deployed
    )


def run(project: Project, plan: Plan, progress: Progress) -> Outcome:
    """Measure every target of the plan, one after the other, and leave nothing running.

    Ctrl-C, SIGTERM (where it raises SystemExit) and a failure end the run early: what was
    measured stays, and the target of that moment is marked partial.

    Raises:
        ConfigurationError, StateDirectoryError: there can be no run folder.
    """
    folder = RunFolder(_make_folder(project, plan))
    measured: list[str] = []
    try:
        _run_all(project, plan, folder, measured, progress)
    except KeyboardInterrupt:
        return Outcome(folder=folder.path, measured=tuple(measured), stopped=INTERRUPTED)
    except SystemExit:
        return Outcome(folder=folder.path, measured=tuple(measured), stopped=TERMINATED)
    except (PoolkitError, ValueError) as error:
        return Outcome(folder=folder.path, measured=tuple(measured), failure=error)
    except OSError as error:
        failure = _cannot_write(folder.path, error)
        return Outcome(folder=folder.path, measured=tuple(measured), failure=failure)
    return Outcome(folder=folder.path, measured=tuple(measured))


def _run_all(
    project: Project,
    plan: Plan,
    folder: RunFolder,
    measured: list[str],
    progress: Progress,
) -> None:
    record = plan.record()
    folder.write_plan(record)
    with ExitStack() as parts:
        places = _places(parts, project, plan, folder.path / "log", progress)
        folder.write_machine(describe(_server_version(next(iter(places.values())))))
        every = [
            Measurement(
                step,
                plan.options,
                places[step.planned.target.name],
                folder.step(record, of_record),
                plan.thresholds,
            )
            for step, of_record in zip(plan.steps(record), record.steps, strict=True)
        ]
        queue = _Queue(every)
        while (measurement := queue.next()) is not None:
            words = measurement.step.words
            progress.target(words, queue.number, len(every))
            try:
                window = measurement.run(progress, queue.prepare_next)
            finally:
                if measurement.marks.is_measured:
                    measured.append(words)
            progress.finished(words, _summary(window))


class _Queue:
    """The measurements that are left to make.

    A load at which a threshold has ended a measurement is the highest that its target gets
    from then on.
    """

    def __init__(self, every: list[Measurement]) -> None:
        self._left = deque(every)
        self._present: Measurement | None = None
        self._of = len(every)

    @property
    def number(self) -> int:
        """The number of the present one, from 1; those that are left out have one too."""
        return self._of - len(self._left)

    def next(self) -> Measurement | None:
        """Return the next one; None if there is none left."""
        self._leave_out()
        self._present = self._left.popleft() if self._left else None
        return self._present

    def prepare_next(self) -> None:
        """Prepare the one that will be next: the load of the present one has ended."""
        self._leave_out()
        if self._left:
            self._left[0].prepare()

    def _leave_out(self) -> None:
        if self._present is None or not self._present.marks.aborted_by:
            return
        aborted = self._present.step
        self._left = deque(one for one in self._left if not _is_harder(one.step, aborted))


def _is_harder(step: PlannedStep, than: PlannedStep) -> bool:
    same = step.planned.target.name == than.planned.target.name
    return same and step.level.offered_per_s > than.level.offered_per_s


def _make_folder(project: Project, plan: Plan) -> Path:
    runs = project.root / STATE / "runs"
    folder = plan.options.out or runs
    try:
        if plan.options.out is None:
            folder = new_folder(runs)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigurationError(f"{folder} is not empty; name a new folder with --out")
        # A file system may be read-only beneath a folder that is there.
        (folder / "log").mkdir()
    except OSError as error:
        raise _cannot_write(folder, error) from None
    return folder.resolve()


def new_folder(parent: Path) -> Path:
    """Make a folder named after the time, one that no other run has.

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


def _places(
    parts: ExitStack, project: Project, plan: Plan, logs: Path, progress: Progress
) -> dict[str, Place]:
    """Start what has to be started, and return where each target runs."""
    options = plan.options
    places: dict[str, Place] = {}
    if plan.local:
        launcher = start_stack(parts, project, plan, logs, progress)
        places |= {planned.target.name: launcher for planned in plan.local}
        supervisor = launcher.supervisor
    else:
        supervisor = parts.enter_context(Supervisor(logs))
    for planned in plan.deployed:
        places[planned.target.name] = Elsewhere(
            root=project.root,
            logs=logs,
            supervisor=supervisor,
            environment=options.environment,
            database_url=options.database_url or "",
            url=planned.url or "",
        )
    return places


def start_stack(
    parts: ExitStack, project: Project, plan: Plan, logs: Path, progress: Progress
) -> Launcher:
    """Start the servers that the plan's targets need, and return what starts the targets.

    Raises:
        PoolkitError: a server did not start, or the database does not have the schema.
    """
    options = plan.options
    url = options.local_database_url
    supervisor = parts.enter_context(Supervisor(logs))
    progress.stage("starting PostgreSQL" if url is None else "starting servers")
    needs = StackNeeds(
        broker=any(planned.target.needs_broker for planned in plan.local),
        pgbouncer=any(planned.target.through == "pgbouncer" for planned in plan.local),
        pool_size=pool_size_within(options.usable_connections),
        max_connections=options.max_connections,
        database_url=url,
    )
    stack = parts.enter_context(EmbeddedStack(project.root / STATE, needs))
    progress.stage("preparing the schema")
    _prepare_schema(project, stack)
    return Launcher(
        root=project.root,
        environment=options.environment,
        supervisor=supervisor,
        stack=stack,
        logs=logs,
    )


def _server_version(place: Place) -> str:
    """Ask, and find out early whether the server may be watched at all."""
    with ActivityConnection(place.monitor_url) as activity:
        return activity.connect().version


def _prepare_schema(project: Project, stack: EmbeddedStack) -> None:
    """Upgrade the embedded database; somebody else's is only looked at."""
    name = project.table.get("migrations")
    if not name:
        return
    environ = {"DATABASE_URL": stack.database_url}
    migrations = Migrations.find(name, Settings.from_environ(environ, default_target="script"))
    if stack.postgres is not None:
        migrations.upgrade()
    elif migrations.current() not in migrations.heads():
        raise ConfigurationError(
            "the database of --database-url does not have the latest schema; "
            "run `poolkit db upgrade` there first"
        )


def _summary(window: Window) -> str:
    opened = difference(window.sessions_from, window.sessions_to)
    many = "an unknown number of connections"
    if opened is not None:
        many = wording.count(opened, "connection")
    said = f"{many} opened in {window.to - window.from_:.0f} s"
    if window.cold_starts is not None:
        # The fleet's count is of the whole time.
        said += f"; {wording.count(window.cold_starts, 'cold start')}, with those of the warm-up"
    return f"{said}; ended early: {window.aborted_by}" if window.aborted_by else said
