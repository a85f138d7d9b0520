"""The chart of latency by percentile: what the median hides."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import altair as alt

from poolkit.compare.charts.labels import spread
from poolkit.compare.charts.log_axis import AS_DURATION, decades, log_domain
from poolkit.compare.charts.picture import Picture, Rows, colour_of_target, data
from poolkit.compare.charts.style import WIDTH
from poolkit.compare.results.run_folder import Request, RunFolder
from poolkit.compare.results.wording import milliseconds
from poolkit.loadtest.figures import RequestCounters, outcome_of

if TYPE_CHECKING:
    from poolkit.compare.results.results import Results
    from poolkit.compare.results.target_result import TargetResult

_PERCENTILES = (
    50,
    60,
    70,
    75,
    80,
    85,
    90,
    92,
    94,
    95,
    96,
    97,
    98,
    98.5,
    99,
    99.3,
    99.5,
    99.7,
    99.8,
    99.9,
)
_SHOWN = (50, 75, 90, 95, 99, 99.9)
_APART = 0.15
"""Nines: a label nearer to the one before would touch it."""
_PLOT_HEIGHT = 330


def _nines(p: float) -> float:
    """Each nine takes the same room: the tail is what the chart is about."""
    return -math.log10(1 - p / 100)


def by_percentile(run: RunFolder, results: Results) -> Picture | None:
    """Return the picture, none where nothing was answered."""
    lines = [line for t in results.targets if (line := _percentile_rows(run, results, t))]
    if not lines:
        return None
    rows = [row for line in lines for row in line]
    domain = log_domain([row["ms"] for row in rows])
    right = max(row["nines"] for row in rows)
    x = _percentile_axis(right)
    y = alt.Y(
        "ms:Q",
        scale=alt.Scale(type="log", domain=domain, nice=False),
        axis=alt.Axis(values=decades(domain), labelExpr=AS_DURATION, title=None),
    )
    base = alt.Chart(data(rows)).encode(x, y, colour_of_target(results))
    line = base.mark_line(strokeWidth=2.5, interpolate="monotone")
    labels = _line_labels(results, [line[-1] for line in lines], domain)
    says = [f"{line[0]['target']} {_said(line)}" for line in lines]
    return Picture(
        name="latency",
        title="Latency by percentile, from the moment a request was due",
        description="; ".join(says) + ".",
        chart=alt.layer(line, labels).properties(width=WIDTH - 190, height=_PLOT_HEIGHT),
    )


def _percentile_rows(run: RunFolder, results: Results, target: TargetResult) -> Rows:
    folder = run.step(results.plan, target.step)
    window = folder.window()
    if window is None:
        return []
    counters = RequestCounters(window.from_, window.to)
    for row in folder.rows(Request).rows:
        ended = row.started + row.service_ms / 1000
        counters.add(row.due, ended, row.latency_ms, outcome_of(row.error))
    # Beyond the last of these a percentile would be the maximum under another name.
    answered = counters.of("answered").count
    known = [p for p in _PERCENTILES if answered * (100 - p) / 100 >= 1]
    return [
        {"target": target.name, "p": p, "nines": _nines(p), "ms": round(ms, 3)}
        for p, ms in zip(known, counters.latency.percentiles(known), strict=True)
        if ms is not None
    ]


def _said(line: Rows) -> str:
    return ", ".join(
        f"p{row['p']:g} {milliseconds(row['ms'])}" for row in line if row["p"] in _SHOWN
    )


def _percentile_axis(right: float) -> alt.X:
    shown = [p for p in _SHOWN if _nines(p) <= right + 1e-9]
    last = round(100 - 100 * 10**-right, 3)
    if right - _nines(shown[-1]) > _APART:
        shown.append(last)
    # Vega compares the tick's value as drawn; the name is found by the nearest one.
    names = " : ".join(f"abs(datum.value - {_nines(p):.6f}) < 0.001 ? 'p{p:g}'" for p in shown)
    return alt.X(
        "nines:Q",
        scale=alt.Scale(domain=[_nines(50), right], nice=False),
        axis=alt.Axis(values=[_nines(p) for p in shown], labelExpr=f"{names} : ''", title=None),
    )


def _line_labels(results: Results, ends: Rows, domain: list[float]) -> alt.Chart:
    """Name each line at its end; where two would touch, they are moved apart."""
    low, high = math.log(domain[0]), math.log(domain[1])
    heights = [_PLOT_HEIGHT * (high - math.log(end["ms"])) / (high - low) for end in ends]
    moved = spread(heights, gap=17, low=4, high=_PLOT_HEIGHT - 4)
    rows: Rows = [
        {
            **end,
            "at": math.exp(high - height * (high - low) / _PLOT_HEIGHT),
            "label": f"{end['target']} · {milliseconds(end['ms'])}",
        }
        for end, height in zip(ends, moved, strict=True)
    ]
    text = alt.Chart(data(rows)).mark_text(align="left", dx=8, fontSize=12.5, fontWeight="bold")
    labels: alt.Chart = text.encode(
        alt.X("nines:Q"), alt.Y("at:Q"), text="label:N", color=colour_of_target(results)
    )
    return labels
