"""A chart as a picture: Altair describes it, vl-convert draws it; no browser, no network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import altair as alt
import vl_convert

from poolkit.compare.charts.style import PAPER, colours, configuration

if TYPE_CHECKING:
    from poolkit.compare.results.results import Results

PNG_SCALE = 2

Rows: TypeAlias = list[dict[str, Any]]
Panel: TypeAlias = alt.LayerChart | alt.FacetChart


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A chart, its title and what it shows in words, for those who cannot see it."""

    name: str
    title: str
    description: str
    caption: str = ""
    """How to read it, in a sentence or two."""
    chart: alt.TopLevelMixin

    def png(self) -> bytes:
        """Draw it on a white card, readable in a light and in a dark README."""
        return vl_convert.vegalite_to_png(self._spec(PAPER, title=self.title), scale=PNG_SCALE)

    def svg(self) -> str:
        """Draw it without background and title, for a page that has its own."""
        return vl_convert.vegalite_to_svg(self._spec(None, title=None))

    def _spec(self, background: str | None, *, title: str | None) -> dict[str, Any]:
        spec = {**self._described, "config": configuration(background=background)}
        if title is not None:
            head = {"fontSize": 16, "anchor": "start", "frame": "bounds", "offset": 16}
            spec["title"] = {"text": title, **head}
        return spec

    @cached_property
    def _described(self) -> dict[str, Any]:
        # Altair copies and checks every row of it, and it is drawn twice.
        described: dict[str, Any] = self.chart.to_dict()
        return described


def data(rows: Rows) -> alt.InlineData:
    """Return rows as Altair takes them, without a data frame."""
    return alt.InlineData(values=rows)


def colour_of_target(results: Results) -> alt.Color:
    """Return the colour of the column `target`; names stand beside the marks, not in a legend."""
    shades = colours([t.name for t in results.targets])
    scale = alt.Scale(domain=list(shades), range=list(shades.values()))
    return alt.Color("target:N", scale=scale, legend=None)
