"""`poolkit experiment`: choose, run, print, write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from poolkit.experiment.experiment import choose, find_experiments
from poolkit.experiment.outcome import Outcome, Status
from poolkit.experiment.run import run_experiments
from poolkit.experiment.terminal import print_brief, print_list, print_outcome
from poolkit.output_file import check_output_file
from poolkit.terminal import new_console

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.experiment.run import Options

NOT_RUN = 3
"""The exit status if an experiment lacks what it needs."""


def list_experiments() -> None:
    """Print the experiments that there are."""
    print_list(find_experiments().values(), new_console())


def experiment(
    names: tuple[str, ...],
    options: Options,
    *,
    every: bool,
    as_json: bool,
    report: Path | None,
    claims: Path | None,
) -> int:
    """Run experiments, show what they found, and return the exit status.

    Args:
        names: of the experiments.
        options: how they run.
        every: run all.
        as_json: print one JSON document, and nothing else on standard output.
        report: the file for the HTML page.
        claims: the file for the page of all claims.

    Raises:
        PoolkitError: there is no such experiment, or the server cannot be used.
    """
    found = find_experiments()
    chosen = list(found.values()) if every else [choose(found, name) for name in names]
    for option, path in (("--report", report), ("--claims", claims)):
        if path is not None:
            check_output_file(option, path)
    console, progress = new_console(), new_console(stderr=True)

    def done(outcome: Outcome) -> None:
        if as_json:
            return
        if len(chosen) > 1:
            print_brief(outcome, console)
        else:
            print_outcome(outcome, console)

    result = run_experiments(
        chosen, options, say=lambda text: progress.print(text, soft_wrap=True), done=done
    )
    if as_json:
        console.out(json.dumps(result.as_json(), indent=2))
    if report is not None:
        from poolkit.experiment.report import report_page  # noqa: PLC0415  (draws with Altair)

        report.write_text(report_page(result), encoding="utf-8")
        progress.print(f"report: {report}", soft_wrap=True)
    if claims is not None:
        from poolkit.experiment.claims import claims_page  # noqa: PLC0415

        claims.write_text(claims_page(result, found), encoding="utf-8")
    states = {outcome.status for outcome in result.outcomes}
    if Status.FAILED in states:
        return 1
    return NOT_RUN if Status.NOT_RUN in states else 0
