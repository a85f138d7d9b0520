"""`poolkit compare` and `poolkit up`, from options to exit status."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from poolkit import placeholders
from poolkit.compare.plan.application import project_of_app
from poolkit.compare.plan.checks import check_interpreters, check_migrations
from poolkit.compare.plan.plan import absences, announcement, make_plan, plan_run
from poolkit.compare.plan.targets import choose, targets_of
from poolkit.compare.report.findings import evidence_lines
from poolkit.compare.report.terminal import print_run, shown_path
from poolkit.compare.run.progress import progress_on
from poolkit.compare.run.run import STATE, new_folder, run, start_stack, state_folder
from poolkit.errors import PoolkitError
from poolkit.local.processes import sigterm_exits
from poolkit.project import Project
from poolkit.terminal import new_console
from poolkit.thresholds import github_annotations, junit, unmet

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from poolkit.compare.plan.options import Options
    from poolkit.compare.run.run import Outcome
    from poolkit.local.stack import EmbeddedStack

LOOK_EVERY_S = 0.1
NOT_MET = 1
"""The exit status if a threshold does not hold, or is unknown."""


def compare(options: Options) -> int:
    """Run, report, and return the exit status.

    Raises:
        PoolkitError: the run failed; nothing is left running, and the measurements until then
            are reported.
    """
    console = new_console()
    with sigterm_exits():
        project = Project.find()
        if options.app:
            project, notes = project_of_app(project, options)
            console.print("\n".join(notes), soft_wrap=True)
        plan = plan_run(project, options)
        console.print(announcement(plan), soft_wrap=not console.is_terminal)
        with progress_on(console) as progress:
            outcome = run(project, plan, progress)
        if outcome.failure is not None:
            # The failure of the run matters more than one of its report.
            with suppress(PoolkitError, OSError):
                _report(outcome, options, console)
            raise outcome.failure
        is_met = _report(outcome, options, console)
        for window in outcome.failures.values():
            sys.stderr.write(f"poolkit: {window.failure}\n")
    if outcome.stopped:
        return outcome.stopped
    return 0 if is_met and not outcome.failures else NOT_MET


def _report(outcome: Outcome, options: Options, console: Console) -> bool:
    """Write and print the report, and return whether no target failed and all thresholds hold."""
    if not outcome.measured:
        for window in outcome.failures.values():
            for line in evidence_lines(window.evidence, shown_path(outcome.folder)):
                console.print(line, soft_wrap=True)
        console.print("Nothing was measured, so there is no report.")
        return True
    try:
        with progress_on(console) as progress:
            progress.stage("writing the report")
            # The import of the charts takes a second, and a wrong option must not wait for it.
            from poolkit.compare.report.write import write_report  # noqa: PLC0415

            results = write_report(outcome.folder)
    except (KeyboardInterrupt, SystemExit):
        again = f"Interrupted: `poolkit report {shown_path(outcome.folder)}` writes the report."
        console.print(again, soft_wrap=True)
        raise
    print_run(results, console)
    file = shown_path(outcome.folder / "report.html")
    console.print(f"\nReport: {file}", soft_wrap=True)
    if outcome.stopped:
        console.print("Interrupted: the report shows what was measured until then.")
    verdicts = results.verdicts
    if options.junit is not None:
        properties = {"command": results.plan.command, "created": results.plan.created}
        text = junit(verdicts, "poolkit compare", properties)
        options.junit.write_text(text, encoding="utf-8")
    if options.github or os.environ.get("GITHUB_ACTIONS") == "true":
        for line in github_annotations(verdicts):
            # Not by the console: it would wrap the line.
            sys.stdout.write(f"{line}\n")
    return not unmet(verdicts) and not results.has_failures


def up(options: Options) -> None:
    """Run the stack and all targets at once until Ctrl-C.

    Raises:
        PoolkitError: a server or target did not start, or ended by itself; nothing is left
            running.
    """
    console = new_console()
    project = Project.find()
    # A test suite needs the database alone.
    has_targets = options.targets or project.table.get("targets")
    targets = choose(targets_of(project), options.targets) if has_targets else []
    plan = make_plan(targets, options, may_be_empty=True)
    check_migrations(project)
    check_interpreters(project, plan.local)
    for line in absences(plan):
        console.print(line, soft_wrap=True)
    # In a folder of this start: a worker's readiness is read from its log.
    logs = new_folder(state_folder(project) / "up")
    with ExitStack() as parts:
        with progress_on(console) as progress:
            host = start_stack(parts, project, plan, logs, progress)
            running = []
            for step in plan.steps():
                progress.stage(f"starting {step.target.name}")
                running.append(host.start(step.target, step.planned.instances_max or 1))
        try:
            stack = host.stack
            rows = [("PostgreSQL", stack.database_url)]
            if stack.monitor_url != stack.database_url:
                rows.append(("monitoring", stack.monitor_url))
            rows += [("PgBouncer", stack.pooler_url)] if stack.pgbouncer else []
            rows += [("broker", stack.broker.url)] if stack.broker else []
            for one in running:
                address = one.url
                if one.target.kind == "worker" and one.process is not None:
                    address = f"takes tasks from the broker (pid {one.process.pid})"
                rows.append((one.target.name, address))
            width = max(len(name) for name, _ in rows)
            if not options.distance.is_none:
                console.print(f"Distance to the database: {options.distance}.")
            for name, address in rows:
                console.print(f"  {name:<{width}}  {address}", soft_wrap=True)
            variables = _write_variables(project, stack, parts)
            console.print(
                f"For a shell with the same database: source {shown_path(variables)}",
                soft_wrap=True,
            )
            # This line invites Ctrl-C, which may come before the loop.
            console.print(f"Logs are in {shown_path(host.logs)}. Ctrl-C stops everything.")
            while True:
                host.check()
                time.sleep(LOOK_EVERY_S)
        except KeyboardInterrupt:
            console.print("stopping")


def _write_variables(project: Project, stack: EmbeddedStack, parts: ExitStack) -> Path:
    """Write the variables of the project's commands for a shell; the file goes with the servers."""
    file = project.root / STATE / "up" / "variables.sh"
    values = placeholders.values_for(
        stack.database_url,
        python=str(project.python),
        broker_url=stack.broker.url if stack.broker is not None else "",
        # A shell is no target.
        port="",
        processes="",
    )
    env = {"DATABASE_URL": stack.database_url, **stack.environ}
    env |= placeholders.filled(project.env, values)
    parts.callback(file.unlink, missing_ok=True)
    file.unlink(missing_ok=True)
    # It has passwords.
    file.touch(mode=0o600)
    file.write_text("".join(f"export {name}={shlex.quote(text)}\n" for name, text in env.items()))
    return file
