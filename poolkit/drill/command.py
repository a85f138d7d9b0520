"""`poolkit drill`, from options to exit status."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from poolkit.compare.plan.targets import choose, targets_of
from poolkit.compare.report.terminal import shown_path
from poolkit.compare.run.progress import progress_on
from poolkit.compare.run.run import INTERRUPTED, TERMINATED, new_folder, state_folder
from poolkit.drill import report
from poolkit.drill.faults import FAULTS
from poolkit.drill.ground import BARE_NAME, BARE_TARGET, ForeignGround, ProjectGround
from poolkit.drill.run import Drill
from poolkit.drill.traffic import Traffic, requests_of, traffic_of
from poolkit.errors import PoolkitError
from poolkit.local.processes import sigterm_exits
from poolkit.output_file import check_output_file
from poolkit.project import Project

if TYPE_CHECKING:
    from poolkit.drill.ground import Ground
    from poolkit.drill.options import DrillOptions
    from poolkit.drill.run import Results

JSON_FILE, MARKDOWN_FILE = "drill.json", "drill.md"
BROKEN = 1
"""The exit status if a rule does not hold."""


def drill(options: DrillOptions) -> int:
    """Drill, report, and return the exit status.

    Raises:
        PoolkitError: the drill failed; nothing is left running, and every fault is undone.
    """
    console = Console(stderr=options.as_json)
    if options.out is not None:
        for name in (JSON_FILE, MARKDOWN_FILE):
            check_output_file("--out", options.out / name)
    project = Project.find()
    ground = _ground_of(project, options)
    if options.database_url:
        # It is not a server of the drill's own.
        for fault in options.faults:
            console.print(f"{fault.name} {fault.does}", highlight=False, soft_wrap=True)
    stopped = 0
    failure: PoolkitError | None = None
    with sigterm_exits():
        folder = new_folder(state_folder(project) / "drill")
        with progress_on(console) as progress:
            one = Drill(ground, options, root=project.root, folder=folder, progress=progress)
            try:
                one.run()
            except KeyboardInterrupt:
                stopped = INTERRUPTED
            except SystemExit:
                stopped = TERMINATED
            except PoolkitError as error:
                # The figures of the faults until then are worth a report.
                failure = error
    _report(one.results, options, console)
    console.print(f"\nLogs are in {shown_path(folder)}.", highlight=False, soft_wrap=True)
    if failure is not None:
        raise failure
    if stopped:
        console.print("Interrupted: every fault is undone.", highlight=False)
    return stopped or (BROKEN if report.broken_rules(one.results) else 0)


def _report(results: Results, options: DrillOptions, console: Console) -> None:
    """Write the files of `--out`, and print the results."""
    if options.out is not None and results.faults:
        options.out.mkdir(parents=True, exist_ok=True)
        files = {JSON_FILE: report.as_json(results), MARKDOWN_FILE: report.markdown(results)}
        for name, text in files.items():
            (options.out / name).write_text(text, encoding="utf-8")
    if options.as_json:
        sys.stdout.write(report.as_json(results))
    else:
        report.print_results(results, console)


def _ground_of(project: Project, options: DrillOptions) -> Ground:
    """Return what is under load, after every check that is possible before anything starts."""
    own = project.table.get("drill")
    if options.url:
        traffic = Traffic(requests=requests_of(options.requests or ("GET /",), "--request"))
        if options.locustfile is not None:
            traffic = Traffic()
        elif own and not options.requests:
            traffic = traffic_of(project)
        return ForeignGround(project.root, traffic, options)
    if set(options.targets) == {BARE_NAME}:
        return ProjectGround(project, [BARE_TARGET], Traffic(), options)
    tables = targets_of(project)
    names = options.targets
    if not names:
        loadable = [
            name
            for name, table in tables.items()
            if table.kind != "worker" and table.through == "postgresql"
        ]
        names = (*((own or {}).get("targets") or loadable), BARE_NAME)
    targets = choose({**tables, BARE_NAME: BARE_TARGET}, names)
    return ProjectGround(project, targets, traffic_of(project), options)


def fault_list() -> str:
    """Return the faults, a line each."""
    width = max(len(fault.name) for fault in FAULTS)
    return "\n".join(f"{fault.name:<{width}}  {fault.does}" for fault in FAULTS)
