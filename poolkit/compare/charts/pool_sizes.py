"""The chart of `--pool-sizes`: throughput and p95 against the size of the pool, target by target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import altair as alt

from poolkit.compare.charts.picture import Panel, Picture, Rows, data, grid, log_durations, size
from poolkit.compare.charts.style import INK, PAPER, SOFT, colours, log_domain
from poolkit.compare.results.wording import figure, milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolkit.compare.results.results import Results
    from poolkit.compare.results.sweep import Sweep

_LABELS = 44
_HEIGHT = 110


def over_pool_sizes(results: Results) -> Picture | None:
    """Return the picture; None for a run without pool sizes, or with nothing to draw."""
    sweeps = [sweep for sweep in results.sweeps if any(point.p95_ms for point in sweep.points)]
    if not sweeps:
        return None
    texts = []
    for sweep in sweeps:
        points = [
            f"{point.label} {figure(point.rate.median)} answered per second, "
            f"p95 {milliseconds(point.p95_ms.median)}"
            for point in sweep.points
            if point.rate and point.p95_ms
        ]
        texts.append(f"{sweep.target}: {'; '.join(points)}")
    names = [sweep.target for sweep in sweeps]
    return Picture(
        name="pool-sizes",
        title="Throughput and p95 latency by pool size",
        caption="Knee: the smallest size with both within 5 % of the best. Dashed: the size by Little's "
        "law. Hollow points: the size did not sustain the load.",
        description=". ".join(texts) + ".",
        chart=grid(
            [_of_target(sweep, colours(names)[sweep.target], len(sweeps)) for sweep in sweeps]
        ),
    )


def _of_target(sweep: Sweep, colour: str, panels: int) -> alt.VConcatChart:
    room = {**size(panels, labels=_LABELS), "height": _HEIGHT}
    rates = [point.rate.high for point in sweep.points if point.rate]
    latencies = [ms for point in sweep.points if point.p95_ms for ms in point.p95_ms]
    lines: tuple[tuple[Literal["rate", "p95_ms"], str, dict[str, Any]], ...] = (
        (
            "rate",
            "answered per second",
            {
                "scale": alt.Scale(domain=[0, max(rates) * 1.15], nice=False),
                "axis": alt.Axis(title=None, tickCount=4),
            },
        ),
        ("p95_ms", "p95 latency", log_durations(log_domain(latencies), most=5)),
    )
    drawn = [
        _panel(sweep, name, y, colour).properties(
            **room,
            title=alt.TitleParams(title, fontSize=11, fontWeight="normal", color=SOFT, offset=4),
        )
        for name, title, y in lines
    ]
    knee = f"knee at {sweep.knee.label}" if sweep.knee else "no size is enough"
    title = alt.TitleParams(
        sweep.target,
        subtitle=f"{sweep.level.name}, {knee}",
        offset=8,
        anchor="start",
        frame="bounds",
    )
    return alt.vconcat(*drawn, spacing=8).properties(title=title)


def _panel(
    sweep: Sweep, name: Literal["rate", "p95_ms"], y_of: dict[str, Any], colour: str
) -> Panel:
    """Return one figure against the size: a line, the range of the repeats, the knee, Little's law."""
    sizes = [point.most for point in sweep.points]
    little = sweep.little.size if sweep.little else None
    ends = [*sizes, *([little] if little else [])]
    is_last = name == "p95_ms"
    x = alt.X(
        "most:Q",
        scale=alt.Scale(type="log", domain=[min(ends) / 1.3, max(ends) * 1.3], nice=False),
        axis=alt.Axis(
            values=sizes,
            labels=is_last,
            labelExpr="format(datum.value, 'd')",
            labelOverlap="greedy",
            grid=False,
            title="connections in each process" if is_last else None,
            titleColor=SOFT,
            titleFontSize=11,
            titleFontWeight="normal",
            titlePadding=4,
        ),
    )
    rows: Rows = []
    for point in sweep.points:
        spread = point.rate if name == "rate" else point.p95_ms
        if spread is not None:
            values = {"low": spread.low, "shown": spread.median, "high": spread.high}
            rounded = {key: round(value, 3) for key, value in values.items()}
            rows.append({"most": point.most, "enough": not point.why_not, **rounded})
    y, low = (alt.Y(f"{column}:Q", **y_of) for column in ("shown", "low"))
    base = alt.Chart(data(rows)).encode(x, y)
    marks = [
        *_marks_of_sizes(sweep, x, named=not is_last),
        base.mark_line(color=colour, strokeWidth=2),
        base.mark_rule(color=colour, strokeWidth=2, opacity=0.55).encode(low, alt.Y2("high:Q")),
        base.mark_point(filled=True, size=48, opacity=1, color=colour),
    ]
    if hollow := [row for row in rows if not row["enough"]]:
        ring = alt.Chart(data(hollow)).mark_point(
            filled=True, size=48, opacity=1, fill=PAPER, stroke=colour, strokeWidth=1.8
        )
        marks.append(ring.encode(x, y))
    return alt.layer(*marks)


def _marks_of_sizes(sweep: Sweep, x: alt.X, *, named: bool) -> Sequence[alt.Chart]:
    """Return the vertical lines of the knee and of Little's law."""
    marks: list[alt.Chart] = []
    sizes = [("knee", sweep.knee.most, [1, 0], 8)] if sweep.knee else []
    sizes += [("Little's law", sweep.little.size, [4, 3], 22)] if sweep.little else []
    for text, at, dash, height in sizes:
        base = alt.Chart(data([{"most": at}]))
        marks.append(base.mark_rule(color=SOFT, strokeWidth=1, strokeDash=dash).encode(x))
        if named:
            label = base.mark_text(color=INK, fontSize=10.5, align="right", dx=-4)
            marks.append(label.encode(x, y=alt.value(height), text=alt.value(text)))
    return marks
