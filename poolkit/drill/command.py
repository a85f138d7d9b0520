"""`poolkit drill`, from options to exit status."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from poolkit.compare.plan.targets import choose, targets_of
from poolkit.compare.run.progress import progress_on
from poolkit.compare.run.run import INTERRUPTED, TERMINATED
from poolkit.drill import report
from poolkit.drill.faults import FAULTS
from poolkit.drill.run import BARE_NAME, BARE_TARGET, Drill
from poolkit.drill.traffic import traffic_of
from poolkit.local.processes import sigterm_exits
from poolkit.output_file import check_output_file
from poolkit.project import Project

if TYPE_CHECKING:
    from poolkit.drill.run import DrillOptions

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
    with sigterm_exits():
        project = Project.find()
        tables = {**targets_of(project), BARE_NAME: BARE_TARGET}
        names = options.targets or (*project.table.get("drill", {}).get("targets", ()), BARE_NAME)
        targets = choose(tables, names)
        traffic = traffic_of(project)
        stopped = 0
        with progress_on(console) as progress:
            one = Drill(project, options, targets, traffic, progress)
            try:
                one.run()
            except KeyboardInterrupt:
                stopped = INTERRUPTED
            except SystemExit:
                stopped = TERMINATED
        results = one.results
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / JSON_FILE).write_text(report.as_json(results), encoding="utf-8")
            text = report.markdown(results)
            (options.out / MARKDOWN_FILE).write_text(text, encoding="utf-8")
        if options.as_json:
            sys.stdout.write(report.as_json(results))
        else:
            report.print_results(results, console)
        return stopped or (BROKEN if report.broken_rules(results) else 0)


def fault_list() -> str:
    """Return the faults, a line each."""
    width = max(len(fault.name) for fault in FAULTS)
    return "\n".join(f"{fault.name:<{width}}  {fault.does}" for fault in FAULTS)
