"""Two runs side by side: what changed, what is only noise, and what weakens the comparison."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.text import Text

from poolkit.compare.charts.overview import overview
from poolkit.compare.report.findings import tied
from poolkit.compare.report.page import load_text, rendered
from poolkit.compare.report.terminal import WARN, indented, new_table, room_for_figures
from poolkit.compare.results.wording import NOTHING, figure, join, optional
from poolkit.errors import RunFolderError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from poolkit.compare.charts.picture import Picture
    from poolkit.compare.results.results import Results
    from poolkit.compare.results.run_folder import Level
    from poolkit.compare.results.target_result import TargetResult


class CommonLevel(NamedTuple):
    """A load that both runs have, as each of them has it."""

    first: Level
    second: Level


class CommonTarget(NamedTuple):
    """A target that both runs measured at one load."""

    name: str
    first: TargetResult
    second: TargetResult


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs, their names, and what makes a comparison between them weaker."""

    first: Results
    second: Results
    names: tuple[str, str]
    levels: tuple[CommonLevel, ...]
    """From the lowest load."""
    cautions: tuple[str, ...]

    def targets(self) -> Iterator[CommonTarget]:
        """Yield every target that both runs measured, at every common load."""
        sides = [
            (self.first.at(level.first), self.second.at(level.second)) for level in self.levels
        ]
        for name in self.first.levels:
            for ours, theirs in sides:
                first, second = (
                    next((t for t in of.targets if t.name == name), None) for of in (ours, theirs)
                )
                if first is not None and second is not None:
                    load = f", {ours.reference.name}" if self.has_levels else ""
                    yield CommonTarget(name + load, first, second)

    @property
    def has_levels(self) -> bool:
        """True if one of the runs had more than one load."""
        return self.first.has_levels or self.second.has_levels

    def at_one_load(self) -> tuple[Results, Results]:
        """Return both runs at the highest common load that all targets of both sustained."""
        first_at, second_at = self.first.reference, self.second.reference
        sustained = [
            level
            for level in self.levels
            if level.first.offered_per_s <= first_at.offered_per_s
            and level.second.offered_per_s <= second_at.offered_per_s
        ]
        level = sustained[-1] if sustained else self.levels[0]
        return self.first.at(level.first), self.second.at(level.second)


def compare_runs(first: Results, second: Results, names: tuple[str, str]) -> Pair:
    """Return two runs as a pair; with several loads, the common ones.

    Two runs with one load each are compared whatever the loads are; a caution names the difference.

    Raises:
        RunFolderError: they have no target or no load in common.
    """
    only_one_has = sorted(set(first.levels) ^ set(second.levels))
    if not set(first.levels) & set(second.levels):
        raise _nothing_in_common("target", names, [list(run.levels) for run in (first, second)])
    # In an open loop, the number of ready users does not make another load.
    ours, theirs = (
        {
            (x.arrival_rate, None if x.is_open else x.users, x.rate_per_user): x
            for x in run.plan.levels
        }
        for run in (first, second)
    )
    if len(ours) == len(theirs) == 1:
        levels = [CommonLevel(first.plan.levels[0], second.plan.levels[0])]
    else:
        levels = [CommonLevel(ours[load], theirs[load]) for load in ours if load in theirs]
        other = [{**ours, **theirs}[load] for load in ours.keys() ^ theirs.keys()]
        only_one_has += [level.name for level in sorted(other, key=lambda x: x.offered_per_s)]
    if not levels:
        loads = [[level.name for level in of.values()] for of in (ours, theirs)]
        raise _nothing_in_common("load", names, loads)
    cautions = list(_cautions(first, second))
    cautions += [f"only one of the runs has {join(only_one_has)}"] if only_one_has else []
    return Pair(
        first=first, second=second, names=names, levels=tuple(levels), cautions=tuple(cautions)
    )


def _nothing_in_common(what: str, names: tuple[str, str], have: list[list[str]]) -> RunFolderError:
    each = (f"{name} has {join(found)}" for name, found in zip(names, have, strict=True))
    return RunFolderError(f"the runs have no {what} in common: {', '.join(each)}")


_LEVEL = {
    "users": "users",
    "rate_per_user": "tasks per user and second",
    "arrival_rate": "tasks per second",
    "arrivals": "arrivals",
}
_LOAD = {
    "repeat": "repeats",
    "environment": "environments",
    "duration_s": "measured seconds",
    "warm_up_s": "seconds of warm-up",
    "max_connections": "max_connections",
}


def _cautions(first: Results, second: Results) -> Iterator[str]:
    """Yield every difference between load, machine and versions of the two runs."""
    # With several loads, only the common ones are compared.
    level = ("arrivals",) if first.has_levels or second.has_levels else tuple(_LEVEL)
    levels = (first.plan.levels[0], second.plan.levels[0])
    compared = [("load", _LEVEL[name], *(getattr(x, name) for x in levels)) for name in level]
    plans, machines = (first.plan, second.plan), (first.machine, second.machine)
    compared += [("load", text, *(getattr(x, n) for x in plans)) for n, text in _LOAD.items()]
    for name in ("cpu", "cores", "memory_gib", "os", "python"):
        compared.append(("machines", name, *(getattr(machine, name) for machine in machines)))
    distances = (machine.distance or "none" for machine in machines)
    compared.append(("load", "distance to the database", *distances))
    for name in sorted({*first.machine.versions, *second.machine.versions}):
        found = (machine.versions.get(name, "none") for machine in machines)
        compared.append(("versions", name, *found))
    for what, text, a, b in compared:
        if a != b:
            yield f"different {what}: {text} {a} and {b}"


# -- output ---------------------------------------------------------------------------------


class Columns(NamedTuple):
    """One figure of both runs, and the quotient where it means something."""

    first: str
    second: str
    ratio: str | None = None


def _row(target: CommonTarget) -> list[Columns]:
    a, b = target.first, target.second
    first, second = a.connections, b.connections
    latencies = []
    percentiles: tuple[Literal["p50", "p95"], ...] = ("p50", "p95")
    for name in percentiles:
        ours, theirs = (getattr(t.latency_ms, name) if t.latency_ms else None for t in (a, b))
        ratio = NOTHING
        if ours is not None and theirs is not None:
            # A tie is a tie, whatever the quotient is.
            ratio = "tie" if tied(a, b, name) else f"x{figure(theirs / ours)}" if ours else NOTHING
        latencies.append(Columns(optional(ours), optional(theirs), ratio))
    return [
        Columns(
            optional(first.opened_per_1000_requests), optional(second.opened_per_1000_requests)
        ),
        Columns(optional(first.peak, 0), optional(second.peak, 0)),
        *latencies,
        Columns(f"{a.errors:,}", f"{b.errors:,}"),
    ]


def print_pair(pair: Pair, console: Console) -> None:
    """Print the table of both runs; in each column the first run is on the left."""
    console.print(Text(f"A {pair.names[0]}\nB {pair.names[1]}"))
    for caution in pair.cautions:
        console.print(indented(f"Note: {caution}.", style=WARN))
    headings = ("target", "opened\nper 1,000", "peak", "p50 ms", "B/A", "p95 ms", "B/A", "failed")
    table = new_table(headings)
    for target in pair.targets():
        cells: list[str] = []
        for columns in _row(target):
            # 80 columns have no room for twelve figures in columns of their own.
            cells.append(f"{columns.first} → {columns.second}")
            cells += [columns.ratio] if columns.ratio is not None else []
        table.add_row(Text(target.name, style="bold"), *(Text(cell) for cell in cells))
    with room_for_figures(console):
        console.print(table)


class Side(NamedTuple):
    """What the page has of one run."""

    letter: str
    name: str
    run: Results
    load: str
    picture: Picture
    title: str


def two_run_page(pair: Pair) -> str:
    """Return the page of both runs."""
    ours, theirs = pair.at_one_load()
    pictures = (overview(ours, beside=theirs), overview(theirs, beside=ours))
    load = f" ({ours.reference.name})" if pair.has_levels else ""
    sides = [
        Side(letter, name, run, load_text(run.plan), picture, picture.title.lower() + load)
        for letter, name, run, picture in zip(
            "AB", pair.names, (pair.first, pair.second), pictures, strict=True
        )
    ]
    return rendered(
        "two_runs.html",
        pair=pair,
        sides=sides,
        have_repeats=pair.first.has_repeats and pair.second.has_repeats,
        rows={target.name: chain.from_iterable(_row(target)) for target in pair.targets()},
    )
