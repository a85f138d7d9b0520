"""The report as one HTML file: no script, nothing fetched, light and dark.

Whatever comes from the run folder goes through `html.escape`; the pictures are SVG that
vl-convert made, which escapes its texts itself.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from poolkit.compare.charts.style import colours
from poolkit.compare.report.level_findings import reference_words
from poolkit.compare.report.level_page import levels_section, thresholds_section
from poolkit.compare.report.load_words import load_words, loop_words
from poolkit.compare.report.markup import cell, document, embedded, prose
from poolkit.compare.results.wording import figure, join, milliseconds, optional, origin, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from poolkit.compare.charts.picture import Picture
    from poolkit.compare.results.results import Results
    from poolkit.compare.results.target_result import TargetResult

HOW = (
    "Latency counts from the moment a request was due, not from when it could be sent, and is that "
    "of answered requests; failed ones are counted beside it. Percentiles are exact (nearest rank). "
    "Connections opened are PostgreSQL's own count of sessions; how many were open at once comes "
    "from samples of pg_stat_activity, so one shorter than the interval between two can be missed. "
    "The warm-up is left out of every figure."
)


def page(results: Results, pictures: Sequence[Picture]) -> str:
    """Return the report of one run."""
    title = f"poolkit compare: {join([t.name for t in results.targets])}"
    by_load = next((p for p in pictures if p.name == "levels"), None)
    return document(
        title,
        [
            _header(results),
            *_findings(results),
            *thresholds_section(results),
            *levels_section(results, by_load),
            *_figures(results),
            *_charts([p for p in pictures if p is not by_load]),
            *_measured(results),
        ],
    )


def _header(results: Results) -> str:
    headline = results.headline or results.targets[0].finding
    return (
        "<header><h1>Connections and latency, target by target</h1>"
        f'<p class="lede">{prose(headline)}</p>'
        f'<p class="soft"><code>{escape(results.plan.command)}</code>, '
        f"{escape(results.plan.created)}. {escape(load_words(results.plan))}</p></header>"
    )


def _findings(results: Results) -> Iterable[str]:
    shades = colours([t.name for t in results.targets])
    yield '<section><h2>What it found</h2><ul class="findings">'
    for target in results.targets:
        notes = "".join(f'<span class="note">{escape(note)}</span>' for note in target.warnings)
        at = f"At {results.reference.name}: " if results.has_levels else ""
        said = "</p><p>".join(map(prose, filter(None, (target.load_finding, at + target.finding))))
        yield (
            f'<li style="--colour:{shades[target.name]}"><strong>{escape(target.name)}</strong>'
            f"<p>{said}</p>{notes}</li>"
        )
    for absent in results.absent:
        yield f"<li><strong>{escape(absent.name)}</strong>Not measured: {escape(absent.reason)}</li>"
    yield "</ul></section>"


# -- figures --------------------------------------------------------------------------------

Cell = tuple[str, bool]
"""A text, and whether it is a reason for care."""


def _figures(results: Results) -> Iterable[str]:
    yield "<section><h2>Figures</h2>"
    at = f"{reference_words(results)}, inside" if results.has_levels else "Inside"
    median = " The measurement with the median p95." if results.has_repeats else ""
    yield f'<p class="soft">{at} the measured time; a dash where a figure is not known.{median}</p>'
    yield from _table(results, "Requests and latency", _latency_cells)
    yield from _table(results, "Connections", _connection_cells)
    yield from _table(results, "Processes", _process_cells)
    yield "</section>"


def _table(
    results: Results, caption: str, cells: Callable[[TargetResult], Mapping[str, Cell]]
) -> Iterable[str]:
    shades = colours([t.name for t in results.targets])
    names = "".join(f'<th scope="col">{name}</th>' for name in cells(results.targets[0]))
    yield f'<div class="scroll" tabindex="0"><table><caption>{caption}</caption>'
    yield f'<thead><tr><th scope="col">target</th>{names}</tr></thead><tbody>'
    for target in results.targets:
        swatch = f'<span class="swatch" style="background:{shades[target.name]}"></span>'
        row = "".join(cell(text, bad=bad) for text, bad in cells(target).values())
        yield f'<tr><th scope="row">{swatch}{escape(target.name)}</th>{row}</tr>'
    yield "</tbody></table></div>"


def _latency_cells(target: TargetResult) -> Mapping[str, Cell]:
    latency, late = target.latency_ms, target.saturated
    share = f" ({percent(target.errors / target.requests)})" if target.errors else ""
    cells = {
        "due": (f"{target.requests:,}", False),
        "failed": (f"{target.errors:,}{share}", bool(target.errors)),
        "answered per s": (figure(target.requests_per_s), late),
    }
    for name in ("p50", "p90", "p95", "p99", "max"):
        text = milliseconds(getattr(latency, name)) if latency else optional(None)
        cells[name] = (text, late)
    return cells


def _connection_cells(target: TargetResult) -> Mapping[str, Cell]:
    found = target.connections
    return {
        "opened": (optional(found.opened, 0), False),
        "per 1,000 requests": (optional(found.opened_per_1000_requests), False),
        "before, warming up": (optional(found.opened_warm_up, 0), False),
        "peak": (optional(found.peak, 0), False),
        "ceiling": (optional(found.ceiling, 0), False),
        "mean": (optional(found.mean, 1), False),
        "idle, s": (optional(found.idle_seconds, 0), False),
        "left over": (optional(found.left_over, 0), bool(found.left_over)),
    }


def _process_cells(target: TargetResult) -> Mapping[str, Cell]:
    cells = {
        f"{role}, cores": (optional(target.cpu_share.get(role), 2), False)
        for role in ("target", "database", "load")
    }
    cells["load, cores"] = (cells["load, cores"][0], target.saturated)
    return {
        **cells,
        "target, MB": (optional(target.rss_mb, 0), False),
        "execution environments": (optional(target.execution_environments, 0), False),
        "cold starts": (optional(target.cold_starts, 0), False),
    }


# -- charts ---------------------------------------------------------------------------------


def _charts(pictures: Sequence[Picture]) -> Iterable[str]:
    yield "<section><h2>Charts</h2>"
    for picture in pictures:
        yield embedded(picture, picture.title)
    yield "</section>"


# -- how it was measured --------------------------------------------------------------------


def _measured(results: Results) -> Iterable[str]:
    yield f'<section><h2>How it was measured</h2><p>{HOW}</p><dl class="how">'
    for name, text in how(results).items():
        yield f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
    yield "</dl></section>"


def how(results: Results) -> Mapping[str, str]:
    """Return machine, versions, load and what else a reader has to know, by name."""
    machine, plan = results.machine, results.plan
    versions = (f"{name} {version}" for name, version in machine.versions.items())
    facts = {
        "Command": plan.command,
        "Load": load_words(plan),
        "Loop": loop_words(plan),
        "Machine": (
            f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:.1f} GiB, {machine.os}, "
            f"Python {machine.python}; {_who_shares(results)}"
        ),
        "Versions": ", ".join(versions) or "unknown",
        "Samples": f"every {plan.interval_s:g} s",
        "Ceilings": "; ".join(_ceiling(target) for target in results.targets),
    }
    there = [f"{p.name} at {origin(p.url)}" for p in plan.targets if p.url]
    facts |= {"Deployed": "; ".join(there)} if there else {}
    facts |= {f"Note on {t.name}": "; ".join(t.warnings) for t in results.targets if t.warnings}
    return facts | {f"Without {a.name}": a.reason for a in results.absent}


def _who_shares(results: Results) -> str:
    """Say what runs on the machine: of a deployed target it has the load generator only."""
    here = [planned.name for planned in results.plan.targets if planned.url is None]
    if len(here) == len(results.plan.targets):
        return "load, target and database share it"
    if not here:
        return "the load generator's; the targets and their database run elsewhere"
    return f"the load generator's, which {join(here)} and their database share; the others run elsewhere"


def _ceiling(target: TargetResult) -> str:
    connections = target.connections
    if connections.ceiling is None:
        return f"{target.name} none"
    return f"{target.name} {connections.ceiling:,} ({connections.ceiling_reason})"
