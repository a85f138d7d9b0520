"""The report as one HTML file: no script, nothing fetched, light and dark.

Whatever comes from the run folder goes through `html.escape`; the pictures are SVG that
vl-convert made, which escapes its texts itself.
"""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from poolkit.compare.chart_style import colours
from poolkit.compare.wording import figure, join, milliseconds, optional, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from poolkit.compare.picture import Picture
    from poolkit.compare.results import Results
    from poolkit.compare.run_folder import Plan
    from poolkit.compare.target_result import TargetResult

HOW = (
    "Latency counts from the moment a request was due, not from when it could be sent, and is that "
    "of answered requests; failed ones are counted beside it. Percentiles are exact (nearest rank). "
    "Connections opened are PostgreSQL's own count of sessions; how many were open at once comes "
    "from samples of pg_stat_activity, so one shorter than the interval between two can be missed. "
    "The warm-up is left out of every figure."
)


_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(title: str, body: Iterable[str]) -> str:
    """Return a whole page around a body that is HTML already."""
    css = files("poolkit.compare").joinpath("report.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # Nothing is fetched and nothing runs, whatever a run folder holds.
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>{escape(title)}</title><style>\n{css}</style></head><body><main>",
            *body,
            "</main></body></html>\n",
        ]
    )


def page(results: Results, pictures: Sequence[Picture]) -> str:
    """Return the report of one run."""
    title = f"poolkit compare: {join([t.name for t in results.targets])}"
    return document(
        title,
        [
            _header(results),
            *_findings(results),
            *_figures(results),
            *_charts(pictures),
            *_measured(results),
        ],
    )


def _prose(text: str) -> str:
    """Escape a text, and keep a number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=(ms|s|%)\b|%)", "&nbsp;", escape(text))


def _header(results: Results) -> str:
    headline = results.headline or results.targets[0].finding
    return (
        "<header><h1>Connections and latency, target by target</h1>"
        f'<p class="lede">{_prose(headline)}</p>'
        f'<p class="soft"><code>{escape(results.plan.command)}</code>, '
        f"{escape(results.plan.created)}. {escape(load_words(results.plan))}</p></header>"
    )


def load_words(plan: Plan) -> str:
    """Return the load in a sentence."""
    level = plan.levels[0]
    return (
        f"{level.users:,} users with {level.rate_per_user or 0:g} tasks a second each, so "
        f"{level.offered_per_s:g} a second offered to every target, for "
        f"{plan.duration_s:g} s after {plan.warm_up_s:g} s of warm-up; presets of "
        f"{plan.environment}, max_connections {plan.max_connections:,}."
    )


def _findings(results: Results) -> Iterable[str]:
    shades = colours([t.name for t in results.targets])
    yield '<section><h2>What it found</h2><ul class="findings">'
    for target in results.targets:
        notes = "".join(f'<span class="note">{escape(note)}</span>' for note in target.warnings)
        yield (
            f'<li style="--colour:{shades[target.name]}"><strong>{escape(target.name)}</strong>'
            f"{_prose(target.finding)}{notes}</li>"
        )
    for absent in results.absent:
        yield f"<li><strong>{escape(absent.name)}</strong>Not measured: {escape(absent.reason)}</li>"
    yield "</ul></section>"


# -- figures --------------------------------------------------------------------------------

Cell = tuple[str, bool]
"""A text, and whether it is a reason for care."""


def _figures(results: Results) -> Iterable[str]:
    yield "<section><h2>Figures</h2>"
    yield '<p class="soft">Inside the measured time; a dash where a figure is not known.</p>'
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
        row = "".join(_cell(text, bad=bad) for text, bad in cells(target).values())
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


def _cell(text: str, *, bad: bool = False) -> str:
    return f'<td class="bad">{escape(text)}</td>' if bad else f"<td>{escape(text)}</td>"


# -- charts ---------------------------------------------------------------------------------


def _charts(pictures: Sequence[Picture]) -> Iterable[str]:
    yield "<section><h2>Charts</h2>"
    for picture in pictures:
        yield embedded(picture, picture.title)
    yield "</section>"


def embedded(picture: Picture, title: str) -> str:
    """Return a picture as HTML, with its words for those who cannot see it."""
    alt = escape(f"{title}. {picture.description}", quote=True)
    # Identifiers must be unique in a page, and every picture counts its own from 0.
    svg = picture.svg().replace('id="clip', f'id="{picture.name}-clip')
    svg = svg.replace("url(#clip", f"url(#{picture.name}-clip")
    drawing = svg.replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)
    return (
        f'<figure><h3>{escape(title)}</h3><div class="scroll" tabindex="0">{drawing}</div></figure>'
    )


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
        "Machine": (
            f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:.1f} GiB, {machine.os}, "
            f"Python {machine.python}; load, target and database share it"
        ),
        "Versions": ", ".join(versions) or "unknown",
        "Samples": f"every {plan.interval_s:g} s",
        "Ceilings": "; ".join(_ceiling(target) for target in results.targets),
    }
    facts |= {f"Note on {t.name}": "; ".join(t.warnings) for t in results.targets if t.warnings}
    return facts | {f"Without {a.name}": a.reason for a in results.absent}


def _ceiling(target: TargetResult) -> str:
    connections = target.connections
    if connections.ceiling is None:
        return f"{target.name} none"
    return f"{target.name} {connections.ceiling:,} ({connections.ceiling_reason})"
