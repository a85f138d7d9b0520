"""The chart of several loads: connections and p95 against the load, target by target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import altair as alt

from poolkit.compare.charts.log_axis import AS_DURATION, decades, log_domain
from poolkit.compare.charts.picture import Panel, Picture, Rows, data
from poolkit.compare.charts.style import FAINT, INK, PAPER, SOFT, colours
from poolkit.compare.charts.time_panels import grid, size
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
"""A limit or ceiling at more than so many times what was measured would flatten the rest."""
_LOG_FROM = 12
"""Times the lowest load: from there even steps would crowd the low ones."""
_PEAK, _SHARE, _P95 = "db.connections.max", "db.connections.share", "http.p95"


@dataclass(frozen=True, kw_only=True)
class _Loads:
    """The axis that all panels share: tasks offered a second, named by the levels."""

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
        return alt.Axis(
            values=list(numbers),
            labels=named,
            labelExpr=f"{names} : ''",
            labelOverlap="greedy",
            grid=False,
            title=("arrivals per s" if self.levels[0].is_open else "users") if named else None,
            titleColor=SOFT,
            titleFontSize=11,
            titleFontWeight="normal",
            titlePadding=4,
        )

    def between(self, lower: Level | None, higher: Level) -> float:
        """Return where a shade begins that holds the higher level and not the lower one."""
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
    limits: Mapping[str, Sequence[tuple[float, str]]]
    """By target: a share of max_connections is another number on another server."""
    top: float
    """The highest value that there is room for."""
    named: bool
    """Whether the loads are written under it."""


def over_load(results: Results) -> Picture | None:
    """Return the picture, none for a run with one load."""
    if not results.has_levels:
        return None
    loads = _Loads(levels=results.plan.levels)
    peaks, latencies = _peak_line(results), _p95_line(results)
    cells = [_cell(name, results, loads, peaks, latencies) for name in results.levels]
    return Picture(
        name="levels",
        title="Connections and p95 against the load: shaded where a target did not hold it",
        description="; ".join(_words(name, of) for name, of in results.levels.items()) + ".",
        chart=grid(cells),
    )


def _words(name: str, levels: Sequence[LevelResult]) -> str:
    said = []
    for each in levels:
        peak, p95 = each.spread.get(_PEAK), each.spread.get(_P95)
        connections = f"{peak.high:,.0f} connections" if peak else "connections unknown"
        latency = f"p95 {milliseconds(p95.median)}" if p95 else "nothing answered"
        said.append(f"{each.level.name} {connections}, {latency}" if each.repeats else "")
    return f"{name}: {', '.join(filter(None, said))}"


# -- what all panels share ------------------------------------------------------------------


def _peak_line(results: Results) -> _Line:
    top = max(_highs(results, _PEAK), default=1) or 1
    near = _limits(results, _PEAK, 0, top * _FAR)
    ceilings = [each for of in results.levels.values() for _, each in _ceilings(of)]
    top = max([top, *_values(near)])
    top = max([top, *(each for each in ceilings if each <= top * _FAR_CEILING)])
    return _Line(
        metric=_PEAK,
        title="most connections at once",
        scale=alt.Scale(domain=[0, top * 1.22], nice=False),
        axis=alt.Axis(format="d", title=None, tickCount=3, tickMinStep=1),
        limits=near,
        top=top,
        named=False,
    )


def _p95_line(results: Results) -> _Line:
    values = [value for of in results.levels.values() for each in of for value in _p95s(each)]
    lowest, highest = min(values, default=1), max(values, default=1)
    near = _limits(results, _P95, lowest / _FAR, highest * _FAR)
    domain = log_domain([*values, *_values(near)])
    return _Line(
        metric=_P95,
        title="p95",
        scale=alt.Scale(type="log", domain=domain, nice=False),
        axis=alt.Axis(values=decades(domain)[:5], labelExpr=AS_DURATION, title=None),
        limits=near,
        top=domain[1],
        named=True,
    )


def _p95s(each: LevelResult) -> Sequence[float]:
    return each.spread.get(_P95, ())


def _ceilings(levels: Sequence[LevelResult]) -> list[tuple[float, int]]:
    """Return the ceiling at each load: a function's concurrency may grow with it."""
    return [
        (each.level.offered_per_s, ceiling)
        for each in levels
        for repeat in each.repeats[:1]
        if (ceiling := repeat.connections.ceiling)
    ]


def _highs(results: Results, metric: str) -> list[float]:
    every = (each for of in results.levels.values() for each in of)
    return [each.spread[metric].high for each in every if metric in each.spread]


def _limits(
    results: Results, metric: str, lowest: float, highest: float
) -> dict[str, list[tuple[float, str]]]:
    """Return the limits of every target that are not too far away to be drawn."""
    found = {name: _limits_of(name, results, metric) for name in results.levels}
    return {
        name: [(limit, words) for limit, words in of if lowest <= limit <= highest]
        for name, of in found.items()
    }


def _limits_of(name: str, results: Results, metric: str) -> list[tuple[float, str]]:
    """Return a target's limits; a share of connections is one of its own server's."""
    units = {metric: 1.0}
    if metric == _PEAK:
        (planned,) = (planned for planned in results.plan.targets if planned.name == name)
        units[_SHARE] = planned.max_connections or results.plan.max_connections
    mine = [t for t in results.thresholds if t.applies_to(name) and t.metric in units]
    return [(t.limit * units[t.metric], t.wanted) for t in mine]


def _values(limits: Mapping[str, Sequence[tuple[float, str]]]) -> list[float]:
    return [limit for of in limits.values() for limit, _ in of]


# -- one target -----------------------------------------------------------------------------


def _cell(
    name: str, results: Results, loads: _Loads, peaks: _Line, latencies: _Line
) -> alt.VConcatChart:
    levels, knee = results.levels[name], results.knees.get(name)
    colour = colours(list(results.levels))[name]
    room = {**size(len(results.levels), labels=_LABELS), "height": _HEIGHT}
    panels = [
        _panel(levels, loads, line, colour=colour, knee=knee, limits=line.limits[name]).properties(
            **room,
            title=alt.TitleParams(
                line.title, fontSize=11, fontWeight="normal", color=SOFT, offset=4
            ),
        )
        for line in (peaks, latencies)
    ]
    subtitle = _subtitle(levels, knee)
    title = alt.TitleParams(name, subtitle=subtitle, offset=8, anchor="start", frame="bounds")
    return alt.vconcat(*panels, spacing=8).properties(title=title)


def _subtitle(levels: Sequence[LevelResult], knee: Knee | None) -> str:
    top = highest_sustained(levels)
    held = f"holds {top.level.name}" if top else "holds none of them"
    return f"{held}, knee at {knee.level.name}" if knee else held


def _panel(
    levels: Sequence[LevelResult],
    loads: _Loads,
    line: _Line,
    *,
    colour: str,
    knee: Knee | None,
    limits: Sequence[tuple[float, str]],
) -> Panel:
    rows = [_row(each, line.metric) for each in levels if line.metric in each.spread]
    x = alt.X("load:Q", scale=loads.scale(), axis=loads.axis(named=line.named))
    y = alt.Y("shown:Q", scale=line.scale, axis=line.axis)
    base = alt.Chart(data(rows)).encode(x, y)
    layers = [
        *_shade(levels, loads),
        *_knee_mark(knee, loads, named=line.named),
        *_limit_marks(limits, line),
        *_ceiling_mark(levels, line, x),
        base.mark_line(color=colour, strokeWidth=2),
        base.mark_rule(color=colour, strokeWidth=2, opacity=0.55).encode(
            alt.Y("low:Q", scale=line.scale, axis=line.axis), alt.Y2("high:Q")
        ),
        base.mark_point(filled=True, size=48, opacity=1, color=colour),
    ]
    hollow = [row for row in rows if row["saturated"]]
    if hollow:
        ring = alt.Chart(data(hollow)).mark_point(
            filled=True, size=48, opacity=1, fill=PAPER, stroke=colour, strokeWidth=1.8
        )
        layers.append(ring.encode(x, y))
    return alt.layer(*layers)


def _row(each: LevelResult, metric: str) -> dict[str, float | bool]:
    low, median, high = (round(value, 3) for value in each.spread[metric])
    shown = high if metric in HIGHEST else median
    load = each.level.offered_per_s
    return {
        "load": load,
        "low": low,
        "shown": shown,
        "high": high,
        "saturated": each.is_saturated,
    }


def _shade(levels: Sequence[LevelResult], loads: _Loads) -> list[alt.Chart]:
    """Shade what lies beyond the highest load that was held."""
    top = highest_sustained(levels)
    at = levels.index(top) + 1 if top else 0
    if at == len(levels):
        return []
    begin = loads.between(top.level if top else None, levels[at].level)
    shaded = alt.Chart(data([{"begin": begin, "end": loads.domain[1]}]))
    rect = shaded.mark_rect(color=FAINT, opacity=0.7)
    return [rect.encode(alt.X("begin:Q", scale=loads.scale()), alt.X2("end:Q"))]


def _knee_mark(knee: Knee | None, loads: _Loads, *, named: bool) -> list[alt.Chart]:
    if knee is None:
        return []
    at = alt.Chart(data([{"load": knee.level.offered_per_s}]))
    x = alt.X("load:Q", scale=loads.scale())
    rule = at.mark_rule(color=SOFT, strokeWidth=1, strokeDash=[2, 3]).encode(x)
    if not named:
        return [rule]
    text = at.mark_text(color=SOFT, fontSize=10.5, align="right", dx=-4)
    return [rule, text.encode(x, y=alt.value(8), text=alt.value("knee"))]


def _limit_marks(limits: Sequence[tuple[float, str]], line: _Line) -> list[alt.Chart]:
    if not limits:
        return []
    rows: Rows = [{"limit": limit, "text": words} for limit, words in limits]
    marks = alt.Chart(data(rows))
    y = alt.Y("limit:Q", scale=line.scale, axis=line.axis)
    rule = marks.mark_rule(color=INK, strokeWidth=1, strokeDash=[5, 3]).encode(y)
    text = marks.mark_text(color=INK, fontSize=10, align="left", dx=3, dy=-6)
    return [rule, text.encode(y, x=alt.value(0), text="text:N")]


def _ceiling_mark(levels: Sequence[LevelResult], line: _Line, x: alt.X) -> list[alt.Chart]:
    """Draw the most connections that there may be, where that is not far above."""
    rows: Rows = [
        {"load": load, "ceiling": each, "text": f"ceiling {each:,}"}
        for load, each in _ceilings(levels)
        if line.metric == _PEAK and each <= line.top
    ]
    if not rows:
        return []
    y = alt.Y("ceiling:Q", scale=line.scale, axis=line.axis)
    drawn = alt.Chart(data(rows)).mark_line(color=SOFT, strokeWidth=1).encode(x, y)
    last = alt.Chart(data(rows[-1:]))
    text = last.mark_text(color=SOFT, fontSize=10, align="right", dx=4, dy=-6)
    return [drawn, text.encode(x, y, text="text:N")]
