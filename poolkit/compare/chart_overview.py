"""The chart of all targets: connections open at once, connections opened, latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from poolkit.compare.chart_style import INK
from poolkit.compare.log_axis import AS_DURATION, decades, log_domain
from poolkit.compare.picture import Panel, Picture, Rows, colour_of_target, data
from poolkit.compare.wording import figure, milliseconds

if TYPE_CHECKING:
    from poolkit.compare.results import Results

_ROW_HEIGHT = 34


def overview(results: Results) -> Picture:
    """Return the picture; a target without a figure has an empty row there."""
    panels = [_peak_panel(results), _opened_panel(results), _latency_panel(results)]
    says = [
        f"{t.name}: peak {_or_unknown(t.connections.peak)}, opened "
        f"{_or_unknown(t.connections.opened)} for {t.served} requests, "
        f"p95 {milliseconds(t.latency_ms.p95) if t.latency_ms else 'unknown'}"
        for t in results.targets
    ]
    return Picture(
        name="overview",
        title="Connections and latency of each target under the same load",
        description="; ".join(says) + ".",
        chart=alt.hconcat(*panels, spacing=26),
    )


def _or_unknown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _rows_axis(results: Results, *, labels: bool) -> alt.Y:
    axis = (
        alt.Axis(labelFontSize=13, labelColor=INK, labelPadding=8, title=None) if labels else None
    )
    return alt.Y("target:N", sort=[t.name for t in results.targets], axis=axis)


def _peak_panel(results: Results) -> Panel:
    rows: Rows = [
        {
            "target": t.name,
            "value": c.peak,
            "ceiling": c.ceiling,
            "text": _of_ceiling(c.peak, c.ceiling),
        }
        for t in results.targets
        if (c := t.connections).peak is not None
    ]
    top = max((max(row["value"], row["ceiling"] or 0) for row in rows), default=1)
    panel = _bars(results, rows, top, "Open at once", "peak; the mark is its ceiling", labels=True)
    ceiling = alt.Chart(data([row for row in rows if row["ceiling"]])).mark_tick(
        color=INK, thickness=1.5, size=22
    )
    return alt.layer(panel, ceiling.encode(_x(top, "ceiling"), _rows_axis(results, labels=True)))


def _of_ceiling(peak: int, ceiling: int | None) -> str:
    return f"{peak:,} of {ceiling:,}" if ceiling else f"{peak:,}"


def _opened_panel(results: Results) -> Panel:
    rows: Rows = [
        {"target": t.name, "value": opened, "text": figure(opened) if opened else "0"}
        for t in results.targets
        if (opened := t.connections.opened_per_1000_requests) is not None
    ]
    top = max((row["value"] for row in rows), default=1) or 1
    return _bars(results, rows, top, "Opened", "per 1,000 requests", labels=False)


def _x(top: float, name: str = "value") -> alt.X:
    # Room at the right for the figure behind the longest bar.
    return alt.X(f"{name}:Q", scale=alt.Scale(domain=[0, top * 1.45 or 1]), axis=None)


def _bars(
    results: Results, rows: Rows, top: float, title: str, subtitle: str, *, labels: bool
) -> Panel:
    base = alt.Chart(data(rows)).encode(_x(top), _rows_axis(results, labels=labels))
    bars = base.mark_bar(height=16, cornerRadiusEnd=2).encode(colour_of_target(results))
    longest = _x(top, "longest")
    behind = "max(datum.value, isValid(datum.ceiling) ? datum.ceiling : 0)"
    text = base.transform_calculate(longest=behind).mark_text(align="left", dx=7, fontSize=12)
    return alt.layer(bars, text.encode(longest, text="text:N")).properties(
        width=190 if labels else 150,
        height=_ROW_HEIGHT * len(results.targets),
        title=alt.TitleParams(title, subtitle=subtitle),
    )


def _latency_panel(results: Results) -> Panel:
    rows: Rows = [
        {
            "target": t.name,
            "p50": latency.p50,
            "p95": latency.p95,
            "p99": latency.p99,
            "text": milliseconds(latency.p95),
        }
        for t in results.targets
        if (latency := t.latency_ms) is not None
    ]
    domain = log_domain([row[p] for row in rows for p in ("p50", "p99")])
    x = alt.Scale(type="log", domain=domain, nice=False)
    axis = alt.Axis(values=decades(domain), labelExpr=AS_DURATION, title=None, grid=True)
    base = alt.Chart(data(rows)).encode(
        _rows_axis(results, labels=False), colour_of_target(results)
    )
    lines = base.mark_rule(strokeWidth=2, opacity=0.55).encode(
        alt.X("p50:Q", scale=x, axis=axis), alt.X2("p99:Q")
    )
    ends = [
        base.mark_point(filled=True, size=size, shape=shape, opacity=1).encode(
            alt.X(f"{name}:Q", scale=x)
        )
        for name, size, shape in (
            ("p50", 45, "circle"),
            ("p95", 150, "diamond"),
            ("p99", 110, "stroke"),
        )
    ]
    turned = [*ends[:2], ends[2].encode(angle=alt.value(90))]
    text = base.mark_text(dy=-13, fontSize=11).encode(
        alt.X("p95:Q", scale=x), text="text:N", color=alt.value(INK)
    )
    return alt.layer(lines, *turned, text).properties(
        width=250,
        height=_ROW_HEIGHT * len(results.targets),
        title=alt.TitleParams("Latency", subtitle="dot p50, diamond p95, line to p99"),
    )
