"""The budget as sections of sentences, names and tables, which all forms of output share."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from poolkit.budget.answers import Answer, answer
from poolkit.budget.limits import useful_note
from poolkit.budget.suggestions import applied, suggestions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from poolkit.budget.model import Pooler, Service
    from poolkit.budget.verdict import Budget, Budgets, Overload, Verdict

LONG = 20
"""The number of services from which the verdict stands above the output too."""
MOST = 10
"""The names and suggestions that are listed if they need no answer."""


_HINT = (
    "Each answer can also stand in [tool.poolkit.budget] of pyproject.toml, which --answer prepares. "
    "--ignore NAME leaves out a service that opens no connection."
)


class Row(NamedTuple):
    """One row of the table: texts, and whether the row is a part of the sum."""

    name: str
    what: str
    formula: str
    steady: str
    ceiling: str
    is_counted: bool = True


class Group(NamedTuple):
    """A sentence, the names and places that it is about, and what answers it."""

    sentence: str
    entries: tuple[tuple[str, str], ...]
    answer: str = ""


class Section(NamedTuple):
    """A part of the output, in the order of its fields."""

    title: str = ""
    verdict: Verdict | None = None
    """The verdict, if the title is a sentence about it."""
    table: tuple[Row, ...] = ()
    """Its last row is the sum."""
    lines: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True if there is nothing below the title, and the title is no verdict."""
        return not (self.table or self.lines or self.groups or self.verdict)


def sections(budgets: Budgets) -> Iterator[Section]:
    """Return the output's parts: unknowns first, each database's table, the verdict last."""
    is_one = len(budgets.each) == 1
    if sum(len(budget.services) for budget in budgets.each) > LONG:
        yield Section(summary(budgets), budgets.verdict)
    groups = unknown(budgets)
    hint = (_HINT,) if any(group.answer for group in groups) else ()
    yield Section("Unknown", lines=hint, groups=groups)
    for budget in budgets.each:
        title = "" if is_one else f"Database {budget.database.name}"
        yield Section(title, table=table(budget), lines=tuple(database_lines(budget)))
        yield Section("Where the numbers come from", lines=tuple(origins(budget)))
        if not is_one:
            yield Section(headline(budget), budget.verdict, lines=ways_out(budget, budgets.knee))
    reasons: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for each in budgets.not_counted:
        reasons[each.reason].append((each.name, each.where))
    left_out = [Group(reason, tuple(_shortened(each))) for reason, each in reasons.items()]
    yield Section("Not counted", groups=tuple(left_out))
    yield Section("Measured", lines=tuple(check.text for check in budgets.checks))
    lines = ways_out(budgets.only, budgets.knee) if is_one else ()
    above = tuple(f"But {check.text}" for check in budgets.checks if not check.is_within)
    yield Section(summary(budgets), budgets.verdict, lines=above + lines)


def table(budget: Budget) -> tuple[Row, ...]:
    """Return the rows of the table; the clients of a pooler follow it."""
    limit, found = budget.max_connections, list[Row]()

    def add_services(services: Iterable[Service], form: str) -> None:
        for each in services:
            steady, most = form.format(figure(each.steady)), form.format(figure(each.ceiling))
            what = each.target or each.platform
            found.append(Row(each.name, what, each.formula, steady, most, form == "{}"))

    add_services(budget.direct, "{}")
    for pooler in budget.poolers:
        steady = figure(pooler.ceiling(limit, is_deployed=False))
        most, formula = figure(pooler.ceiling(limit)), pooler.formula(limit)
        found.append(Row(pooler.name, pooler.kind, formula, steady, most))
        add_services(budget.clients_of(pooler.name), "({})")
    one, more = figure(budget.migrations), figure(budget.operators)
    found.append(Row("migrations", "one at a time", "", one, one))
    found.append(Row("operators", "psql, monitoring", "", more, more))
    at_least = "" if budget.needed is not None else "≥ "
    of = f"{at_least}{budget.known:,} of {figure(budget.available)}"
    return (*found, Row("in all", "", "", "", of))


def figure(value: int | None) -> str:
    """Return a number, or a question mark for an unknown one."""
    return "?" if value is None else f"{value:,}"


def unknown(budgets: Budgets) -> tuple[Group, ...]:
    """Return what is unknown: one group for each sentence, the largest first."""
    found: dict[str, dict[tuple[str, str], Answer]] = defaultdict(dict)
    for budget in budgets.each:
        for gap in budget.gaps:
            number = gap.number.replace("_", " ")
            is_named = gap.reason.startswith((number, gap.number))
            sentence = gap.reason if is_named else f"{number}: {gap.reason}"
            is_given = gap.of == budget.database.name and budget.database.where is None
            entry = ("" if is_given else gap.of, str(gap.where or ""))
            found[sentence][entry] = answer(budget, gap.of)
    for part in budgets.unread:
        found[part.reason]["", str(part.where)] = Answer()
    groups = []
    for sentence, entries in found.items():
        names = {name for name, _ in entries if name}
        # The longest form has what any of them lacks.
        how = max(entries.values(), key=lambda each: len(each.form))
        text = how.flag(names.pop() if len(names) == 1 else "NAME")
        shown = [*entries] if names or how.option else _shortened([*entries])
        groups.append(Group(sentence, tuple(shown), text))
    return tuple(sorted(groups, key=lambda group: -len(group.entries)))


def _shortened(entries: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the first entries, and how many more there are."""
    more = [(f"and {len(entries) - MOST} more, which --json lists", "")]
    return entries[:MOST] + (more if len(entries) > MOST else [])


def origins(budget: Budget) -> Iterator[str]:
    """Return the numbers by their source; a line without a file is in the part's own."""
    parts: list[Service | Pooler] = [*budget.services, *budget.poolers]
    for part in parts:
        by_origin: dict[str, list[str]] = defaultdict(list)
        for name, number in part.numbers.items():
            if number.is_known:
                by_origin[number.origin].append(f"{name.replace('_', ' ')} {number}")
        if more := part.overlap.more(part.instances.value):
            by_origin[part.overlap.origin].append(f"{more:,} more during a deployment")
        file, where = (f"{part.where.file}:", f" ({part.where})") if part.where else ("\0", "")
        texts = [f"{', '.join(n)}: {text.replace(file, 'line ')}" for text, n in by_origin.items()]
        if texts:
            yield f"{part.name}{where}: {'; '.join(texts)}"


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
    if budget.verdict == "fits":
        text = f"Fits: {needed} of {room} connections, {spare:,} to spare."
    elif budget.is_over:
        text = f"Does not fit: {needed} connections needed, {room} available ({-spare:,} too many)."
    elif budget.overloads:
        text = f"Does not fit: {overload_text(budget.overloads[0])}"
    elif budget.verdict == "nothing to count":
        text = (
            f"Nothing to count: no service in the files connects to {database.name}, as far as "
            "they show. Count one with --service NAME=POOL+OVERFLOW[xPROCESSES][@INSTANCES]."
        )
    else:
        text = (
            f"Cannot be shown to fit: {needed} of {room} connections, and some numbers are unknown."
        )
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


def database_lines(budget: Budget) -> Iterator[str]:
    """Return the limits of the database, and how they were derived."""
    database, limit = budget.database, budget.database.max_connections
    origin = f" ({limit.origin})" if limit.origin else ""
    yield f"{database.kind} {database.name}: max_connections {limit}{origin}"
    if database.formula and limit.is_known:
        yield database.formula
    if database.lowest is not None or database.highest is not None:
        yield "To use the server's own number, give --database-url."
    yield f"{database.reserved} reserved: {database.reserved.origin}"


def ways_out(budget: Budget, knee: int | None = None) -> tuple[str, ...]:
    """Return the second ceiling if it is exceeded, and suggestions after a heading true of each."""
    found = suggestions(budget)
    texts = [f"- {each.text}" for each in found[:MOST]]
    if len(found) > MOST:
        texts.append(f"- and {len(found) - MOST} more, which --json lists")
    if change := next((each for each in found if each.changes), None):
        # All suggestions leave the same numbers unknown.
        after, one = applied(budget, change).verdict, "Each of these" if len(found) > 1 else "This"
        heading = f"{one} makes it fit:"
        if after != "fits":
            heading = f"{one} makes the known part fit; the deployment then {after}:"
        texts.insert(0, heading)
    elif not found and (budget.is_over or budget.overloads):
        texts.append("No change of pools, instances or max_connections makes it fit.")
    if note := useful_note(budget.database, budget.known, knee):
        texts.insert(0, f"But {note}" if budget.verdict == "fits" else note)
    return tuple(texts)
