"""The budget as rows and sentences, which the terminal, Markdown and JSON share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.budget.suggestions import suggestions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from poolkit.budget.model import Quantity, Service
    from poolkit.budget.verdict import Budget, Overload


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table; `is_counted` is False for the clients of a pooler."""

    name: str
    what: str
    formula: str = ""
    steady: int | None
    ceiling: int | None
    is_counted: bool = True

    @property
    def figures(self) -> tuple[str, str]:
        """The connections while running and while deploying, in brackets if not counted."""
        found = (figure(self.steady), figure(self.ceiling))
        return found if self.is_counted else (f"({found[0]})", f"({found[1]})")


def rows(budget: Budget) -> list[Row]:
    """Return the rows of the table; the clients of a pooler follow it."""
    found = [_service_row(service) for service in budget.direct]
    for pooler in budget.poolers:
        found.append(
            Row(
                name=pooler.name,
                what=pooler.kind,
                formula=pooler.formula(budget.max_connections),
                steady=pooler.ceiling(budget.max_connections, is_deployed=False),
                ceiling=pooler.ceiling(budget.max_connections),
            )
        )
        clients = budget.clients_of(pooler.name)
        found += [_service_row(service, is_counted=False) for service in clients]
    for name, what, number in (
        ("migrations", "one at a time", budget.migrations),
        ("operators", "psql, monitoring", budget.operators),
    ):
        found.append(Row(name=name, what=what, steady=number, ceiling=number))
    return found


def _service_row(service: Service, *, is_counted: bool = True) -> Row:
    return Row(
        name=service.name,
        what=service.target or service.platform,
        formula=service.formula,
        steady=service.steady,
        ceiling=service.ceiling,
        is_counted=is_counted,
    )


def figure(value: int | None) -> str:
    """Return a number, or a question mark for an unknown one."""
    return "?" if value is None else f"{value:,}"


def headline(budget: Budget) -> str:
    """Return the verdict in one sentence, and a second one if max_connections is too high."""
    room, database = figure(budget.available), budget.database
    at_least = "at least " if budget.needed is None else ""
    if budget.verdict == "fits":
        spare = (budget.available or 0) - (budget.needed or 0)
        text = f"Fits: {figure(budget.needed)} of {room} connections, {spare:,} to spare."
    elif budget.is_over:
        over = budget.known - (budget.available or 0)
        text = (
            f"Does not fit: {at_least}{budget.known:,} connections needed, {room} available "
            f"({over:,} too many)."
        )
    elif budget.verdict == "nothing to count":
        text = (
            f"Nothing to count: no service in the files connects to {database.name}, as far as they "
            "show. Declare each service with --service NAME=POOL+OVERFLOW."
        )
    elif budget.overloads:
        text = f"Does not fit: {overload_text(budget.overloads[0])}"
    else:
        text = (
            f"Cannot be shown to fit: {at_least}{budget.known:,} of {room} connections, and some "
            "numbers are unknown."
        )
    if database.is_set_too_high:
        text += (
            f" max_connections is set to {database.max_connections}, but the memory can carry only "
            f"about {figure(database.carried)}, so the smaller number counts."
        )
    return text


def overload_text(overload: Overload) -> str:
    """Return a sentence about a pooler with too many clients."""
    return (
        f"{overload.pooler.name} accepts {overload.limit:,} clients and would get "
        f"{overload.clients:,}."
    )


def origins(budget: Budget) -> Iterator[tuple[str, list[str]]]:
    """Return the sources of the numbers, by name."""
    for service in budget.services:
        numbers: dict[str, Quantity | None] = dict(service.numbers)
        size, overflow = service.pool_size, service.max_overflow
        lines = []
        if size.is_known and overflow.is_known and size.origin == overflow.origin:
            del numbers["pool_size"], numbers["max_overflow"]
            lines = [f"pool {size}+{overflow}: {size.origin}"]
        lines = [*_origin_lines(numbers), *lines]
        if more := service.overlap.more(service.instances.value):
            lines.append(f"during a deployment {more:,} more: {service.overlap.origin}")
        yield service.name, lines
    for pooler in budget.poolers:
        numbers = {
            "instances": None if pooler.percent else pooler.instances,
            "server connections": pooler.server_connections,
            "percent": pooler.percent,
            "clients": pooler.clients,
        }
        yield pooler.name, _origin_lines(numbers)


def _origin_lines(numbers: Mapping[str, Quantity | None]) -> list[str]:
    return [
        f"{name.replace('_', ' ')} {quantity}: {quantity.origin}"
        for name, quantity in numbers.items()
        if quantity is not None and quantity.is_known
    ]


def database_lines(budget: Budget) -> Iterator[str]:
    """Return the limits of the database, and how they were derived."""
    database, limit = budget.database, budget.database.max_connections
    origin = f" ({limit.origin})" if limit.origin else ""
    yield f"{database.kind} {database.name}: max_connections {limit}{origin}"
    if database.formula and limit.is_known:
        yield database.formula
    if database.highest is not None and limit.is_known:
        yield "This is an estimate. To use the server's own number, give --database-url."
    yield f"{database.reserved} reserved: {database.reserved.origin}"


def tight_note(budget: Budget) -> str:
    """Return a note if the verdict depends on the memory that RDS uses itself."""
    database = budget.database
    if database.highest is None or not budget.is_over or budget.overloads:
        return ""
    if budget.known > database.highest - (database.reserved.value or 0):
        return ""
    return (
        f"With all of the class's memory, the formula would give {database.highest:,}, and it "
        "would fit. To use the server's own number, give --database-url."
    )


def ways_out(budget: Budget) -> tuple[str, list[str]]:
    """Return the suggestions, and a heading for them; two empty ones if there are none."""
    found = suggestions(budget)
    texts = [each.text for each in found]
    if not any(each.changes for each in found):
        return "", texts
    return ("Each of these makes it fit" if len(texts) > 1 else "This makes it fit"), texts
