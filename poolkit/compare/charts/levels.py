"""The chart of several loads: connections and p95 against the load, target by target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import altair as alt

from poolkit.compare.charts.picture import (
    Panel,
    Picture,
    Rows,
    data,
    grid,
    log_durations,
    on_hover,
    size,
)
from poolkit.compare.charts.style import FAINT, INK, PAPER, SOFT, colours, log_domain, tick_names
from poolkit.compare.results.levels import HIGHEST, highest_sustained
from poolkit.compare.results.wording import milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from poolkit.compare.results.levels import Knee, LevelResult
    from poolkit.compare.results.results import Results

_HEIGHT = 96
_LABELS = 44
_FAR, _FAR_CEILING = 2.5, 1.5
"""A limit or ceiling above this multiple of the highest figure would flatten the rest."""
_LOG_FROM = 12
"""Times the lowest load: from there even steps would crowd the low ones."""
_PEAK, _SHARE, _P95 = "db.connections.max", "db.connections.share", "http.p95"


class _Limit(NamedTuple):
    """A threshold as it is drawn."""

    limit: float
    text: str


@dataclass(frozen=True, kw_only=True)
class _Loads:
    """The scale that all panels share: tasks offered per second."""

    is_log: bool
    domain: tuple[float, float]
    scale: alt.Scale


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A figure against the load: its axes and the limits drawn across it."""

    metric: str
    title: str
    loads: _Loads
    x: alt.X
    y: Mapping[str, Any]
    """Scale and axis of its values, whatever column they are in."""
    limits: Mapping[str, Sequence[_Limit]]
    """By target: a share of max_connections differs from server to server."""
    top: float
    """The highest value in the panel."""
    named: bool
    """Whether the loads are written under it."""
    shown: Callable[[float], str]
    """Returns a value as it is written."""


def over_load(results: Results) -> Picture | None:
    """Return the picture; None for a run with one load."""
    if not results.has_levels:
        return None
    lines, texts = _lines(results), []
    for name, levels in results.levels.items():
        points = []
        for each in (each for each in levels if each.repeats):
            connections = "connections unknown"
            if each.peak is not None:
                connections = f"{each.peak:,.0f} connections"
            p95 = each.median(_P95)
            latency = f"p95 {milliseconds(p95)}" if p95 is not None else "nothing answered"
            points.append(f"{each.level.name} {connections}, {latency}")
        texts.append(f"{name}: {', '.join(points)}")
    return Picture(
        name="levels",
        title="Connections and p95 latency by load",
        caption="Shaded: loads that the target did not sustain. Dashed: a threshold. Knee: the load with "
        "the most throughput for its latency. Hollow points: the load generator was late.",
        description="; ".join(texts) + ".",
        chart=grid([_target(name, results, lines) for name in results.levels]),
    )


# -- what all panels share ------------------------------------------------------------------


def _lines(results: Results) -> tuple[_Line, _Line]:
    """Return the two figures that are drawn for every target, on common scales."""
    levels = results.plan.levels
    low, high = (levels[at].offered_per_s for at in (0, -1))
    is_log = high > _LOG_FROM * low
    ends = (low / 1.35, high * 1.35)
    if not is_log:
        room = (high - low) * 0.07
        ends = (low - room, high + room)
    scale = alt.Scale(type="log" if is_log else "linear", domain=ends, nice=False)
    loads = _Loads(is_log=is_log, domain=ends, scale=scale)
    ticks = {x.offered_per_s: f"{x.offered_per_s if x.is_open else x.users:g}" for x in levels}
    x_of_peaks, x_of_latencies = (
        alt.Axis(
            values=list(ticks),
            labels=named,
            labelExpr=tick_names(ticks),
            labelOverlap="greedy",
            grid=False,
            title=("arrivals per second" if levels[0].is_open else "users") if named else None,
            titleColor=SOFT,
            titleFontSize=11,
            titleFontWeight="normal",
            titlePadding=4,
        )
        for named in (False, True)
    )
    every = [each for of in results.levels.values() for each in of]
    top = max((each.peak or 0 for each in every), default=1) or 1
    near = _limits(results, _PEAK, 0, top * _FAR)
    top = max([top, *(limit for of in near.values() for limit, _ in of)])
    ceilings = [each.ceiling for each in every if each.ceiling]
    top = max([top, *(ceiling for ceiling in ceilings if ceiling <= top * _FAR_CEILING)])
    peaks = _Line(
        metric=_PEAK,
        title="most connections at once",
        loads=loads,
        x=alt.X("load:Q", scale=scale, axis=x_of_peaks),
        y={
            "scale": alt.Scale(domain=[0, top * 1.22], nice=False),
            "axis": alt.Axis(format="d", title=None, tickCount=3, tickMinStep=1),
        },
        limits=near,
        top=top,
        named=False,
        shown=lambda value: f"{value:,.0f}",
    )
    values = [value for each in every for value in each.spread.get(_P95, ())]
    lowest, highest = min(values, default=1), max(values, default=1)
    near = _limits(results, _P95, lowest / _FAR, highest * _FAR)
    domain = log_domain([*values, *(limit for of in near.values() for limit, _ in of)])
    latencies = _Line(
        metric=_P95,
        title="p95 latency",
        loads=loads,
        x=alt.X("load:Q", scale=scale, axis=x_of_latencies),
        y=log_durations(domain, most=5),
        limits=near,
        top=max(domain),
        named=True,
        shown=milliseconds,
    )
    return peaks, latencies


def _limits(
    results: Results, metric: str, lowest: float, highest: float
) -> dict[str, list[_Limit]]:
    """Return the limits of every target that are not too far away to be drawn."""
    servers = {
        planned.name: planned.max_connections or results.plan.max_connections
        for planned in results.plan.targets
    }
    found: dict[str, list[_Limit]] = {}
    for name in results.levels:
        # A share of connections is one of the target's own server.
        units = {metric: 1.0} | ({_SHARE: servers[name]} if metric == _PEAK else {})
        limits = [
            _Limit(threshold.limit * units[threshold.metric], threshold.wanted)
            for threshold in results.thresholds
            if threshold.applies_to(name) and threshold.key in units
        ]
        found[name] = [each for each in limits if lowest <= each.limit <= highest]
    return found


# -- one target -----------------------------------------------------------------------------


def _target(name: str, results: Results, lines: Sequence[_Line]) -> alt.VConcatChart:
    levels, knee = results.levels[name], results.knees.get(name)
    colour = colours(list(results.levels))[name]
    room = {**size(len(results.levels), labels=_LABELS), "height": _HEIGHT}
    panels = []
    for line in lines:
        marks = [
            *_background(levels, line, knee, line.limits[name]),
            *_points(levels, line, colour),
        ]
        panel = alt.layer(*marks)
        title = alt.TitleParams(line.title, fontSize=11, fontWeight="normal", color=SOFT, offset=4)
        panels.append(panel.properties(**room, title=title))
    top = highest_sustained(levels)
    subtitle = f"sustains {top.level.name}" if top else "sustains none of them"
    subtitle += f", knee at {knee.level.name}" if knee else ""
    title = alt.TitleParams(name, subtitle=subtitle, offset=8, anchor="start", frame="bounds")
    return alt.vconcat(*panels, spacing=8).properties(title=title)


def _points(levels: Sequence[LevelResult], line: _Line, colour: str) -> list[Panel]:
    """Return the line through a figure at each load, with the range of the repeats."""
    rows: Rows = []
    for each in levels:
        spread = each.spread.get(line.metric)
        if spread is not None:
            shown = spread.high if line.metric in HIGHEST else spread.median
            rows.append(
                {
                    "load": each.level.offered_per_s,
                    "low": round(spread.low, 3),
                    "shown": round(shown, 3),
                    "high": round(spread.high, 3),
                    "saturated": each.is_saturated,
                    "hover": f"{each.level.name}: {line.title} {line.shown(shown)}",
                }
            )
    y, low = (alt.Y(f"{column}:Q", **line.y) for column in ("shown", "low"))
    base = alt.Chart(data(rows)).encode(line.x, y)
    marks = [
        base.mark_line(color=colour, strokeWidth=2),
        base.mark_rule(color=colour, strokeWidth=2, opacity=0.55).encode(low, alt.Y2("high:Q")),
        base.mark_point(filled=True, size=48, opacity=1, color=colour),
    ]
    marks.append(on_hover(alt.Chart(data(rows)), "hover", x=line.x, y=y))
    if hollow := [row for row in rows if row["saturated"]]:
        ring = alt.Chart(data(hollow)).mark_point(
            filled=True, size=48, opacity=1, fill=PAPER, stroke=colour, strokeWidth=1.8
        )
        marks.append(ring.encode(line.x, y))
    return marks


def _background(
    levels: Sequence[LevelResult], line: _Line, knee: Knee | None, limits: Sequence[_Limit]
) -> list[Panel]:
    """Return the shade over the loads that were not sustained, the knee, limits and ceilings."""
    marks, loads = [], line.loads
    top = highest_sustained(levels)
    at = levels.index(top) + 1 if top else 0
    if at < len(levels):
        # It contains the first of these loads, and not the one below.
        begin = loads.domain[0]
        if top is not None:
            a, b = top.level.offered_per_s, levels[at].level.offered_per_s
            begin = (a * b) ** 0.5 if loads.is_log else (a + b) / 2
        shaded = alt.Chart(data([{"begin": begin, "end": loads.domain[-1]}]))
        rect = shaded.mark_rect(color=FAINT, opacity=0.7)
        marks.append(rect.encode(alt.X("begin:Q", scale=loads.scale), alt.X2("end:Q")))
    if knee is not None:
        mark = alt.Chart(data([{"load": knee.level.offered_per_s}]))
        x = alt.X("load:Q", scale=loads.scale)
        marks.append(mark.mark_rule(color=SOFT, strokeWidth=1, strokeDash=[2, 3]).encode(x))
        if line.named:
            text = mark.mark_text(color=SOFT, fontSize=10.5, align="right", dx=-4)
            marks.append(text.encode(x, y=alt.value(8), text=alt.value("knee")))
    if limits:
        rows: Rows = [each._asdict() for each in limits]
        base = alt.Chart(data(rows))
        y = alt.Y("limit:Q", **line.y)
        text = base.mark_text(color=INK, fontSize=10, align="left", dx=3, dy=-6)
        marks += [
            base.mark_rule(color=INK, strokeWidth=1, strokeDash=[5, 3]).encode(y),
            text.encode(y, x=alt.value(0), text="text:N"),
        ]
    # The ceiling of connections where it is not far above, one for each load: a function's
    # concurrency may grow with it.
    ceilings: Rows = [
        {
            "load": each.level.offered_per_s,
            "ceiling": each.ceiling,
            "text": f"ceiling {each.ceiling:,}",
        }
        for each in levels
        if line.metric == _PEAK and each.ceiling and each.ceiling <= line.top
    ]
    if ceilings:
        y = alt.Y("ceiling:Q", **line.y)
        drawn = alt.Chart(data(ceilings)).mark_line(color=SOFT, strokeWidth=1).encode(line.x, y)
        text = alt.Chart(data(ceilings[-1:]))
        text = text.mark_text(color=SOFT, fontSize=10, align="right", dx=4, dy=-6)
        marks += [drawn, text.encode(line.x, y, text="text:N")]
    return marks
