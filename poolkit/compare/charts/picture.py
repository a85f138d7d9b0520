"""A chart as a picture: Altair describes it, vl-convert draws it; no browser, no network."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import altair as alt
import vl_convert

from poolkit.compare.charts.style import (
    AS_DURATION,
    PAPER,
    SOFT,
    WIDTH,
    colours,
    configuration,
    decades,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolkit.compare.results.results import Results

PNG_SCALE = 2
_GAP = 24
"""Pixels between two panels."""
_CAPTION_WIDTH = 105
"""Characters in a line of the caption of a PNG file."""

Rows: TypeAlias = list[dict[str, Any]]
Panel: TypeAlias = alt.LayerChart | alt.FacetChart


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A chart with its title, and a description of what it shows for screen readers."""

    name: str
    title: str
    description: str
    caption: str = ""
    """How to read it, in a sentence or two."""
    chart: alt.TopLevelMixin

    def png(self) -> bytes:
        """Draw it on a white card with title and caption: readable in a light and a dark README."""
        head = {"fontSize": 16, "anchor": "start", "frame": "bounds", "offset": 16}
        caption = textwrap.wrap(self.caption, _CAPTION_WIDTH)
        title = {"text": self.title, "subtitle": caption, "subtitleColor": SOFT, **head}
        spec = {**self._described, "config": configuration(background=PAPER), "title": title}
        return vl_convert.vegalite_to_png(spec, scale=PNG_SCALE)

    def svg(self) -> str:
        """Draw it without background, title and caption, for a page that has its own."""
        return vl_convert.vegalite_to_svg(
            {**self._described, "config": configuration(background=None)}
        )

    @cached_property
    def _described(self) -> dict[str, Any]:
        # Altair copies and checks every row of it, and it is drawn twice.
        described: dict[str, Any] = self.chart.to_dict()
        return described


def data(rows: Rows) -> alt.InlineData:
    """Return rows in the form that Altair reads, without a data frame."""
    return alt.InlineData(values=rows)


def colour_of_target(results: Results) -> alt.Color:
    """Return the colour of the column `target`; names stand beside the marks, not in a legend."""
    shades = colours([t.name for t in results.targets])
    scale = alt.Scale(domain=list(shades), range=list(shades.values()))
    return alt.Color("target:N", scale=scale, legend=None)


def log_durations(domain: Sequence[float], most: int | None = None) -> dict[str, Any]:
    """Return scale and axis of durations in ms on a logarithmic axis, with at most `most` ticks."""
    return {
        "scale": alt.Scale(type="log", domain=domain, nice=False),
        "axis": alt.Axis(values=decades(domain)[:most], labelExpr=AS_DURATION, title=None),
    }


def on_hover(chart: alt.Chart, text: str, **places: Any) -> alt.Chart:
    """Return invisible points over a chart's marks that have a text: the values there.

    The report's page shows it at a pointer. vl-convert writes it as a label of the mark, from which
    `page.drawing` makes an SVG title.

    Args:
        chart: with the rows.
        text: the column with the text.
        places: the channels of `encode`.
    """
    points = chart.mark_point(filled=True, size=220, opacity=0, aria=True)
    labelled: alt.Chart = points.encode(description=alt.Description(f"{text}:N"), **places)
    return labelled


_COLUMNS = {1: 1, 2: 2, 3: 3, 4: 2}
"""By the number of panels; more than 4 stand in 3 columns."""


def size(panels: int, *, labels: int) -> dict[str, int]:
    """Return width and height of one of several panels.

    Args:
        panels: the number of panels in the picture.
        labels: the width of the labels of each y axis, in pixels.

    """
    columns = _COLUMNS.get(panels, 3)
    width = (WIDTH - labels * columns - _GAP * (columns - 1)) // columns
    return {"width": width, "height": 120 if panels > 1 else 200}


def grid(panels: Sequence[Panel | alt.VConcatChart]) -> alt.VConcatChart:
    """Return panels side by side, in rows."""
    step = _COLUMNS.get(len(panels), 3)
    rows = [alt.hconcat(*panels[i : i + step], spacing=_GAP) for i in range(0, len(panels), step)]
    return alt.vconcat(*rows, spacing=_GAP)
