"""The charts of a run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from poolkit.compare.charts.cold_starts import cold_starts
from poolkit.compare.charts.levels import over_load
from poolkit.compare.charts.over_time import over_time
from poolkit.compare.charts.overview import overview
from poolkit.compare.charts.percentiles import by_percentile

if TYPE_CHECKING:
    from poolkit.compare.charts.picture import Picture
    from poolkit.compare.results.results import Results
    from poolkit.compare.results.run_folder import Level, RunFolder


def pictures(run: RunFolder, results: Results) -> list[Picture]:
    """Return the charts that this run has something to show for."""
    by_load = over_load(results)
    drawn = [
        overview(results),
        over_time(run, results),
        by_percentile(run, results),
        cold_starts(run, results),
    ]
    shown = [picture for picture in drawn if picture is not None]
    if by_load is None:
        return shown
    return [by_load, *(_named(picture, results.reference) for picture in shown)]


def _named(picture: Picture, level: Level) -> Picture:
    """Say in the title which of several loads a chart is about."""
    return dataclasses.replace(picture, title=f"{picture.title} ({level.name})")
