"""The report on a terminal: all columns if they fit its width, else those that fit 80 columns."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from poolkit.compare.report.advice_text import advice_text, settings_row
from poolkit.compare.report.findings import (
    LONG_OUT_MS,
    distance_text,
    evidence_lines,
    reference_text,
)
from poolkit.compare.results.pools import is_held_idle
from poolkit.compare.results.wording import (
    NOTHING,
    count,
    figure,
    figure_with_range,
    join,
    milliseconds,
    of_ceiling,
    optional,
    percent,
    with_range,
)
from poolkit.thresholds import lines, unmet
from poolkit.thresholds.metrics import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console, JustifyMethod

    from poolkit.compare.results.results import Results
    from poolkit.compare.results.run_folder import Evidence
    from poolkit.compare.results.target_result import TargetResult

LEAST = 80
MOST_SITES = 5
"""The lines of a target that hold connections; the page has more."""
WARN = "yellow"

LEGEND = (
    "opened: connections opened in the measured time. peak/ceiling: the most open at once, and the "
    "most that the settings allow. cold: cold starts."
)
LOADS_LEGEND = (
    "answered: requests per second without an error. opened: connections per 1,000 requests. "
    "ok ✓: the target sustained this load."
)
REPEATS_LEGEND = (
    "Medians of the repeats, peaks the highest; in brackets the lowest and the highest repeat. "
    "In the table below, each target's repeat with the median p95."
)


class Column(NamedTuple):
    """A column of the table of targets."""

    heading: str
    cell: Callable[[TargetResult], str]
    is_for_80_columns: bool = True


_COLUMNS = (
    Column("requests", lambda t: f"{t.requests:,}"),
    Column("failed", lambda t: f"{t.errors:,}"),
    Column("answered\nper s", lambda t: figure(t.requests_per_s), is_for_80_columns=False),
    Column("p50", lambda t: milliseconds(t.figures["http.p50"])),
    Column("p95", lambda t: milliseconds(t.figures["http.p95"])),
    Column("p99", lambda t: milliseconds(t.figures["http.p99"])),
    Column("opened", lambda t: optional(t.connections.opened, 0)),
    Column("peak/\nceiling", lambda t: of_ceiling(t.connections.peak, t.connections.ceiling)),
    Column(
        "idle\nseconds", lambda t: optional(t.connections.idle_seconds, 0), is_for_80_columns=False
    ),
    Column("cold", lambda t: optional(t.cold_starts, 0)),
    Column("memory\nMB", lambda t: optional(t.rss_mb, 0), is_for_80_columns=False),
)


SETTINGS_LEGEND = (
    "in use: the most of one process's connections at once, of the most that its pool allows. "
    "waited: for a connection, p95/longest. held: p95."
)
SIZES_LEGEND = "knee: the smallest size with p95 and throughput within 5 % of the best."


def print_run(results: Results, console: Console) -> None:
    """Print the tables of a run, and the findings below them."""
    has_loads = results.has_levels or results.has_repeats
    with room_for_figures(console):
        if has_loads:
            # Ranges stand beside their medians, or under them where that is too wide.
            _print_table(console, *(_loads_table(results, between=gap) for gap in (" ", "\n")))
            legend = [LOADS_LEGEND, *([REPEATS_LEGEND] if results.has_repeats else [])]
            console.print(Text("\n".join(legend) + "\n", style="dim"))
        if reference := reference_text(results):
            console.print(Text(f"{reference}:"))
        narrow = [column for column in _COLUMNS if column.is_for_80_columns]
        _print_table(console, *(_targets_table(results, of) for of in (_COLUMNS, narrow)))
        console.print(Text(LEGEND + "\n", style="dim"))
    if results.machine.distance:
        console.print(Text(f"Distance: {distance_text(results)}\n"))
    if results.headline:
        console.print(Text(results.headline + "\n", style="bold"))
    _print_findings(results, console)
    _print_settings(results, console)
    for line in _threshold_lines(results):
        console.print(line)


def _print_findings(results: Results, console: Console) -> None:
    folder = shown_path(Path(results.folder))
    for target in results.targets:
        console.print(Text(target.name, style="bold"))
        if target.load_finding:
            console.print(indented(target.load_finding))
        at = f"At {results.reference.name}: " if results.has_levels else ""
        console.print(indented(at + target.finding))
        _print_holds(target, console)
        _print_evidence(target.evidence, folder, console)
        for note in target.warnings:
            console.print(indented(f"Note: {note}.", style=WARN))
    for absent in results.absent:
        console.print(Text(absent.name, style="bold"))
        console.print(indented(f"Not measured: {absent.reason}.", style="dim"))
        _print_evidence(absent.evidence, folder, console)


def _print_settings(results: Results, console: Console) -> None:
    """Print the settings that were in force, the pool sizes that were compared, and the advice."""
    if not results.advice:
        return
    console.print(Text("\nWhich settings", style="bold"))
    with room_for_figures(console):
        if any(target.pool for target in results.targets):
            _print_table(console, *(_settings_table(results, of) for of in (_SETTINGS, _FEWER)))
            console.print(Text(SETTINGS_LEGEND + "\n", style="dim"))
        for sweep in results.sweeps:
            console.print(Text(f"{sweep.target}, pool sizes at {sweep.level.name}:"))
            table = new_table(["size", "answered\nper s", "p95", "in use", "waited", "failed", ""])
            for point in sweep.points:
                is_knee = sweep.knee is not None and point.name == sweep.knee.name
                cells = (
                    figure_with_range(point.rate),
                    with_range(point.p95_ms),
                    f"{optional(point.out_max, 0)}/{point.most}",
                    milliseconds(point.waited_p95_ms),
                    percent(point.error_share) if point.error_share else "0",
                    "knee" if is_knee else "no" if point.why_not else "",
                )
                style = WARN if point.why_not else ""
                table.add_row(Text(point.label), *map(Text, cells), style=style)
            console.print(table)
            console.print(Text(SIZES_LEGEND + "\n", style="dim"))
            for point in sweep.points:
                if point.why_not:
                    console.print(indented(f"{point.label}: {point.why_not}.", style=WARN))
    for name in results.advice:
        console.print(Text(name, style="bold"))
        console.print(indented(advice_text(name, results)))


_SETTINGS = ("pool", "timeout", "processes", "in use", "overflow", "waited", "held", "in SQL")
_FEWER = ("pool", "in use", "waited", "held")
"""The columns that fit 80 characters."""


def _settings_table(results: Results, columns: Iterable[str]) -> Table:
    table = new_table(["target", *columns], names=2)
    for target in results.targets:
        row = settings_row(target)._asdict()
        cells = [row[column.lower().replace(" ", "_")] for column in columns]
        table.add_row(Text(target.name, style="bold"), *map(Text, cells))
    return table


def _print_holds(target: TargetResult, console: Console) -> None:
    """Print which lines hold connections, if one holds them idle or takes a second one."""
    holds = target.holds
    if holds is None:
        return
    shown = [
        site
        for site in holds.sites
        if is_held_idle(site) or site.nested or site.after_response or site.out_ms >= LONG_OUT_MS
    ]
    if not shown:
        return
    table = new_table(
        ["line that checks out", "in", "checkouts", "held\np95", "in SQL", "second", "after"],
        names=2,
    )
    for site in shown[:MOST_SITES]:
        share = NOTHING if site.busy_share is None else percent(site.busy_share)
        cells = [f"{site.count:,}", milliseconds(site.p95_ms), share]
        cells += [f"{site.nested:,}", f"{site.after_response:,}"]
        table.add_row(Text(site.where), Text(site.unit or NOTHING), *map(Text, cells))
    with room_for_figures(console):
        console.print(Padding(table, (0, 0, 0, 2)))


def _print_evidence(evidence: Evidence | None, folder: str, console: Console) -> None:
    for line in evidence_lines(evidence, folder):
        # Not wrapped, so that paths can be copied.
        console.print(Text(f"  {line}", style=WARN), soft_wrap=True)


def shown_path(path: Path) -> str:
    """Return the path, relative to the working directory if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


@contextmanager
def room_for_figures(console: Console) -> Iterator[None]:
    """Widen a narrower terminal to 80 columns for a table: it folds lines, and cuts no figure."""
    width = console.width
    console.width = max(width, LEAST)
    try:
        yield
    finally:
        console.width = width


def new_table(headings: Iterable[str], *, names: int = 1) -> Table:
    """Return an empty table: the first columns, `names` of them, to the left, figures to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        justify: JustifyMethod = "left" if number < names else "right"
        # The name may fold, the figures may not: half a number is a wrong one.
        table.add_column(
            heading, justify=justify, vertical="bottom", no_wrap=number > 0, overflow="fold"
        )
    return table


def indented(text: str, style: str = "") -> Padding:
    """Return a paragraph under a name; brackets in it mean nothing to rich."""
    return Padding(Text(text, style=style), (0, 0, 0, 2))


def _print_table(console: Console, wide: Table, narrow: Table) -> None:
    """Print the wide table if it fits, else the narrow one."""
    width = Measurement.get(console, console.options.update(width=10_000), wide).maximum
    console.print(wide if width <= console.width else narrow)


def _targets_table(results: Results, columns: Iterable[Column]) -> Table:
    table = new_table(["target", *(column.heading for column in columns)])
    for target in results.targets:
        cells = [Text(column.cell(target)) for column in columns]
        style = WARN if target.errors or target.saturated or target.partial else ""
        table.add_row(Text(target.name, style="bold"), *cells, style=style)
    return table


def _loads_table(results: Results, *, between: str) -> Table:
    """Return a line for every target and load, with `between` before each range."""
    headings = ("target", "load", "answered\nper s", "p95", "peak/\nceiling", "opened\nper 1,000")
    table = new_table([*headings, "failed", "ok"], names=2)
    for name, levels in results.levels.items():
        for number, each in enumerate(levels):
            cells = [NOTHING] * 6
            if each.repeats:
                cells = [
                    figure_with_range(each.spread.get("http.rate"), between),
                    with_range(each.spread.get("http.p95"), between),
                    of_ceiling(each.peak, each.ceiling),
                    figure_with_range(each.opened_per_1000_requests, between),
                    percent(each.error_share) if each.error_share else "0",
                    "✓" if each.sustained else "✗",
                ]
            style = "dim" if not each.repeats else "" if each.sustained else WARN
            row = [name if number == 0 else "", each.level.name, *cells]
            table.add_row(*(Text(text) for text in row), style=style)
        table.add_section()
    return table


def _threshold_lines(results: Results) -> Iterator[Text]:
    """Yield a tick or a cross for every threshold and target; nothing without thresholds."""
    judged = [v for v in results.verdicts if v.status != "not applicable"]
    if not judged:
        return
    yield Text("\nThresholds", style="bold")
    if not results.has_levels:
        yield from lines(judged)
        return
    for threshold in results.thresholds:
        for target in results.levels:
            at = [v for v in judged if v.threshold == threshold and v.target == target]
            if failed := unmet(at):
                found = join([f"{verdict.figure} at {verdict.load}" for verdict in failed])
                text = f" {target}: {threshold.key} is {found}, wanted {threshold.wanted}"
                yield Text.assemble(Text("✗", style="bold red"), text)
            elif at:
                # The distance from its limit.
                is_upper = threshold.operator in ("<", "<=")
                values = [verdict.value for verdict in at if verdict.value is not None]
                nearest = ""
                if values and threshold.operator != "==":
                    worst = max(values) if is_upper else min(values)
                    value = shown(worst, threshold.measure, beside=threshold.limit)
                    nearest = f" ({'at most' if is_upper else 'at least'} {value})"
                text = f" {target}: {threshold.expression} at every load{nearest}"
                yield Text.assemble(Text("✓", style="bold green"), text)
    if failed := unmet(judged):
        yield Text(f"{len(failed):,} of {count(len(judged), 'check')} failed.")
