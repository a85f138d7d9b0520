"""The budget as rows: what the terminal, Markdown and JSON all show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.model import Pooler, Service
    from poolkit.budget.verdict import Budget


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the sum; `ceiling` counts only where `counts`."""

    name: str
    what: str
    formula: str
    steady: int | None
    ceiling: int | None
    counts: bool = True


def rows(budget: Budget) -> Iterator[Row]:
    """Give every line of the sum, the clients of a pooler under it."""
    for service in budget.direct:
        yield _service_row(service)
    for pooler in budget.poolers:
        ceiling = pooler.ceiling(budget.max_connections)
        formula = pooler.formula(budget.max_connections)
        yield Row(
            name=pooler.name,
            what=pooler.kind,
            formula=formula,
            steady=pooler.steady(budget.max_connections),
            ceiling=ceiling,
        )
        for service in budget.clients_of(pooler.name):
            yield _service_row(service, counts=False)
    yield Row(
        name="migrations",
        what="one at a time",
        formula="",
        steady=budget.migrations,
        ceiling=budget.migrations,
    )
    yield Row(
        name="operators",
        what="psql, monitoring",
        formula="",
        steady=budget.operators,
        ceiling=budget.operators,
    )


def _service_row(service: Service, *, counts: bool = True) -> Row:
    return Row(
        name=service.name,
        what=service.target or service.platform,
        formula=service.formula,
        steady=service.steady,
        ceiling=service.ceiling,
        counts=counts,
    )


def figure(value: int | None) -> str:
    """Return a number, or a question mark for an unknown one."""
    return "?" if value is None else f"{value:,}"


def headline(budget: Budget) -> str:
    """Return the verdict in one sentence, and a second one where max_connections is too high."""
    said = _verdict(budget)
    database = budget.database
    if not database.is_set_too_high:
        return said
    return (
        f"{said} max_connections is set to {database.max_connections}, but the memory carries "
        f"about {figure(database.carried)}: counted against that."
    )


def _verdict(budget: Budget) -> str:
    room = figure(budget.available)
    if budget.verdict == "fits":
        spare = (budget.available or 0) - (budget.needed or 0)
        return f"Fits: {figure(budget.needed)} of {room} connections, {spare:,} to spare."
    at_least = "at least " if budget.needed is None else ""
    if budget.verdict == "does not fit":
        if budget.available is not None and budget.known > budget.available:
            return (
                f"Does not fit: {at_least}{budget.known:,} connections, and {room} are available; "
                f"{budget.known - budget.available:,} too many."
            )
        crowd = budget.crowded[0]
        return f"Does not fit: {crowd.pooler} takes {crowd.limit:,} clients and would get {crowd.clients:,}."
    return f"Cannot be shown to fit: {at_least}{budget.known:,} of {room} connections, and not all is known."


def origins(budget: Budget) -> Iterator[tuple[str, list[str]]]:
    """Give, for each name, where its numbers come from."""
    for service in budget.services:
        yield service.name, list(_origins_of_service(service))
    for pooler in budget.poolers:
        yield pooler.name, list(_origins_of_pooler(pooler))


def _origins_of_service(service: Service) -> Iterator[str]:
    for name, quantity in service.numbers.items():
        if quantity.value is not None:
            yield f"{name.replace('_', ' ')} {quantity}: {quantity.origin}"
    if service.overlap.kind not in ("none", "unknown") and service.overlap.amount:
        yield f"in a deployment: {service.overlap.origin}"


def _origins_of_pooler(pooler: Pooler) -> Iterator[str]:
    for name, quantity in (
        ("instances", None if pooler.percent else pooler.instances),
        ("server connections", pooler.server_connections),
        ("percent", pooler.percent),
        ("clients", pooler.clients),
    ):
        if quantity is not None and quantity.value is not None:
            yield f"{name} {quantity}: {quantity.origin}"


def database_lines(budget: Budget) -> Iterator[str]:
    """Give what is to be said about the database."""
    database = budget.database
    limit = database.max_connections
    origin = f" ({limit.origin})" if limit.origin else ""
    yield f"{database.kind} {database.name}: max_connections {limit}{origin}"
    if database.formula:
        yield f"{database.formula}."
    if database.nominal is not None and limit.value is not None:
        yield (
            "The true number is the server's own: --database-url asks it, and what the formula "
            "gives for the whole memory is more than there will be."
        )
    yield f"reserved {database.reserved}: {database.reserved.origin}"
    yield from database.notes


def tight_note(budget: Budget) -> str:
    """Say when the verdict hangs on how much memory RDS keeps for itself."""
    database = budget.database
    if database.nominal is None or budget.verdict != "does not fit":
        return ""
    reserved = database.reserved.value or 0
    if budget.crowded or budget.known > database.nominal - reserved:
        return ""
    return (
        f"With all of the class's memory the formula would give {database.nominal:,}, in which "
        "it would fit; ask the server itself with --database-url."
    )
