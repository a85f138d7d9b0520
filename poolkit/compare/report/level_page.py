"""The parts of the page about thresholds and about several loads; empty where there are none."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from poolkit.compare.charts.style import colours
from poolkit.compare.report.markup import cell, embedded, prose
from poolkit.compare.results.wording import (
    NOTHING,
    count,
    figure_with_range,
    milliseconds,
    percent,
    with_range,
)
from poolkit.thresholds import unmet
from poolkit.thresholds.metrics import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from poolkit.compare.charts.picture import Picture
    from poolkit.compare.results.levels import LevelResult
    from poolkit.compare.results.results import Results
    from poolkit.thresholds import Threshold, Verdict

# -- thresholds -----------------------------------------------------------------------------


def thresholds_section(results: Results) -> Iterable[str]:
    """Give a table of the thresholds: a row for each target, a column for each load."""
    if not results.verdicts:
        return
    loads = [level.name for level in results.plan.levels] if results.has_levels else [""]
    names = "".join(f'<th scope="col">{escape(load or "found")}</th>' for load in loads)
    yield f'<section><h2>Thresholds</h2><p class="soft">{escape(_summary(results))}</p>'
    yield '<div class="scroll" tabindex="0"><table class="thresholds">'
    yield f'<thead><tr><th scope="col">threshold</th><th scope="col">target</th>{names}</tr></thead>'
    for threshold in results.thresholds:
        found = _by_target(threshold, results.verdicts)
        if found:
            yield from _of_threshold(threshold, found, loads)
    yield "</table></div></section>"


def _summary(results: Results) -> str:
    judged = [v for v in results.verdicts if v.status != "not applicable"]
    failed = len(unmet(judged))
    at = ", each at every load" if results.has_levels else ""
    of = (
        ", on the median of its measurements (of peaks, on the highest)"
        if results.has_repeats
        else ""
    )
    said = f"{failed:,} of {count(len(judged), 'check')} failed" if failed else "All passed"
    return f"{said}: every threshold for each target that it is for{at}{of}."


def _by_target(
    threshold: Threshold, verdicts: Iterable[Verdict]
) -> Mapping[str, Mapping[str, Verdict]]:
    found: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        if verdict.threshold == threshold:
            found.setdefault(verdict.target, {})[verdict.load] = verdict
    return found


def _of_threshold(
    threshold: Threshold, found: Mapping[str, Mapping[str, Verdict]], loads: Sequence[str]
) -> Iterable[str]:
    head = f'<th scope="rowgroup" rowspan="{len(found)}">{escape(threshold.expression)}</th>'
    yield "<tbody>"
    for target, at in found.items():
        cells = "".join(_judged(at.get(load)) for load in loads)
        yield f'<tr>{head}<th scope="row">{escape(target)}</th>{cells}</tr>'
        head = ""
    yield "</tbody>"


_MARKS = {"passed": ("good", "✓"), "failed": ("bad", "✗"), "unknown": ("bad", "✗")}


def _judged(verdict: Verdict | None) -> str:
    if verdict is None:
        return cell(NOTHING)
    if verdict.status == "not applicable":
        return '<td class="soft">does not apply</td>'
    kind, mark = _MARKS[verdict.status]
    threshold = verdict.threshold
    value = "not known"
    if verdict.value is not None:
        value = shown(verdict.value, threshold.measure, beside=threshold.limit)
    return f'<td class="{kind}">{mark} {escape(value)}</td>'


# -- levels ---------------------------------------------------------------------------------

_HEADS = (
    *("load", "answered per s", "p50", "p95", "p99", "peak"),
    *("opened per 1,000", "failed", "held"),
)


def levels_section(results: Results, picture: Picture | None) -> Iterable[str]:
    """Give the chart and the table of every load; nothing where there was one, measured once."""
    if not results.has_levels and not results.has_repeats:
        return
    title = "Load by load" if results.has_levels else "Repeats"
    yield f'<section><h2>{title}</h2><p class="soft">{escape(_how(results))}</p>'
    if picture is not None:
        yield embedded(picture, picture.title)
    heads = "".join(f'<th scope="col">{name}</th>' for name in _HEADS)
    yield '<div class="scroll" tabindex="0"><table class="levels">'
    yield f"<thead><tr>{heads}</tr></thead>"
    shades = colours(list(results.levels))
    for name, levels in results.levels.items():
        yield from _of_target(name, levels, shades[name])
    yield "</table></div></section>"


def _how(results: Results) -> str:
    said = []
    if results.has_repeats:
        said.append(
            f"Every target was measured {results.plan.repeat} times at each load, in turn with the "
            "others; figures are medians, peaks the highest, and in brackets the lowest and highest."
        )
    rule = "passed every threshold" if results.thresholds else "failed at most 1 % of its requests"
    said.append(
        f"A target holds a load at which it {rule}, answered at least 95 % meanwhile, was not ended "
        "early, and the load generator kept up."
    )
    if results.has_levels:
        said.append("Points are hollow where it did not keep up: those latencies are upper bounds.")
    return " ".join(said)


def _of_target(name: str, levels: Sequence[LevelResult], shade: str) -> Iterable[str]:
    swatch = f'<span class="swatch" style="background:{shade}"></span>'
    head = f'<th scope="rowgroup" colspan="{len(_HEADS)}">{swatch}{escape(name)}</th>'
    yield f'<tbody><tr class="group">{head}</tr>'
    for each in levels:
        yield f'<tr><th scope="row">{escape(each.level.name)}</th>{_cells(each)}</tr>'
    yield "</tbody>"


def _cells(each: LevelResult) -> str:
    why = f'<td class="why">{prose(f"no: {each.why_not}")}</td>'
    if not each.repeats:
        empty = cell(NOTHING) * (len(_HEADS) - 2)
        return f'{empty}<td class="why soft">{prose(f"not measured: {each.why_not}")}</td>'
    late, errors = each.is_saturated, each.error_share
    return "".join(
        [
            cell(figure_with_range(each.spread.get("http.rate")), bad=late),
            cell(_median(each, "http.p50"), bad=late),
            cell(with_range(each.spread.get("http.p95")), bad=late),
            cell(_median(each, "http.p99"), bad=late),
            cell(peak_of(each)),
            cell(figure_with_range(each.opened_per_1000_requests)),
            cell(percent(errors) if errors else "0", bad=bool(errors)),
            '<td class="good">yes</td>' if each.held else why,
        ]
    )


def _median(each: LevelResult, metric: str) -> str:
    spread = each.spread.get(metric)
    return milliseconds(spread.median) if spread else NOTHING


def peak_of(each: LevelResult) -> str:
    """Return the most connections at once in any repeat, and of how many that there may be."""
    peak = each.spread.get("db.connections.max")
    ceiling = each.repeats[0].connections.ceiling
    said = f"{peak.high:,.0f}" if peak else NOTHING
    return said + (f"/{ceiling:,}" if ceiling else "")
