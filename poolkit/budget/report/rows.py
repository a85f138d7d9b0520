"""The budget as sections of sentences, names and tables, which all forms of output share."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from poolkit.budget.limits import useful_note
from poolkit.budget.suggestions import applied, suggestions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.budget.model import Pooler, Service
    from poolkit.budget.verdict import Answer, Budget, Budgets, Overload, Verdict

LONG = 20
"""The number of services from which the verdict stands above the output too."""
MOST = 10
"""The names and suggestions that are listed if they need no answer."""


_HINT = (
    "Each answer can also stand in [tool.poolkit.budget] of pyproject.toml, which --answer prepares. "
    "--ignore NAME leaves out a service that opens no connection."
)


Row: TypeAlias = tuple[str, str, str, str, str]
"""One row of the table: name, kind, formula, ceiling while running and while deploying."""
CLIENT = "↳ "
"""What the name of a row begins with that is no part of the sum: a pooler's client."""


class Group(NamedTuple):
    """A sentence, the names and places that it is about, and what answers it."""

    sentence: str
    entries: tuple[tuple[str, str], ...] = ()
    answer: str = ""

    def __str__(self) -> str:
        names = "; ".join(name or where for name, where in self.entries)
        return f"{self.sentence.rstrip(':')}: {names}" if names else self.sentence


class Section(NamedTuple):
    """A part of the output, in the order of its fields."""

    title: str
    verdict: Verdict | None = None
    """The verdict, if the title is a sentence about it."""
    table: tuple[Row, ...] = ()
    """Its last row is the sum."""
    groups: tuple[Group, ...] = ()


def sections(budgets: Budgets) -> list[Section]:
    """Return the output's parts: unknowns first, each database's table, the verdict last."""
    is_one = len(budgets.each) == 1
    groups = unknown(budgets)
    hint = [Group(_HINT)] if any(group.answer for group in groups) else []
    found = [Section("Unknown", groups=(*hint, *groups))]
    for budget in budgets.each:
        title = "" if is_one else f"Database {budget.database.name}"
        found.append(Section(title, table=table(budget), groups=tuple(sources(budget))))
        if not is_one:
            ways = ways_out(budget, budgets.knee)
            found.append(Section(headline(budget), budget.verdict, groups=ways))
    reasons: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for each in budgets.not_counted:
        reasons[each.reason].append((each.name, each.where))
    left_out = (Group(reason, _shortened(entries)) for reason, entries in reasons.items())
    found.append(Section("Not counted", groups=tuple(left_out)))
    found.append(Section("Measured", groups=tuple(Group(each.text) for each in budgets.checks)))
    above = [Group(f"But {check.text}") for check in budgets.checks if not check.is_within]
    ways = ways_out(budgets.only, budgets.knee) if is_one else ()
    found.append(Section(summary(budgets), budgets.verdict, groups=(*above, *ways)))
    return [each for each in found if each.verdict or each.table or each.groups]


def _shortened(entries: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the first entries, and how many more there are."""
    more = [(f"and {len(entries) - MOST} more, which --json lists", "")]
    return (*entries[:MOST], *(more if len(entries) > MOST else []))


# -- numbers --------------------------------------------------------------------------------


def table(budget: Budget) -> tuple[Row, ...]:
    """Return the rows of the table; the clients of a pooler follow it."""
    limit = budget.max_connections
    found = [_row(service) for service in budget.direct]
    for pooler in budget.poolers:
        numbers = figure(pooler.ceiling(limit, is_deployed=False)), figure(pooler.ceiling(limit))
        found.append((pooler.name, pooler.kind, pooler.formula(limit), *numbers))
        for name, what, formula, steady, most in map(_row, budget.clients_of(pooler.name)):
            found.append((CLIENT + name, what, formula, f"({steady})", f"({most})"))
    one, more = figure(budget.migrations), figure(budget.operators)
    found.append(("migrations", "one at a time", "", one, one))
    found.append(("operators", "psql, monitoring", "", more, more))
    at_least = "" if budget.needed is not None else "≥ "
    of = f"{at_least}{budget.known:,} of {figure(budget.available)}"
    return (*found, ("in all", "", "", "", of))


def _row(service: Service) -> Row:
    numbers = figure(service.steady), figure(service.ceiling)
    return service.name, service.target or service.platform, service.formula, *numbers


def figure(value: int | None) -> str:
    """Return a number, or a question mark for an unknown one."""
    return "?" if value is None else f"{value:,}"


def unknown(budgets: Budgets) -> tuple[Group, ...]:
    """Return what is unknown: one group for each sentence, the largest first."""
    found: dict[str, dict[tuple[str, str], Answer]] = defaultdict(dict)
    for gap in budgets.gaps:
        found[gap.sentence][gap.of, str(gap.where or "")] = gap.answer
    groups = []
    for sentence, entries in found.items():
        names = {name for name, _ in entries if name}
        # The longest form has what any of them lacks.
        how = max(entries.values(), key=lambda each: len(each.form))
        text = how.flag(names.pop() if len(names) == 1 else "NAME")
        groups.append(Group(sentence, tuple(entries) if text else _shortened([*entries]), text))
    return tuple(sorted(groups, key=lambda group: -len(group.entries)))


def sources(budget: Budget) -> Iterator[Group]:
    """Return how the limit of the database was derived, and where the other numbers come from."""
    database, limit = budget.database, budget.database.max_connections
    origin = f" ({limit.origin})" if limit.origin else ""
    yield Group(f"{database.kind} {database.name}: max_connections {limit}{origin}")
    if database.formula and limit.is_known:
        yield Group(database.formula)
    yield Group(f"{database.reserved} reserved: {database.reserved.origin}")
    texts = [*map(_origins, budget.services), *map(_origins, budget.poolers)]
    if entries := tuple((text, "") for text in texts if text):
        yield Group("Where the numbers come from:", entries)


def _origins(part: Service | Pooler) -> str:
    """Return the numbers of a part by their source; a line without a file is in the part's own."""
    by_origin: dict[str, list[str]] = defaultdict(list)
    for name, number in part.numbers.items():
        if number.is_known:
            by_origin[number.origin].append(f"{name.replace('_', ' ')} {number}")
    if more := part.overlap.more(part.instances.value):
        by_origin[part.overlap.origin].append(f"{more:,} more during a deployment")
    file, where = (f"{part.where.file}:", f" ({part.where})") if part.where else ("\0", "")
    texts = [f"{', '.join(n)}: {text.replace(file, 'line ')}" for text, n in by_origin.items()]
    return f"{part.name}{where}: {'; '.join(texts)}" if texts else ""


# -- sentences ------------------------------------------------------------------------------


def summary(budgets: Budgets) -> str:
    """Return the headline, or the verdict of each database if there are several."""
    if len(budgets.each) == 1:
        return headline(budgets.only)
    each = "; ".join(f"{budget.database.name}: {budget.verdict}" for budget in budgets.each)
    return f"{len(budgets.each)} databases: {each}."


def headline(budget: Budget) -> str:
    """Return the verdict in one sentence, and others about the limit if it is an unusual one."""
    database, room = budget.database, figure(budget.available)
    needed = f"{'at least ' if budget.needed is None else ''}{budget.known:,}"
    spare = (budget.available or 0) - budget.known
    texts: dict[Verdict, str] = {
        "fits": f"Fits: {needed} of {room} connections, {spare:,} to spare.",
        "cannot be shown to fit": f"Cannot be shown to fit: {needed} of {room} connections, and "
        "some numbers are unknown.",
        "nothing to count": "Nothing to count: no service in the files connects to "
        f"{database.name}, as far as they show. Count one with "
        "--service NAME=POOL+OVERFLOW[xPROCESSES][@INSTANCES].",
        "does not fit": f"Does not fit: {needed} connections needed, {room} available "
        f"({-spare:,} too many).",
    }
    text = texts[budget.verdict]
    if budget.overloads and not budget.is_over:
        text = f"Does not fit: {overload_text(budget.overloads[0])}"
    if database.is_set_too_high:
        text += (
            f" max_connections is set to {database.max_connections}, but the memory can carry only "
            f"about {figure(database.carried)}, so the smaller number counts."
        )
    low, high = database.bounds or (0, 0)
    if low != high:
        text += f" The limit is an estimate: {low:,} to {high:,} connections are available"
        text += "; even the most is too few." if budget.is_over else "."
    return text


def overload_text(overload: Overload) -> str:
    """Return a sentence about a pooler with too many clients."""
    name, clients = overload.pooler.name, overload.clients
    return f"{name} accepts {overload.limit:,} clients and would get {clients:,}."


def ways_out(budget: Budget, knee: int | None = None) -> tuple[Group, ...]:
    """Return the second ceiling if it is exceeded, and suggestions after a heading true of each."""
    found, groups = suggestions(budget), []
    if note := useful_note(budget.database, budget.known, knee):
        groups.append(Group(f"But {note}" if budget.verdict == "fits" else note))
    if change := next((each for each in found if each.changes), None):
        # All suggestions leave the same numbers unknown.
        after, one = applied(budget, change).verdict, "Each of these" if len(found) > 1 else "This"
        heading = f"{one} makes it fit:"
        if after != "fits":
            heading = f"{one} makes the known part fit; the deployment then {after}:"
        groups.append(Group(heading, _shortened([(each.text, "") for each in found])))
    elif found:
        groups += [Group(each.text) for each in found]
    elif budget.is_over or budget.overloads:
        groups.append(Group("No change of pools, instances or max_connections makes it fit."))
    return tuple(groups)
