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


def draw(chart: Chart, name: str) -> Picture:
    """Return the picture of a chart.

    Args:
        chart: what it shows.
        name: of the picture, unique in its page.
    """
    series = list(dict.fromkeys(point[0] for point in chart.points))
    rows = [{"series": s, "x": x, "value": value} for s, x, value in chart.points]
    described = "; ".join(
        f"{' '.join(filter(None, (s, str(x))))}: {value:.3g} {chart.unit}"
        for s, x, value in chart.points[:40]
    )
    scale = alt.Scale(domain=series, range=[_COLOURS[i % 8] for i in range(len(series))])
    legend = alt.Legend(orient="top", title=None, labelColor=SOFT) if len(series) > 1 else None
    drawn = (_bars if chart.kind == "bars" else _lines)(
        chart, rows, alt.Color("series:N", scale=scale, legend=legend)
    )
    return Picture(name=name, title=chart.title, description=described, chart=drawn)


def _values(chart: Chart, values: list[float]) -> dict[str, Any]:
    """Return scale and axis of the values."""
    axis = alt.Axis(title=chart.unit, titleColor=SOFT, titleFontWeight="normal", tickCount=6)
    if chart.is_log:
        domain = log_domain([value for value in values if value > 0])
        return {"scale": alt.Scale(type="log", domain=domain), "axis": axis}
    return {"scale": alt.Scale(zero=True), "axis": axis}


def _bars(chart: Chart, rows: list[dict[str, Any]], colour: alt.Color) -> Panel:
    names = list(dict.fromkeys(row["x"] for row in rows))
    totals: dict[str, float] = {}
    for row in rows:
        totals[row["x"]] = totals.get(row["x"], 0.0) + row["value"]
    y = alt.Y("x:N", sort=names, axis=alt.Axis(title=None, labelLimit=260, labelColor=INK))
    x = alt.X("value:Q", stack=not chart.is_log, **_values(chart, list(totals.values())))
    order = list(dict.fromkeys(row["series"] for row in rows))
    ordered = [{**row, "order": order.index(row["series"])} for row in rows]
    bars = alt.Chart(data(ordered)).mark_bar(size=16).encode(x, y, colour, order="order:Q")
    ends = [
        {"x": name, "value": total, "text": f"{total:.3g} {chart.unit}"}
        for name, total in totals.items()
    ]
    texts = alt.Chart(data(ends)).mark_text(align="left", dx=5, color=INK)
    layer = alt.layer(bars, texts.encode(alt.X("value:Q"), y, text="text:N"))
    return layer.properties(width=WIDTH - 300, height=_BAR_HEIGHT * len(names))


def _lines(chart: Chart, rows: list[dict[str, Any]], colour: alt.Color) -> Panel:
    axis = alt.Axis(title=chart.x_title, titleColor=SOFT, titleFontWeight="normal")
    x = alt.X("x:Q", axis=axis, scale=alt.Scale(nice=False))
    y = alt.Y("value:Q", **_values(chart, [row["value"] for row in rows]))
    base = alt.Chart(data(rows))
    lines = base.mark_line(strokeWidth=2).encode(x, y, colour)
    points = base.mark_point(filled=True, size=40).encode(x, y, colour)
    return alt.layer(lines, points).properties(width=WIDTH - 100, height=240)
