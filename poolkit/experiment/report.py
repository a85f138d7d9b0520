"""The report of experiments: one HTML page with tables, charts and verdicts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from poolkit.compare.report.page import drawing, prose
from poolkit.experiment.charts import draw

if TYPE_CHECKING:
    from poolkit.experiment.outcome import Report


def report_page(report: Report) -> str:
    """Return the page."""
    environment = Environment(
        # The frame and the style are those of the other reports.
        loader=ChoiceLoader(
            [PackageLoader("poolkit.experiment"), PackageLoader("poolkit.compare.report")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"drawing": drawing, "prose": prose}
    pictures = {
        outcome.name: [
            draw(chart, f"{outcome.name}-{number}") for number, chart in enumerate(outcome.charts)
        ]
        for outcome in report.outcomes
    }
    counts = Counter(j.verdict for outcome in report.outcomes for j in outcome.judgements)
    return environment.get_template("experiments.html").render(
        report=report, pictures=pictures, counts=counts
    )
