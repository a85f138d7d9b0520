"""`poolkit report`: write results, page and charts from the raw files of a run, as often as you like."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING

from poolkit.compare.charts.levels import over_load
from poolkit.compare.charts.over_time import cold_starts, over_time
from poolkit.compare.charts.overview import overview
from poolkit.compare.charts.percentiles import by_percentile
from poolkit.compare.charts.pool_sizes import over_pool_sizes
from poolkit.compare.report.findings import with_findings
from poolkit.compare.report.page import run_page
from poolkit.compare.report.side_by_side import compare_runs, print_pair, two_run_page
from poolkit.compare.report.terminal import print_run
from poolkit.compare.results.files import write_json
from poolkit.compare.results.results import compute, results_json
from poolkit.compare.results.run_folder import RunFolder
from poolkit.output_file import check_output_file

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from poolkit.compare.charts.picture import Picture
    from poolkit.compare.results.results import Results

__all__ = ["print_run", "report", "report_two", "write_report"]


def read_results(path: Path) -> Results:
    """Return the figures and findings of a run, from its raw files.

    Raises:
        RunFolderError: the folder is no run, or a file in it is broken.
    """
    return with_findings(compute(RunFolder.open(path)))


def draw(run: RunFolder, results: Results) -> list[Picture]:
    """Return the charts for which the run has data."""
    by_load = over_load(results)
    drawn = [
        over_pool_sizes(results),
        overview(results),
        over_time(run, results),
        by_percentile(run, results),
        cold_starts(run, results),
    ]
    pictures = [picture for picture in drawn if picture is not None]
    if by_load is None:
        return pictures
    # With several loads, the title names the load of a chart.
    load = results.reference.name
    named = [
        # A sweep has a load of its own, which its panels name.
        each
        if each.name == "pool-sizes"
        else dataclasses.replace(each, title=f"{each.title} ({load})")
        for each in pictures
    ]
    return [by_load, *named]


def write_report(path: Path) -> Results:
    """Write results.json, report.html and charts/*.png into a run folder.

    Raises:
        RunFolderError: the folder is no run, or a file in it is broken.
        OSError: the folder cannot be written to.
    """
    run = RunFolder.open(path)
    results = with_findings(compute(run))
    write_json(path / "results.json", results_json(results))
    pictures = draw(run, results)
    charts = path / "charts"
    # A chart that only an earlier report had would look like one of this report.
    shutil.rmtree(charts, ignore_errors=True)
    charts.mkdir()
    for picture in pictures:
        (charts / f"{picture.name}.png").write_bytes(picture.png())
    (path / "report.html").write_text(run_page(results, pictures), encoding="utf-8")
    return results


def report(path: Path, console: Console) -> None:
    """Write a run's report again, and print its table.

    Raises:
        RunFolderError, OSError: as `write_report`.
    """
    print_run(write_report(path), console)
    console.print(f"\nReport: {path / 'report.html'}", soft_wrap=True)


def report_two(first: Path, second: Path, console: Console, out: Path | None = None) -> Path:
    """Put two runs side by side: print a table, and write a page.

    Args:
        first: the run folder to compare with.
        second: the run folder that is compared.
        console: where the table goes.
        out: the file of the page; by default `against-<first>.html` in the second folder.

    Raises:
        RunFolderError: a folder is no run, is broken, or the two have no target in common.
        ConfigurationError: the page cannot be written there.
        OSError: writing it failed, as on a full disk.
    """
    RunFolder.open(second)
    file = out or second / f"against-{first.resolve().name}.html"
    check_output_file("--out", file, makes_folders=False)
    pair = compare_runs(read_results(first), read_results(second), (str(first), str(second)))
    print_pair(pair, console)
    file.write_text(two_run_page(pair), encoding="utf-8")
    console.print(f"\nReport: {file}", soft_wrap=True)
    return file
