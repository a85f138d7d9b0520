"""What `poolkit compare` and `poolkit up` do, from options to exit status."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from poolkit.compare.plan.announcement import absences, announcement
from poolkit.compare.plan.plan import make_plan
from poolkit.compare.plan.targets import choose, targets_of
from poolkit.compare.report.terminal import print_run
from poolkit.compare.run.progress import progress_on
from poolkit.compare.run.run import STATE, check_migrations, new_folder, plan_run, run, start_stack
from poolkit.errors import PoolkitError
from poolkit.local.processes import sigterm_exits
from poolkit.project import Project
from poolkit.thresholds import github_annotations, junit, unmet

if TYPE_CHECKING:
    from poolkit.compare.plan.options import Options
    from poolkit.compare.plan.plan import Plan
    from poolkit.compare.results.results import Results
    from poolkit.compare.run.progress import Progress
    from poolkit.compare.run.run import Outcome
    from poolkit.compare.run.running import Launcher, Running

LOOK_EVERY_S = 0.1
NOT_MET = 1
"""The exit status when a threshold does not hold, or it is not known whether it does."""


def compare(options: Options) -> int:
    """Run, report, and return the exit status.

    Raises:
        PoolkitError: something was wrong; nothing is left running, and what was measured
            until then is reported.
    """
    console = Console()
    with sigterm_exits():
        plan = plan_run(Project.find(), options)
        console.print(announcement(plan), highlight=False, soft_wrap=not console.is_terminal)
        with progress_on(console) as progress:
            outcome = run(Project.find(), plan, progress)
        if outcome.failure is not None:
            # Why the run ended matters more than why its report cannot be written.
            with suppress(PoolkitError, OSError):
                _report(outcome, options, console)
            raise outcome.failure
        is_met = _report(outcome, options, console)
    if outcome.stopped:
        return outcome.stopped
    return 0 if is_met else NOT_MET


def _report(outcome: Outcome, options: Options, console: Console) -> bool:
    """Write and print what was measured, and return whether the thresholds are met."""
    if not outcome.measured:
        console.print("Nothing was measured, so there is no report.")
        return True
    try:
        results = _write(outcome.folder, console)
    except (KeyboardInterrupt, SystemExit):
        again = f"Interrupted: `poolkit report {_shown(outcome.folder)}` writes the report."
        console.print(again, highlight=False, soft_wrap=True)
        raise
    print_run(results, console)
    file = _shown(outcome.folder / "report.html")
    console.print(f"\nReport: {file}", highlight=False, soft_wrap=True)
    if outcome.stopped:
        console.print("Interrupted: the report shows what was measured until then.")
    return _judge(results, options)


def _write(folder: Path, console: Console) -> Results:
    with progress_on(console) as progress:
        progress.stage("writing the report")
        # Drawing takes a second to import, which no mistake in a command should wait for.
        from poolkit.compare.report.write import write_report  # noqa: PLC0415

        return write_report(folder)


def _judge(results: Results, options: Options) -> bool:
    """Tell CI what came out, and return whether it is good."""
    verdicts = results.verdicts
    if options.junit is not None:
        properties = {"command": results.plan.command, "created": results.plan.created}
        text = junit(verdicts, "poolkit compare", properties)
        options.junit.write_text(text, encoding="utf-8")
    if options.github or os.environ.get("GITHUB_ACTIONS") == "true":
        for line in github_annotations(verdicts):
            # A line of its own, whatever width a terminal would have.
            sys.stdout.write(f"{line}\n")
    return not unmet(verdicts)


def up(options: Options) -> None:
    """Run the stack and all targets at once until Ctrl-C.

    Raises:
        PoolkitError: something was wrong, or ended by itself; nothing is left running.
    """
    console = Console()
    project = Project.find()
    plan = make_plan(choose(targets_of(project), options.targets), options)
    check_migrations(project)
    for line in absences(plan):
        console.print(line, highlight=False, soft_wrap=True)
    # A folder of its own: a worker's readiness is read from its log, and must be today's.
    logs = new_folder(project.root / STATE / "up")
    with ExitStack() as parts:
        with progress_on(console) as progress:
            launcher = start_stack(parts, project, plan, logs, progress)
            running = _start_all(plan, launcher, progress)
        try:
            # Who reads that Ctrl-C stops everything may press it before the line's end.
            _print_addresses(console, launcher, running)
            while True:
                launcher.check()
                time.sleep(LOOK_EVERY_S)
        except KeyboardInterrupt:
            console.print("stopping")


def _start_all(plan: Plan, launcher: Launcher, progress: Progress) -> list[Running]:
    started = []
    for planned in plan.targets:
        progress.stage(f"starting {planned.target.name}")
        started.append(launcher.enter(planned, planned.target.name))
    return started


def _print_addresses(console: Console, launcher: Launcher, running: list[Running]) -> None:
    stack = launcher.stack
    rows = [("PostgreSQL", stack.database_url)]
    rows += [("monitoring", stack.monitor_url)] if stack.monitor_url != stack.database_url else []
    rows += [("PgBouncer", stack.pgbouncer.url(driver=""))] if stack.pgbouncer else []
    rows += [("broker", stack.broker.url)] if stack.broker else []
    rows += [(r.target.name, _address(r)) for r in running]
    width = max(len(name) for name, _ in rows)
    for name, address in rows:
        console.print(f"  {name:<{width}}  {address}", highlight=False, soft_wrap=True)
    console.print(f"Logs are in {_shown(launcher.logs)}. Ctrl-C stops everything.")


def _address(running: Running) -> str:
    if running.target.kind == "worker" and running.process is not None:
        return f"takes tasks from the broker (pid {running.process.pid})"
    return running.url


def _shown(path: Path) -> str:
    """Return the path as short as it can be typed from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
