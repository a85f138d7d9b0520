"""The chart of latency by percentile: what the median hides."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import altair as alt

from poolkit.compare.charts.picture import (
    Picture,
    Rows,
    colour_of_target,
    data,
    log_durations,
    on_hover,
)
from poolkit.compare.charts.style import WIDTH, apart, log_domain, tick_names
from poolkit.compare.results.run_folder import Request, RunFolder
from poolkit.compare.results.wording import milliseconds
from poolkit.loadtest.latency.counters import RequestCounters, outcome_of

if TYPE_CHECKING:
    from poolkit.compare.results.results import Results

# fmt: off
_PERCENTILES = (
    50, 60, 70, 75, 80, 85, 90, 92, 94, 95, 96, 97, 98, 98.5, 99, 99.3, 99.5, 99.7, 99.8, 99.9,
)
# fmt: on
_SHOWN = (50, 75, 90, 95, 99, 99.9)
_APART = 0.15
"""Nines: a label nearer to the one before would touch it."""
_PLOT_HEIGHT = 330


def _nines(p: float) -> float:
    """Return the position on the axis: each nine takes the same space, to show the tail."""
    return -math.log10(1 - p / 100)


def by_percentile(run: RunFolder, results: Results) -> Picture | None:
    """Return the picture; None where nothing was answered."""
    lines = [line for line in _lines(run, results) if line]
    if not lines:
        return None
    rows = [row for line in lines for row in line]
    domain = log_domain([row["ms"] for row in rows])
    right = max(row["nines"] for row in rows)
    shown = [p for p in _SHOWN if _nines(p) <= right + 1e-9]
    if right - _nines(shown[-1]) > _APART:
        shown.append(round(100 - 100 * 10**-right, 3))
    ticks = {_nines(p): f"p{p:g}" for p in shown}
    x = alt.X(
        "nines:Q",
        scale=alt.Scale(domain=[_nines(50), right], nice=False),
        axis=alt.Axis(values=list(ticks), labelExpr=tick_names(ticks), title=None),
    )
    y = alt.Y("ms:Q", **log_durations(domain))
    base = alt.Chart(data(rows)).encode(x, y, colour_of_target(results))
    drawn = base.mark_line(strokeWidth=2.5, interpolate="monotone")
    # Each line has its name at its end; names that would touch are moved apart.
    ends = [line[-1] for line in lines]
    low, high = (math.log(ms) for ms in domain)
    heights = [_PLOT_HEIGHT * (high - math.log(end["ms"])) / (high - low) for end in ends]
    moved = apart(heights, gap=17, low=4, high=_PLOT_HEIGHT - 4)
    names: Rows = [
        {
            **end,
            "at": math.exp(high - height * (high - low) / _PLOT_HEIGHT),
            "label": f"{end['target']} · {milliseconds(end['ms'])}",
        }
        for end, height in zip(ends, moved, strict=True)
    ]
    text = alt.Chart(data(names)).mark_text(align="left", dx=8, fontSize=12.5, fontWeight="bold")
    labels = text.encode(
        alt.X("nines:Q"), alt.Y("at:Q"), text="label:N", color=colour_of_target(results)
    )
    values = on_hover(alt.Chart(data(rows)), "hover", x=x, y=y)
    texts = []
    for line in lines:
        found = [f"p{row['p']:g} {milliseconds(row['ms'])}" for row in line if row["p"] in _SHOWN]
        texts.append(f"{line[0]['target']} {', '.join(found)}")
    return Picture(
        name="latency",
        title="Latency by percentile",
        caption="From the scheduled moment of a request to its answer. At p95, 95 % of the requests took "
        "at most this long.",
        description="; ".join(texts) + ".",
        chart=alt.layer(drawn, labels, values).properties(width=WIDTH - 190, height=_PLOT_HEIGHT),
    )


def _lines(run: RunFolder, results: Results) -> list[Rows]:
    """Return the percentiles of each target; an empty list where nothing was answered."""
    lines: list[Rows] = []
    for target in results.targets:
        folder = run.step(results.plan, target.step)
        window = folder.window()
        if window is None:
            continue
        counters = RequestCounters(window.from_, window.to)
        for row in folder.rows(Request).rows:
            counters.add(row.due, row.ended, row.latency_ms, outcome_of(row.error))
        # Beyond the last of these a percentile would be the maximum under another name.
        answered = counters.of("answered").count
        known = [p for p in _PERCENTILES if answered * (100 - p) / 100 >= 1]
        lines.append(
            [
                {
                    "target": target.name,
                    "p": p,
                    "nines": _nines(p),
                    "ms": round(ms, 3),
                    "hover": f"{target.name}: p{p:g} {milliseconds(ms)}",
                }
                for p, ms in zip(known, counters.latency.percentiles(known), strict=True)
                if ms is not None
            ]
        )
    return lines
