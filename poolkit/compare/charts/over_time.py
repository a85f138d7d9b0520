"""The charts over time, one small panel for each target: connections by state, and cold starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import altair as alt

from poolkit.activity.by_target import IDLE
from poolkit.compare.charts.picture import Panel, Picture, Rows, data, grid, size
from poolkit.compare.charts.style import AS_DURATION, FAINT, SOFT, colours, round_ticks
from poolkit.compare.results.run_folder import ConnectionRow, InvokeRow, RunFolder, SampleRow
from poolkit.compare.results.target_result import moments
from poolkit.compare.results.wording import milliseconds

if TYPE_CHECKING:
    from poolkit.compare.results.results import Results
    from poolkit.compare.results.run_folder import TargetFolder, Window
    from poolkit.compare.results.target_result import Moment, TargetResult

MOST_POINTS = 300
"""Points of a panel: more of them only make the file larger."""
_ROOM_FOR_NAME = 0.22
"""The share of a panel's width that the text "warm-up" needs in the narrowest one."""
_STATES = {"active": 1.0, "idle in transaction": 0.62, IDLE: 0.3}
"""Opacity by state. Rarer states, such as an aborted transaction, are drawn as `active`."""


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """A target with its raw rows at hand."""

    target: TargetResult
    folder: TargetFolder
    window: Window
    colour: str
    preset: str

    def x(self) -> alt.X:
        """Return the axis: seconds from the beginning of the measured time."""
        axis = alt.Axis(
            values=round_ticks(self.window.to - self.window.from_, 4.5),
            labelOverlap=False,
            grid=False,
            title=None,
            labelFlush=False,
            labelExpr="datum.value + ' s'",
        )
        return alt.X("s:Q", scale=self._scale(), axis=axis)

    def _scale(self) -> alt.Scale:
        begin, end = self.window.warm_from, self.window.to
        return alt.Scale(domain=[begin - self.window.from_, end - self.window.from_], nice=False)

    def warm_up(self, name_at: int = 9) -> Panel:
        """Return the shade behind the warm-up, its name `name_at` pixels down if it has room."""
        begin = self.window.warm_from - self.window.from_
        share = -begin / (self.window.to - self.window.warm_from)
        shaded = alt.Chart(data([{"begin": begin, "end": 0}]))
        x = alt.X("begin:Q", scale=self._scale())
        rect = shaded.mark_rect(color=FAINT, opacity=0.7).encode(x, alt.X2("end:Q"))
        if share < _ROOM_FOR_NAME:
            return alt.layer(rect)
        name = shaded.mark_text(align="left", dx=5, fontSize=10.5, color=SOFT)
        return alt.layer(rect, name.encode(x, y=alt.value(name_at), text=alt.value("warm-up")))


def _measured(run: RunFolder, results: Results) -> list[_Measured]:
    """Return all targets of the results with their raw rows."""
    shades = colours([t.name for t in results.targets])
    presets = {planned.name: planned.preset for planned in results.plan.targets}
    found = []
    for target in results.targets:
        folder = run.step(results.plan, target.step)
        window = folder.window()
        if window is not None:
            found.append(
                _Measured(
                    target=target,
                    folder=folder,
                    window=window,
                    colour=shades[target.name],
                    preset=presets[target.name],
                )
            )
    return found


# -- connections ----------------------------------------------------------------------------


def over_time(run: RunFolder, results: Results) -> Picture | None:
    """Return the picture of connections by state; None without any sample."""
    shown: list[tuple[_Measured, list[Moment]]] = []
    for each in _measured(run, results):
        # Connections that were not attributed would be drawn as none.
        if each.target.connections.peak is None:
            continue
        samples, rows = each.folder.rows(SampleRow).rows, each.folder.rows(ConnectionRow).rows
        seen = moments(samples, rows, each.preset)
        seen = [m for m in seen if each.window.warm_from <= m.time <= each.window.to]
        # The fullest moment of each group of them, so that no peak is lost.
        step = max(1, math.ceil(len(seen) / MOST_POINTS))
        groups = [seen[i : i + step] for i in range(0, len(seen), step)]
        if groups:
            shown.append((each, [max(group, key=lambda m: m.total) for group in groups]))
    if not shown:
        return None
    top = max(moment.total for _, found in shown for moment in found) or 1
    y = alt.Y(
        "count:Q",
        stack="zero",
        scale=alt.Scale(domain=[0, top * 1.08], nice=False),
        axis=alt.Axis(format="d", title=None, values=round_ticks(top, 4)),
    )
    shade = alt.Scale(domain=list(_STATES), range=list(_STATES.values()))
    opacity = alt.Opacity("state:N", scale=shade, legend=None)
    texts, panels = [], []
    for each, found in shown:
        figures = each.target.connections
        means = ", ".join(f"{mean:.1f} {state}" for state, mean in figures.by_state.items())
        texts.append(f"{each.target.name} had on average {means or 'no connection'}")
        area = alt.Chart(data(_by_state(found, each.window.from_)))
        area = area.mark_area(interpolate="step-after", color=each.colour)
        area = area.encode(each.x(), y, opacity, alt.Order("order:Q"))
        opened = "opened unknown" if figures.opened is None else f"opened {figures.opened:,}"
        subtitle = f"peak {figures.peak}, {opened} for {each.target.served:,} requests"
        # Each moment's values, over the whole height of the panel.
        rules = alt.Chart(data(_texts(found, each.window.from_)))
        rules = rules.mark_rule(strokeWidth=6, opacity=0, aria=True)
        values = rules.encode(each.x(), description=alt.Description("hover:N"))
        panel = alt.layer(each.warm_up(), area, values).properties(**size(len(shown), labels=34))
        panels.append(panel.properties(title=alt.TitleParams(each.target.name, subtitle=subtitle)))
    return Picture(
        name="connections",
        title="Connections over time",
        caption="Light: idle. Darker: idle in a transaction. Dark: in a query. "
        "Time 0 is the beginning of the measured time.",
        description="; ".join(texts) + ".",
        chart=grid(panels),
    )


def _by_state(found: list[Moment], begin: float) -> Rows:
    """Return a row for each moment and each state that is drawn."""
    rows: Rows = []
    for moment in found:
        counts = dict.fromkeys(_STATES, 0)
        for state, number in moment.states.items():
            counts[state if state in counts else "active"] += number
        rows += [
            {"s": round(moment.time - begin, 2), "state": state, "count": number, "order": order}
            for order, (state, number) in enumerate(counts.items())
        ]
    return rows


def _texts(found: list[Moment], begin: float) -> Rows:
    """Return for each moment its time and what was open, as a text."""
    return [
        {
            "s": round(moment.time - begin, 2),
            "hover": f"{moment.time - begin:.1f} s: connections {moment.total:,}"
            + "".join(f", {number:,} {state}" for state, number in moment.states.items() if number),
        }
        for moment in found
    ]


# -- cold starts ----------------------------------------------------------------------------


def cold_starts(run: RunFolder, results: Results) -> Picture | None:
    """Return the picture of cold starts; None where no execution environment was started."""
    shown: list[tuple[_Measured, Rows, str]] = []
    for each in _measured(run, results):
        window = each.window
        rows: Rows = [
            {"s": round(invoke.arrived - window.from_, 3), "ms": invoke.init_ms}
            for invoke in each.folder.rows(InvokeRow).rows
            if invoke.cold
            and invoke.init_ms is not None
            and window.warm_from <= invoke.arrived < window.to
        ]
        if rows:
            cold, text = each.target.cold, ""
            if cold is not None:
                text = f"{cold.warm_up:,} in warm-up, {cold.count:,} after"
                text += f", median {milliseconds(cold.init_ms_p50)}" if cold.init_ms_p50 else ""
            shown.append((each, rows, text))
    if not shown:
        return None
    top = max(row["ms"] for _, rows, _ in shown for row in rows)
    y = alt.Y(
        "ms:Q",
        scale=alt.Scale(domain=[0, top * 1.08], nice=False),
        axis=alt.Axis(tickCount=4, labelExpr=AS_DURATION, title=None),
    )
    room = size(len(shown), labels=56)
    panels = []
    for each, rows, text in shown:
        points = alt.Chart(data(rows)).mark_point(filled=True, size=60, opacity=0.65)
        points = points.encode(each.x(), y, color=alt.value(each.colour))
        # At the bottom: no init phase takes no time at all.
        warm_up = each.warm_up(name_at=room["height"] - 9)
        title = alt.TitleParams(each.target.name, subtitle=text)
        panels.append(alt.layer(warm_up, points).properties(**room, title=title))
    return Picture(
        name="cold_starts",
        title="Cold starts",
        caption="Each point is the start of an execution environment: when, and how long its init "
        "phase took.",
        description="; ".join(f"{each.target.name}: {text}" for each, _, text in shown) + ".",
        chart=grid(panels),
    )
