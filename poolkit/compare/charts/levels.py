"""The chart of several loads: connections and p95 against the load, target by target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import altair as alt

from poolkit.compare.charts.picture import Panel, Picture, Rows, data, grid, size
from poolkit.compare.charts.style import (
    AS_DURATION,
    FAINT,
    INK,
    PAPER,
    SOFT,
    colours,
    decades,
    log_domain,
)
from poolkit.compare.results.levels import HIGHEST, highest_sustained
from poolkit.compare.results.wording import milliseconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.compare.results.levels import Knee, LevelResult
    from poolkit.compare.results.results import Results
    from poolkit.compare.results.run_folder import Level

_HEIGHT = 96
_LABELS = 44
_FAR, _FAR_CEILING = 2.5, 1.5
"""A limit or ceiling at more than this multiple of what was measured would flatten the rest."""
_LOG_FROM = 12
"""Times the lowest load: from there even steps would crowd the low ones."""
_PEAK, _SHARE, _P95 = "db.connections.max", "db.connections.share", "http.p95"


class _Limit(NamedTuple):
    """A threshold as it is drawn."""

    limit: float
    text: str


@dataclass(frozen=True, kw_only=True)
class _Loads:
    """The axis that all panels share: tasks offered per second, with the names of the levels."""

    levels: Sequence[Level]

    @property
    def _is_log(self) -> bool:
        return self.levels[-1].offered_per_s > _LOG_FROM * self.levels[0].offered_per_s

    @property
    def domain(self) -> list[float]:
        low, high = (self.levels[at].offered_per_s for at in (0, -1))
        if self._is_log:
            return [low / 1.35, high * 1.35]
        room = (high - low) * 0.07
        return [low - room, high + room]

    def scale(self) -> alt.Scale:
        if self._is_log:
            return alt.Scale(type="log", domain=self.domain, nice=False)
        return alt.Scale(domain=self.domain, nice=False)

    def axis(self, *, named: bool) -> alt.Axis:
        numbers = {
            level.offered_per_s: level.offered_per_s if level.is_open else level.users
            for level in self.levels
        }
        # Vega compares the tick's value as drawn; the name is found by the nearest one.
        names = " : ".join(
            f"abs(datum.value - {at!r}) < {at * 1e-6!r} ? '{number:g}'"
            for at, number in numbers.items()
        )
        title = "arrivals per second" if self.levels[0].is_open else "users"
        return alt.Axis(
            values=list(numbers),
            labels=named,
            labelExpr=f"{names} : ''",
            labelOverlap="greedy",
            grid=False,
            title=title if named else None,
            titleColor=SOFT,
            titleFontSize=11,
            titleFontWeight="normal",
            titlePadding=4,
        )

    def between(self, lower: Level | None, higher: Level) -> float:
        """Return where a shade begins that contains the higher level and not the lower one."""
        if lower is None:
            return self.domain[0]
        a, b = lower.offered_per_s, higher.offered_per_s
        return (a * b) ** 0.5 if self._is_log else (a + b) / 2


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A figure against the load: its axis and the limits drawn across it."""

    metric: str
    title: str
    scale: alt.Scale
    axis: alt.Axis
    limits: Mapping[str, Sequence[_Limit]]
    """By target: a share of max_connections is another number on another server."""
    top: float
    """The highest value in the panel."""
    named: bool
    """Whether the loads are written under it."""


def over_load(results: Results) -> Picture | None:
    """Return the picture; None for a run with one load."""
    if not results.has_levels:
        return None
    loads = _Loads(levels=results.plan.levels)
    lines = _lines(results)
    texts = []
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
        chart=grid([_target(name, results, loads, lines) for name in results.levels]),
    )


# -- what all panels share ------------------------------------------------------------------


def _lines(results: Results) -> tuple[_Line, _Line]:
    """Return the two figures that are drawn for every target, on common scales."""
    every = [each for of in results.levels.values() for each in of]
    top = max((each.peak or 0 for each in every), default=1) or 1
    near = _limits(results, _PEAK, 0, top * _FAR)
    top = max([top, *_values(near)])
    ceilings = [each.ceiling for each in every if each.ceiling]
    top = max([top, *(ceiling for ceiling in ceilings if ceiling <= top * _FAR_CEILING)])
    peaks = _Line(
        metric=_PEAK,
        title="most connections at once",
        scale=alt.Scale(domain=[0, top * 1.22], nice=False),
        axis=alt.Axis(format="d", title=None, tickCount=3, tickMinStep=1),
        limits=near,
        top=top,
        named=False,
    )
    values = [value for each in every for value in each.spread.get(_P95, ())]
    lowest, highest = min(values, default=1), max(values, default=1)
    near = _limits(results, _P95, lowest / _FAR, highest * _FAR)
    domain = log_domain([*values, *_values(near)])
    latencies = _Line(
        metric=_P95,
        title="p95 latency",
        scale=alt.Scale(type="log", domain=domain, nice=False),
        axis=alt.Axis(values=decades(domain)[:5], labelExpr=AS_DURATION, title=None),
        limits=near,
        top=max(domain),
        named=True,
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
            if threshold.applies_to(name) and threshold.metric in units
        ]
        found[name] = [each for each in limits if lowest <= each.limit <= highest]
    return found


def _values(limits: Mapping[str, Sequence[_Limit]]) -> list[float]:
    return [each.limit for of in limits.values() for each in of]


# -- one target -----------------------------------------------------------------------------


def _target(name: str, results: Results, loads: _Loads, lines: Sequence[_Line]) -> alt.VConcatChart:
    levels, knee = results.levels[name], results.knees.get(name)
    colour = colours(list(results.levels))[name]
    room = {**size(len(results.levels), labels=_LABELS), "height": _HEIGHT}
    panels = []
    for line in lines:
        marks = [*_background(levels, loads, line, knee), *_limit_marks(levels, line, name, loads)]
        panel = alt.layer(*marks, *_points(levels, loads, line, colour))
        title = alt.TitleParams(line.title, fontSize=11, fontWeight="normal", color=SOFT, offset=4)
        panels.append(panel.properties(**room, title=title))
    top = highest_sustained(levels)
    subtitle = f"sustains {top.level.name}" if top else "sustains none of them"
    subtitle += f", knee at {knee.level.name}" if knee else ""
    title = alt.TitleParams(name, subtitle=subtitle, offset=8, anchor="start", frame="bounds")
    return alt.vconcat(*panels, spacing=8).properties(title=title)


def _points(levels: Sequence[LevelResult], loads: _Loads, line: _Line, colour: str) -> list[Panel]:
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
                }
            )
    x = alt.X("load:Q", scale=loads.scale(), axis=loads.axis(named=line.named))
    y = alt.Y("shown:Q", scale=line.scale, axis=line.axis)
    base = alt.Chart(data(rows)).encode(x, y)
    low = alt.Y("low:Q", scale=line.scale, axis=line.axis)
    marks = [
        base.mark_line(color=colour, strokeWidth=2),
        base.mark_rule(color=colour, strokeWidth=2, opacity=0.55).encode(low, alt.Y2("high:Q")),
        base.mark_point(filled=True, size=48, opacity=1, color=colour),
    ]
    if hollow := [row for row in rows if row["saturated"]]:
        ring = alt.Chart(data(hollow)).mark_point(
            filled=True, size=48, opacity=1, fill=PAPER, stroke=colour, strokeWidth=1.8
        )
        marks.append(ring.encode(x, y))
    return marks


def _background(
    levels: Sequence[LevelResult], loads: _Loads, line: _Line, knee: Knee | None
) -> list[Panel]:
    """Return the shade over the loads that were not sustained, and the mark of the knee."""
    marks = []
    top = highest_sustained(levels)
    at = levels.index(top) + 1 if top else 0
    if at < len(levels):
        begin = loads.between(top.level if top else None, levels[at].level)
        shaded = alt.Chart(data([{"begin": begin, "end": loads.domain[-1]}]))
        rect = shaded.mark_rect(color=FAINT, opacity=0.7)
        marks.append(rect.encode(alt.X("begin:Q", scale=loads.scale()), alt.X2("end:Q")))
    if knee is not None:
        mark = alt.Chart(data([{"load": knee.level.offered_per_s}]))
        x = alt.X("load:Q", scale=loads.scale())
        marks.append(mark.mark_rule(color=SOFT, strokeWidth=1, strokeDash=[2, 3]).encode(x))
        if line.named:
            text = mark.mark_text(color=SOFT, fontSize=10.5, align="right", dx=-4)
            marks.append(text.encode(x, y=alt.value(8), text=alt.value("knee")))
    return marks


def _limit_marks(
    levels: Sequence[LevelResult], line: _Line, name: str, loads: _Loads
) -> list[Panel]:
    """Return the thresholds, and the ceiling of connections where it is not far above."""
    marks = []
    if limits := line.limits[name]:
        rows: Rows = [each._asdict() for each in limits]
        base = alt.Chart(data(rows))
        y = alt.Y("limit:Q", scale=line.scale, axis=line.axis)
        text = base.mark_text(color=INK, fontSize=10, align="left", dx=3, dy=-6)
        marks = [
            base.mark_rule(color=INK, strokeWidth=1, strokeDash=[5, 3]).encode(y),
            text.encode(y, x=alt.value(0), text="text:N"),
        ]
    # One for each load: a function's concurrency may grow with it.
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
        x = alt.X("load:Q", scale=loads.scale(), axis=loads.axis(named=line.named))
        y = alt.Y("ceiling:Q", scale=line.scale, axis=line.axis)
        drawn = alt.Chart(data(ceilings)).mark_line(color=SOFT, strokeWidth=1).encode(x, y)
        text = alt.Chart(data(ceilings[-1:]))
        text = text.mark_text(color=SOFT, fontSize=10, align="right", dx=4, dy=-6)
        marks += [drawn, text.encode(x, y, text="text:N")]
    return marks
