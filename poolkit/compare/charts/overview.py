"""The chart of all targets: connections open at once, connections opened, latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from poolkit.compare.charts.picture import (
    Panel,
    Picture,
    Rows,
    colour_of_target,
    data,
    log_durations,
    on_hover,
)
from poolkit.compare.charts.style import INK, log_domain
from poolkit.compare.results.wording import figure, milliseconds

if TYPE_CHECKING:
    from poolkit.compare.results.results import Results

_ROW_HEIGHT = 34


def overview(results: Results, beside: Results | None = None) -> Picture:
    """Return the picture; a target without a figure has an empty row there.

    Args:
        results: what it shows.
        beside: another run, whose picture has the same scales.

    """
    # The axes of two pictures that stand under each other have the same ends.
    every = [*results.targets, *(beside.targets if beside else ())]
    counts = [t.connections for t in every]
    most_open = max((max(c.peak or 0, c.ceiling or 0) for c in counts), default=1) or 1
    most_opened = max((c.opened_per_1000_requests or 0 for c in counts), default=1) or 1
    known = [t.latency_ms for t in every if t.latency_ms]
    domain = log_domain([ms for latency in known for ms in (latency.p50, latency.p99)])
    opened_rows: Rows = [
        {"target": t.name, "value": opened, "text": figure(opened) if opened else "0"}
        for t in results.targets
        if (opened := t.connections.opened_per_1000_requests) is not None
    ]
    opened_panel = _bars(results, opened_rows, most_opened, labels=False).properties(
        width=150,
        height=_ROW_HEIGHT * len(results.targets),
        title=alt.TitleParams("Opened", subtitle="per 1,000 requests"),
    )
    peak_rows: Rows = [
        {
            "target": t.name,
            "value": c.peak,
            "ceiling": c.ceiling,
            "text": f"{c.peak:,} of {c.ceiling:,}" if c.ceiling else f"{c.peak:,}",
        }
        for t in results.targets
        if (c := t.connections).peak is not None
    ]
    ceilings = alt.Chart(data([row for row in peak_rows if row["ceiling"]])).mark_tick(
        color=INK, thickness=1.5, size=22
    )
    marks = ceilings.encode(_x(most_open, "ceiling"), _rows_axis(results, labels=True))
    peaks = alt.layer(_bars(results, peak_rows, most_open, labels=True), marks).properties(
        width=190,
        height=_ROW_HEIGHT * len(results.targets),
        title=alt.TitleParams("Open at once", subtitle="peak; the mark is the ceiling"),
    )
    latencies = _latency_panel(results, domain)
    texts = []
    for target in results.targets:
        found, latency = target.connections, target.latency_ms
        peak, new = (
            "unknown" if value is None else f"{value:,}" for value in (found.peak, found.opened)
        )
        p95 = milliseconds(latency.p95) if latency else "unknown"
        texts.append(
            f"{target.name}: peak {peak}, opened {new} for {target.served:,} requests, p95 {p95}"
        )
    return Picture(
        name="overview",
        title="Connections and latency of each target under the same load",
        caption="Ceiling: the most connections that the settings allow. p95: 95 % of the requests took at "
        "most this long.",
        description="; ".join(texts) + ".",
        chart=alt.hconcat(peaks, opened_panel, latencies, spacing=26),
    )


def _rows_axis(results: Results, *, labels: bool) -> alt.Y:
    """Return the axis of one row for each target."""
    shown = alt.Axis(labelFontSize=13, labelColor=INK, labelPadding=8, title=None)
    # All names in every panel, or the rows of one without figures would slip.
    names = alt.Scale(domain=[t.name for t in results.targets])
    return alt.Y("target:N", scale=names, axis=shown if labels else None)


def _x(top: float, name: str = "value") -> alt.X:
    # Room at the right for the figure behind the longest bar.
    return alt.X(f"{name}:Q", scale=alt.Scale(domain=[0, top * 1.45]), axis=None)


def _bars(results: Results, rows: Rows, top: float, *, labels: bool) -> Panel:
    base = alt.Chart(data(rows)).encode(_x(top), _rows_axis(results, labels=labels))
    bars = base.mark_bar(height=16, cornerRadiusEnd=2).encode(colour_of_target(results))
    behind = "max(datum.value, isValid(datum.ceiling) ? datum.ceiling : 0)"
    text = base.transform_calculate(longest=behind).mark_text(align="left", dx=7, fontSize=12)
    return alt.layer(bars, text.encode(_x(top, "longest"), text="text:N"))


def _latency_panel(results: Results, domain: list[float]) -> Panel:
    rows: Rows = [
        {
            "target": t.name,
            "text": milliseconds(latency.p95),
            **{name: getattr(latency, name) for name in ("p50", "p95", "p99")},
            **{
                f"hover_{name}": f"{t.name}: {name} {milliseconds(getattr(latency, name))}"
                for name in ("p50", "p95", "p99")
            },
        }
        for t in results.targets
        if (latency := t.latency_ms) is not None
    ]
    base = alt.Chart(data(rows)).encode(
        _rows_axis(results, labels=False), colour_of_target(results)
    )
    p50, p95 = (alt.X(f"{name}:Q", **log_durations(domain)) for name in ("p50", "p95"))
    line = base.mark_rule(strokeWidth=2, opacity=0.55).encode(p50, alt.X2("p99:Q"))
    dot = base.mark_point(filled=True, size=45, shape="circle", opacity=1).encode(p50)
    diamond = base.mark_point(filled=True, size=150, shape="diamond", opacity=1).encode(p95)
    text = base.mark_text(dy=-13, fontSize=11).encode(p95, text="text:N", color=alt.value(INK))
    p99 = alt.X("p99:Q", **log_durations(domain))
    values = [
        on_hover(base, f"hover_{name}", x=at)
        for name, at in (("p50", p50), ("p95", p95), ("p99", p99))
    ]
    title = alt.TitleParams("Latency", subtitle="dot p50, diamond p95, line to p99", offset=8)
    return alt.layer(line, dot, diamond, text, *values).properties(
        width=250, height=_ROW_HEIGHT * len(results.targets), title=title
    )
