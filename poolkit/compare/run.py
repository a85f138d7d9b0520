"""A whole run: plan, stack, each target in turn; it leaves a run folder and nothing else."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain, count, zip_longest
from typing import TYPE_CHECKING

from poolkit.activity import ActivityConnection
from poolkit.compare.load import check_locustfiles
from poolkit.compare.machine import describe
from poolkit.compare.measure import Measurement
from poolkit.compare.plan import make_plan
from poolkit.compare.run_folder import RunFolder
from poolkit.compare.running import Launcher
from poolkit.compare.targets import choose, targets_of
from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError, PoolkitError, StateDirectoryError
from poolkit.local.processes import Supervisor
from poolkit.local.stack import EmbeddedStack, StackNeeds
from poolkit.migrations import Migrations

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.compare.plan import Options, Plan
    from poolkit.compare.progress import Progress
    from poolkit.compare.run_folder import Window
    from poolkit.project import Project

STATE = ".poolkit"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run that ended: its folder, what was measured, and why it ended early if it did."""

    folder: Path
    measured: tuple[str, ...]
    """The targets with a measured time, be it cut short."""
    interrupted: bool = False
    failure: PoolkitError | None = None


def plan_run(project: Project, options: Options) -> Plan:
    """Return the plan, with every mistake found that can be found before anything starts.

    Raises:
        ConfigurationError: an unknown target, a wrong table, a locustfile that does not
            import, an option out of range.
        DatabaseUnavailable, MonitoringNotAllowed: the server of --database-url cannot be
            reached, or may not be watched.
        ValueError: there is no such environment.
    """
    targets = choose(targets_of(project), options.targets)
    plan = make_plan(targets, _of_the_server(options))
    check_locustfiles(
        [project.root / planned.target.locustfile for planned in plan.targets], project.root
    )
    return plan


def _of_the_server(options: Options) -> Options:
    """Take the limit of a server that is there from the server itself."""
    if options.database_url is None:
        return options
    try:
        with ActivityConnection(options.database_url) as activity:
            limits = activity.connect()
    except PoolkitError as error:
        raise type(error)(f"--database-url: {error}") from None
    return replace(options, max_connections=limits.max_connections)


def run(project: Project, plan: Plan, progress: Progress) -> Outcome:
    """Measure every target of the plan, one after the other, and leave nothing running.

    Ctrl-C and a failure end the run early: what was measured stays, and the target of that
    moment is marked partial.

    Raises:
        ConfigurationError, StateDirectoryError: there can be no run folder.
    """
    folder = RunFolder(_make_folder(project, plan))
    measured: list[str] = []
    try:
        folder.write_plan(plan.record())
        _run_all(project, plan, folder, measured, progress)
    except KeyboardInterrupt:
        return Outcome(folder=folder.path, measured=tuple(measured), interrupted=True)
    except PoolkitError as error:
        return Outcome(folder=folder.path, measured=tuple(measured), failure=error)
    except OSError as error:
        failure = _cannot_write(folder.path, error)
        return Outcome(folder=folder.path, measured=tuple(measured), failure=failure)
    return Outcome(folder=folder.path, measured=tuple(measured))


def _run_all(
    project: Project, plan: Plan, folder: RunFolder, measured: list[str], progress: Progress
) -> None:
    with ExitStack() as parts:
        launcher = start_stack(parts, project, plan, folder.path / "log", progress)
        folder.write_machine(describe(_server_version(launcher.stack)))
        planned = {planned.target.name: planned for planned in plan.targets}
        record = plan.record()
        every = [
            Measurement(
                planned[step.target],
                step.level,
                plan.options,
                launcher,
                folder.step(record, step),
            )
            for step in record.steps
        ]
        for number, (measurement, following) in enumerate(zip_longest(every, every[1:]), start=1):
            name = measurement.planned.target.name
            progress.target(name, number, len(every))
            try:
                window = measurement.run(progress, following)
            finally:
                if measurement.marks.is_measured:
                    measured.append(name)
            progress.finished(name, _summary(window))


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


def start_stack(
    parts: ExitStack, project: Project, plan: Plan, logs: Path, progress: Progress
) -> Launcher:
    """Start the servers that the plan's targets need, and return what starts the targets.

    Raises:
        PoolkitError: a server did not start, or the database does not have the schema.
    """
    options = plan.options
    supervisor = parts.enter_context(Supervisor(logs))
    progress.stage("starting PostgreSQL" if options.database_url is None else "starting servers")
    needs = StackNeeds(
        broker=any(planned.target.needs_broker for planned in plan.targets),
        pgbouncer=any(planned.target.through == "pgbouncer" for planned in plan.targets),
        max_connections=options.max_connections,
        database_url=options.database_url,
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


def _server_version(stack: EmbeddedStack) -> str:
    """Ask, and find out early whether the server may be watched at all."""
    with ActivityConnection(stack.monitor_url) as activity:
        return activity.connect().version


def _prepare_schema(project: Project, stack: EmbeddedStack) -> None:
    """Upgrade the embedded database; somebody else's is only looked at."""
    name = project.table.get("migrations")
    if name is None:
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
    opened = (window.sessions_to or 0) - (window.sessions_from or 0)
    starts = "" if window.cold_starts is None else f", {window.cold_starts} cold starts"
    return f"{opened} connections opened in {window.to - window.from_:.0f} s{starts}"
