"""A whole run: plan, stack, each target in turn; it leaves a run folder and nothing else."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
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
from poolkit.errors import ConfigurationError, StateDirectoryError
from poolkit.local.processes import Supervisor
from poolkit.local.stack import EmbeddedStack, StackNeeds
from poolkit.migrations import Migrations

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.compare.plan import Options, Plan, PlannedTarget
    from poolkit.compare.progress import Progress
    from poolkit.compare.run_folder import Window
    from poolkit.project import Project

STATE = ".poolkit"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run that ended: its folder, and whether it was cut short."""

    folder: Path
    interrupted: bool


def plan_run(project: Project, options: Options) -> Plan:
    """Return the plan, with every mistake found that can be found before anything starts.

    Raises:
        ConfigurationError: an unknown target, a wrong table, a locustfile that does not
            import, an option out of range.
        ValueError: there is no such environment.
    """
    plan = make_plan(choose(targets_of(project), options.targets), options)
    check_locustfiles(
        [project.root / planned.target.locustfile for planned in plan.targets], project.root
    )
    return plan


def run(project: Project, plan: Plan, progress: Progress) -> Outcome:
    """Measure every target of the plan, one after the other.

    Ctrl-C ends the run early: what was measured stays, the target of that moment is marked
    partial, and nothing is left running.

    Raises:
        PoolkitError: a part of the stack or a target did not do its work.
    """
    folder = RunFolder(_make_folder(project, plan))
    folder.write_plan(plan.record())
    try:
        with ExitStack() as parts:
            launcher = start_stack(parts, project, plan, folder.path / "log", progress)
            folder.write_machine(describe(_server_version(launcher.stack)))
            for number, planned in enumerate(plan.targets, start=1):
                progress.target(planned.target.name, number, len(plan.targets))
                window = _measure(planned, plan, launcher, folder, progress)
                progress.finished(planned.target.name, _summary(window))
    except KeyboardInterrupt:
        return Outcome(folder=folder.path, interrupted=True)
    return Outcome(folder=folder.path, interrupted=False)


def _make_folder(project: Project, plan: Plan) -> Path:
    name = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    folder = plan.options.out or project.root / STATE / "runs" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigurationError(f"{folder} is not empty; name a new folder with --out")
    except OSError as error:
        raise StateDirectoryError(
            f"cannot write to {folder}: {error.strerror}; name another folder with --out"
        ) from None
    return folder


def start_stack(
    parts: ExitStack, project: Project, plan: Plan, logs: Path, progress: Progress
) -> Launcher:
    """Start the servers that the plan's targets need, and return what starts the targets.

    Raises:
        PoolkitError: a server did not start, or the database does not have the schema.
    """
    options = plan.options
    supervisor = parts.enter_context(Supervisor(logs))
    progress.stage("starting PostgreSQL")
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


def _measure(
    planned: PlannedTarget, plan: Plan, launcher: Launcher, folder: RunFolder, progress: Progress
) -> Window:
    own = folder.target(planned.target.name)
    return Measurement(planned, plan.options, launcher, own).run(progress)


def _summary(window: Window) -> str:
    opened = (window.sessions_to or 0) - (window.sessions_from or 0)
    starts = "" if window.cold_starts is None else f", {window.cold_starts} cold starts"
    return f"{opened} connections opened in {window.to - window.from_:.0f} s{starts}"
