"""The charts of experiments, in the style of the reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from poolkit.compare.charts.picture import Panel, Picture, data
from poolkit.compare.charts.style import INK, SOFT, WIDTH, log_domain

if TYPE_CHECKING:
    from poolkit.experiment.outcome import Chart

_COLOURS = (
    *("#2f7ac0", "#d1552b", "#3b9460", "#b58900"),
    *("#b4609f", "#2a9db5", "#8768c8", "#6b7f94"),
)
_BAR_HEIGHT = 30
_PHONE = 350
"""The width of a page on a phone, in pixels."""


def draw(chart: Chart, name: str, *, is_narrow: bool = False) -> Picture:
    """Return the picture of a chart.

    Args:
        chart: what it shows.
        name: of the picture, unique in its page.
        is_narrow: for a phone, where the names of bars stand above them.
    """
    series = list(dict.fromkeys(point[0] for point in chart.points))
    rows = [{"series": s, "x": x, "value": value} for s, x, value in chart.points]
    described = "; ".join(
        f"{' '.join(filter(None, (s, str(x))))}: {value:.3g} {chart.unit}"
        for s, x, value in chart.points[:40]
    )
    scale = alt.Scale(domain=series, range=[_COLOURS[i % 8] for i in range(len(series))])
    legend = None
    if len(series) > 1:
        columns = 1 if is_narrow else 0  # as many as fit on a line
        legend = alt.Legend(
            orient="top", title=None, labelColor=SOFT, labelLimit=_PHONE - 30, columns=columns
        )
    drawn = (_bars if chart.kind == "bars" else _lines)(
        chart, rows, alt.Color("series:N", scale=scale, legend=legend), is_narrow=is_narrow
    )
    return Picture(name=name, title=chart.title, description=described, chart=drawn)


def _values(chart: Chart, values: list[float], *, ticks: int) -> dict[str, Any]:
    """Return scale and axis of the values."""
    axis = alt.Axis(title=chart.unit, titleColor=SOFT, titleFontWeight="normal", tickCount=ticks)
    if chart.is_log:
        domain = log_domain([value for value in values if value > 0])
        return {"scale": alt.Scale(type="log", domain=domain), "axis": axis}
    return {"scale": alt.Scale(zero=True), "axis": axis}


def _bars(chart: Chart, rows: list[dict[str, Any]], colour: alt.Color, *, is_narrow: bool) -> Panel:
    names = list(dict.fromkeys(row["x"] for row in rows))
    totals: dict[str, float] = {}
    for row in rows:
        totals[row["x"]] = totals.get(row["x"], 0.0) + row["value"]
    axis = None if is_narrow else alt.Axis(title=None, labelLimit=260, labelColor=INK)
    y = alt.Y("x:N", sort=names, axis=axis)
    values = _values(chart, list(totals.values()), ticks=3 if is_narrow else 6)
    values["axis"].grid = not is_narrow  # its lines would cross the names
    x = alt.X("value:Q", stack=not chart.is_log, **values)
    order = list(dict.fromkeys(row["series"] for row in rows))
    ordered = [{**row, "order": order.index(row["series"])} for row in rows]
    bars = alt.Chart(data(ordered)).mark_bar(size=16).encode(x, y, colour, order="order:Q")
    ends = [
        {"x": name, "value": total, "text": f"{total:.3g} {chart.unit}"}
        for name, total in totals.items()
    ]
    if is_narrow:
        # A bar as long as the page leaves no room beside it: the value stands with the name.
        heads = [{**end, "text": f"{end['x']}: {end['text']}"} for end in ends]
        texts = alt.Chart(data(heads)).mark_text(align="left", dy=-18, color=INK, limit=_PHONE)
        layer = alt.layer(bars, texts.encode(y, x=alt.value(0), text="text:N"))
        return layer.properties(width=_PHONE - 20, height=(_BAR_HEIGHT + 14) * len(names))
    texts = alt.Chart(data(ends)).mark_text(align="left", dx=5, color=INK)
    layer = alt.layer(bars, texts.encode(alt.X("value:Q"), y, text="text:N"))
    return layer.properties(width=WIDTH - 300, height=_BAR_HEIGHT * len(names))


def _lines(
    chart: Chart, rows: list[dict[str, Any]], colour: alt.Color, *, is_narrow: bool
) -> Panel:
    ticks = 4 if is_narrow else 6
    axis = alt.Axis(title=chart.x_title, titleColor=SOFT, titleFontWeight="normal")
    if is_narrow:
        axis.tickCount = ticks
    x = alt.X("x:Q", axis=axis, scale=alt.Scale(nice=False))
    y = alt.Y("value:Q", **_values(chart, [row["value"] for row in rows], ticks=ticks))
    base = alt.Chart(data(rows))
    lines = base.mark_line(strokeWidth=2).encode(x, y, colour)
    points = base.mark_point(filled=True, size=40).encode(x, y, colour)
    width = _PHONE - 60 if is_narrow else WIDTH - 100
    return alt.layer(lines, points).properties(width=width, height=240)
