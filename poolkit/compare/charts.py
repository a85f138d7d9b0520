"""The charts of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.compare.chart_cold_starts import cold_starts
from poolkit.compare.chart_over_time import over_time
from poolkit.compare.chart_overview import overview
from poolkit.compare.chart_percentiles import by_percentile

if TYPE_CHECKING:
    from poolkit.compare.picture import Picture
    from poolkit.compare.results import Results
    from poolkit.compare.run_folder import RunFolder


def pictures(run: RunFolder, results: Results) -> list[Picture]:
    """Return the charts that this run has something to show for."""
    drawn = [
        overview(results),
        over_time(run, results),
        by_percentile(run, results),
        cold_starts(run, results),
    ]
    return [picture for picture in drawn if picture is not None]
