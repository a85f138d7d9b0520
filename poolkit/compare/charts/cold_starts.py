"""The chart of cold starts: when they happened, and how long each init phase took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from poolkit.compare.charts.log_axis import AS_DURATION
from poolkit.compare.charts.picture import Panel, Picture, Rows, data
from poolkit.compare.charts.time_panels import Measured, grid, measured, size
from poolkit.compare.results.run_folder import InvokeRow, RunFolder
from poolkit.compare.results.wording import milliseconds

if TYPE_CHECKING:
    from poolkit.compare.results.results import Results


def cold_starts(run: RunFolder, results: Results) -> Picture | None:
    """Return the picture, none where no execution environment was started."""
    seen = [(each, _rows(each)) for each in measured(run, results)]
    shown = [(each, rows) for each, rows in seen if rows]
    if not shown:
        return None
    top = max(row["ms"] for _, rows in shown for row in rows)
    return Picture(
        name="cold_starts",
        title="Cold starts: when, and how long each init phase took",
        description="; ".join(f"{each.target.name}: {_subtitle(each)}" for each, _ in shown) + ".",
        chart=grid([_panel(each, rows, top, len(shown)) for each, rows in shown]),
    )


def _rows(each: Measured) -> Rows:
    window = each.window
    return [
        {"s": round(i.arrived - window.from_, 3), "ms": i.init_ms}
        for i in each.folder.rows(InvokeRow).rows
        if i.cold and i.init_ms is not None and window.warm_from <= i.arrived < window.to
    ]


def _panel(each: Measured, rows: Rows, top: float, panels: int) -> Panel:
    y = alt.Y(
        "ms:Q",
        scale=alt.Scale(domain=[0, top * 1.08], nice=False),
        axis=alt.Axis(tickCount=4, labelExpr=AS_DURATION, title=None),
    )
    points = alt.Chart(data(rows)).mark_point(filled=True, size=60, opacity=0.65)
    points = points.encode(each.x(), y, color=alt.value(each.colour))
    title = alt.TitleParams(each.target.name, subtitle=_subtitle(each))
    room = size(panels, labels=56)
    # At the bottom: there are no init phases of no time at all.
    warm_up = each.warm_up(name_at=room["height"] - 9)
    return alt.layer(warm_up, points).properties(**room, title=title)


def _subtitle(each: Measured) -> str:
    cold = each.target.cold
    if cold is None:
        return ""
    median = f", median {milliseconds(cold.init_ms_p50)}" if cold.init_ms_p50 else ""
    return f"{cold.warm_up:,} warming up, {cold.count:,} after{median}"
