"""`poolkit experiment`: choose, run, print, write."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

from poolkit.errors import ConfigurationError
from poolkit.experiment.experiment import choose, find_experiments
from poolkit.experiment.outcome import Outcome, Status
from poolkit.experiment.run import run_experiments
from poolkit.experiment.terminal import print_brief, print_list, print_outcome
from poolkit.local.processes import sigterm_exits
from poolkit.output_file import check_output_file
from poolkit.terminal import new_console

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from poolkit.experiment.experiment import Experiment
    from poolkit.experiment.outcome import Report
    from poolkit.experiment.run import Options

NOT_RUN = 3
"""The exit status if an experiment lacks what it needs."""
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""The exit statuses after Ctrl-C and SIGTERM, as shells report them."""


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
    chosen = _chosen(found, names, options, every=every)
    _check_files(report, claims)
    console, progress = new_console(), new_console(stderr=True)

    def say(text: str) -> None:
        progress.print(text, soft_wrap=True)

    def done(outcome: Outcome) -> None:
        if as_json:
            return
        if len(chosen) > 1:
            print_brief(outcome, console)
        else:
            print_outcome(outcome, console)

    try:
        with sigterm_exits():
            result = run_experiments(chosen, options, say=say, done=done)
    except (KeyboardInterrupt, SystemExit) as end:
        where = " or in the database" if options.database_url else ""
        say(f"Interrupted: nothing is left running{where}, and no report is written.")
        return INTERRUPTED if isinstance(end, KeyboardInterrupt) else TERMINATED
    if as_json:
        console.out(json.dumps(result.as_json(), indent=2), highlight=False)
    if report is not None:
        from poolkit.experiment.report import report_page  # noqa: PLC0415  (draws with Altair)

        _write("--report", report, report_page(result))
        say(f"report: {report}")
    if claims is not None:
        from poolkit.experiment.claims import claims_page  # noqa: PLC0415

        _write("--claims", claims, claims_page(result, found))
    return _status(result)


def _check_files(report: Path | None, claims: Path | None) -> None:
    for option, path in (("--report", report), ("--claims", claims)):
        if path is not None:
            check_output_file(option, path, makes_folders=False)


def _write(option: str, path: Path, text: str) -> None:
    """Write a file; the disk may be full by now."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{option}: cannot write {path}: {error.strerror}") from None


def _chosen(
    found: Mapping[str, Experiment], names: Iterable[str], options: Options, *, every: bool
) -> list[Experiment]:
    """Return the experiments to run; a mistake in their conditions shows before anything starts."""
    chosen = list(found.values()) if every else [choose(found, n) for n in dict.fromkeys(names)]
    for each in chosen:
        each.conditions_with(options.changes)
    return chosen


def _status(result: Report) -> int:
    states = {outcome.status for outcome in result.outcomes}
    if Status.FAILED in states:
        return 1
    return NOT_RUN if Status.NOT_RUN in states else 0
