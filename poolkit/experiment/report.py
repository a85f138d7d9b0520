"""The report of experiments: one HTML page with tables, charts and verdicts."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from poolkit.compare.report.page import drawing, prose
from poolkit.experiment.charts import draw
from poolkit.experiment.outcome import by_claim

if TYPE_CHECKING:
    from poolkit.experiment.outcome import Report, Table

_NUMBER = re.compile(r"[-+~<>≤≥ ]*\d[\d.,e+-]*( ?(%|x|us|µs|ms|s|MB|KB|kB))?|-|")


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
    environment.filters |= {
        "drawing": drawing,
        "prose": prose,
        "by_claim": by_claim,
        "sides": _sides,
    }
    pictures = {
        outcome.name: [
            {
                "wide": draw(chart, f"{outcome.name}-{number}"),
                "narrow": draw(chart, f"{outcome.name}-{number}-narrow", is_narrow=True),
            }
            for number, chart in enumerate(outcome.charts)
        ]
        for outcome in report.outcomes
    }
    counts = Counter(j.verdict for outcome in report.outcomes for j in outcome.judgements)
    return environment.get_template("experiments.html").render(
        report=report, pictures=pictures, counts=counts
    )


def _sides(table: Table) -> list[str]:
    """Return the class of each column: numbers stand at the right, under each other."""
    columns = zip(*table.rows, strict=True) if table.rows else table.columns
    return [
        "number" if all(_NUMBER.fullmatch(cell) for cell in column) else "text"
        for column in columns
    ]
