"""The chart of connections over time, by target and state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import altair as alt

from poolkit.activity.by_target import IDLE
from poolkit.compare.charts.picture import Panel, Picture, Rows, data
from poolkit.compare.charts.time_panels import Measured, grid, measured, size
from poolkit.compare.results.run_folder import ConnectionRow, RunFolder, SampleRow
from poolkit.compare.results.target_result import Moment, moments

if TYPE_CHECKING:
    from poolkit.compare.results.results import Results

MOST_POINTS = 300
"""More would only make the file larger."""

_STATES = {"active": 1.0, "idle in transaction": 0.62, IDLE: 0.3}
"""Opacity by state. What is rarer, such as an aborted transaction, counts as in a query."""


def over_time(run: RunFolder, results: Results) -> Picture | None:
    """Return the picture, none without any sample."""
    seen = [(each, _moments(each)) for each in measured(run, results)]
    shown = [(each, found) for each, found in seen if found]
    if not shown:
        return None
    top = max(m.total for _, found in shown for m in found) or 1
    panels = [_panel(each, found, top, len(shown)) for each, found in shown]
    return Picture(
        name="connections",
        title="Connections over time: light idle, darker in a transaction, dark in a query",
        description="; ".join(_words(each) for each, _ in shown) + ".",
        chart=grid(panels),
    )


def _words(each: Measured) -> str:
    states = each.target.connections.by_state
    means = ", ".join(f"{mean:.1f} {state}" for state, mean in states.items())
    return f"{each.target.name} had on average {means or 'no connection'}"


def _moments(each: Measured) -> list[Moment]:
    samples, rows = each.folder.rows(SampleRow).rows, each.folder.rows(ConnectionRow).rows
    found = moments(each.application_name, samples, rows)
    return _thinned([m for m in found if each.window.warm_from <= m.time <= each.window.to])


def _thinned(found: list[Moment]) -> list[Moment]:
    """Keep the fullest moment of each bucket, so that no peak is lost."""
    step = max(1, math.ceil(len(found) / MOST_POINTS))
    return [max(found[i : i + step], key=lambda m: m.total) for i in range(0, len(found), step)]


def _panel(each: Measured, found: list[Moment], top: int, panels: int) -> Panel:
    rows = [row for moment in found for row in _rows(moment, each.window.from_)]
    y = alt.Y(
        "count:Q",
        stack="zero",
        scale=alt.Scale(domain=[0, top * 1.08], nice=False),
        axis=alt.Axis(format="d", title=None, values=_whole_ticks(top)),
    )
    shade = alt.Scale(domain=list(_STATES), range=list(_STATES.values()))
    area = alt.Chart(data(rows)).mark_area(interpolate="step-after", color=each.colour)
    opacity = alt.Opacity("state:N", scale=shade, legend=None)
    area = area.encode(each.x(), y, opacity, alt.Order("order:Q"))
    title = alt.TitleParams(each.target.name, subtitle=_subtitle(each))
    return alt.layer(each.warm_up(), area).properties(**size(panels, labels=34), title=title)


def _subtitle(each: Measured) -> str:
    figures = each.target.connections
    opened = "opened unknown" if figures.opened is None else f"opened {figures.opened:,}"
    return f"peak {figures.peak}, {opened} for {each.target.served:,} requests"


def _whole_ticks(top: int) -> list[int]:
    """Return at most five ticks at whole numbers: 1, 2, 5 times a power of ten."""
    steps = (m * 10**e for e in range(9) for m in (1, 2, 5))
    step = next(s for s in steps if top / s <= 4)
    return list(range(0, top + 1, step))


def _rows(moment: Moment, start: float) -> Rows:
    counts = dict.fromkeys(_STATES, 0)
    for state, number in moment.states.items():
        counts[state if state in counts else "active"] += number
    seconds = round(moment.time - start, 2)
    return [
        {"s": seconds, "state": state, "count": number, "order": order}
        for order, (state, number) in enumerate(counts.items())
    ]
