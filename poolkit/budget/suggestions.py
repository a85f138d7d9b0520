"""Ways to make a deployment fit: for each part of it, the largest number that does.

Every suggestion can be applied to its budget, and then that budget fits. If numbers are unknown,
the known part of it fits then.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from poolkit.budget.limits import smallest_class
from poolkit.budget.model import Overlap, Pooler, known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from poolkit.budget.model import Service, Unit
    from poolkit.budget.verdict import Budget

Kind: TypeAlias = Literal["change", "together", "database", "pooler", "limit"]
_MOST_OF_POSTGRES = 262_143
_UNITS: dict[Unit, tuple[str, str]] = {
    "task": ("task", "tasks"),
    "replica": ("replica", "replicas"),
    "pod": ("pod", "pods"),
}
_POOLER_NUMBERS = {
    "percent": "a MaxConnectionsPercent",
    "server_connections": "server connections (pool sizes)",
}


class Change(NamedTuple):
    """A number of a service, pooler or database, and its new value."""

    of: str
    number: str
    value: int


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One way to make it fit."""

    kind: Kind
    text: str
    changes: tuple[Change, ...]


def suggestions(budget: Budget) -> tuple[Suggestion, ...]:
    """Return the ways to make a budget fit; none if it does, or if its limit is unknown."""
    if budget.available is None or budget.verdict in ("fits", "nothing to count"):
        return ()
    if budget.verdict == "cannot be shown to fit":
        return tuple(_limit(budget))
    found: list[Suggestion] = []
    for overload in budget.overloads:
        pooler = overload.pooler
        value = -(-overload.clients // max(1, pooler.instances.value or 1))
        change = Change(pooler.name, "clients", value)
        if _fits(budget, change):
            text = f"{pooler.name}: a max_client_conn of at least {value} (now {pooler.clients})"
            found.append(Suggestion(kind="change", text=text, changes=(change,)))
    for overload in budget.overloads:
        for service in budget.clients_of(overload.pooler.name):
            found += _changes(budget, service)
    if budget.is_over:
        alone = [each for service in budget.direct for each in _changes(budget, service)]
        for pooler in budget.poolers:
            number = "server_connections" if pooler.percent is None else "percent"
            now = pooler.server_connections if pooler.percent is None else pooler.percent
            is_known = now is not None and pooler.ceiling(budget.max_connections) is not None
            highest = (now.value or 0) - 1 if now is not None and is_known else 0
            most = _largest_value(budget, pooler.name, number, highest)
            if most is not None:
                change = Change(pooler.name, number, most)
                text = f"{pooler.name}: {_POOLER_NUMBERS[number]} of at most {most} (now {now})"
                alone.append(Suggestion(kind="change", text=text, changes=(change,)))
        found += alone or _together(budget)
        found += _other_servers(budget)
    return tuple(found)


# -- applying -------------------------------------------------------------------------------


def applied(budget: Budget, suggestion: Suggestion) -> Budget:
    """Return the budget after a suggestion has been followed."""
    for change in suggestion.changes:
        budget = _apply(budget, change)
    return budget


def _apply(budget: Budget, change: Change) -> Budget:
    name, number, value = change
    suggested = known(value, "suggested")
    if number == "max_connections":
        limit = dataclasses.replace(budget.database.max_connections, value=value, reason="")
        # The new server's memory can carry it.
        database = dataclasses.replace(budget.database, max_connections=limit, carried=None)
        return dataclasses.replace(budget, database=database)
    if number == "pooler":
        pooler = Pooler(
            name=f"pooler of {name}",
            kind="PgBouncer",
            where=None,
            instances=known(1, "suggested"),
            overlap=Overlap(),
            server_connections=suggested,
        )
        service = next(each for each in budget.services if each.name == name)
        larger = dataclasses.replace(budget, poolers=(*budget.poolers, pooler))
        return larger.with_part(dataclasses.replace(service, through=pooler.name))
    for pooler in budget.poolers:
        if pooler.name == name:
            return budget.with_part(
                dataclasses.replace(pooler, **{number: suggested})  # type: ignore[arg-type]  # a field
            )
    service = next(each for each in budget.services if each.name == name)
    return budget.with_part(_changed(service, number, value))


def _changed(service: Service, number: str, value: int) -> Service:
    if number != "per_process":
        return service.replace(**{number: value})
    # Overflow is reduced first: the pool's connections are reused, which makes them cheap.
    size = min(service.pool_size.value or value, value)
    return service.replace(pool_size=size, max_overflow=value - size)


def _fits(budget: Budget, *changes: Change) -> bool:
    """Return whether the known part fits after some changes."""
    for change in changes:
        budget = _apply(budget, change)
    return not (budget.overloads or budget.is_over or budget.is_close)


def _largest(fits: Callable[[int], bool], highest: int) -> int | None:
    """Return the largest number from 1 to `highest` that fits, if every smaller one fits too."""
    if highest < 1 or not fits(1):
        return None
    low, high = 1, highest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _largest_value(budget: Budget, name: str, number: str, highest: int) -> int | None:
    return _largest(lambda value: _fits(budget, Change(name, number, value)), highest)


# -- smaller numbers ------------------------------------------------------------------------


def _changes(budget: Budget, service: Service) -> Iterator[Suggestion]:
    """Return the largest pool, process count and instance count that fit, each by itself."""
    if service.ceiling is None:
        return
    for number in ("per_process", "processes", "instances"):
        value = _largest_value(budget, service.name, number, (service.number(number) or 0) - 1)
        if value is None:
            continue
        shown, now = _at_most(service, number, value), f"{service.number(number):,}"
        if number == "per_process":
            changed = _changed(service, number, value)
            shown = f"a pool of at most {changed.pool_size}+{changed.max_overflow}"
            now = f"{service.pool_size}+{service.max_overflow}"
        yield Suggestion(
            kind="change",
            text=f"{service.name}: {shown} (now {now})",
            changes=(Change(service.name, number, value),),
        )


def _at_most(service: Service, number: str, value: int) -> str:
    if number == "per_process":
        return f"at most {value:,} {'connection' if value == 1 else 'connections'} per process"
    if number == "processes":
        return f"at most {value:,} {'process' if value == 1 else 'processes'}"
    if number != "instances":
        return f"a {number} of at most {value:,}"
    if service.unit == "execution environment":
        return f"a reserved concurrency of at most {value:,}"
    return f"at most {_instances(service.unit, value)}"


def _instances(unit: Unit, value: int) -> str:
    one, several = _UNITS.get(unit, ("instance", "instances"))
    return f"{value:,} {one if value == 1 else several}"


def _together(budget: Budget) -> Iterator[Suggestion]:
    """If no number alone is enough: smaller pools of all services, and then fewer instances too."""
    services = [service for service in budget.direct if service.ceiling is not None]

    def fits(numbers: Sequence[str], share: int) -> bool:
        return _fits(budget, *_shares(services, numbers, share))

    for numbers in (("per_process",), ("per_process", "instances")):
        share = _largest(partial(fits, numbers), 100)
        if share is None:
            continue
        changes = _shares(services, numbers, share)
        parts = []
        for service in services:
            for name, number, value in changes:
                if name == service.name and number == "per_process":
                    changed = _changed(service, number, value)
                    parts.append(
                        f"{name} with a pool of {changed.pool_size}+{changed.max_overflow}"
                    )
                elif name == service.name:
                    parts.append(f"{name} with {_instances(service.unit, value)}")
        text = f"together: {', '.join(parts)}"
        yield Suggestion(kind="together", text=text, changes=changes)
        return


def _shares(services: Sequence[Service], numbers: Sequence[str], share: int) -> tuple[Change, ...]:
    """Return the changes to a share, in percent, of some numbers of all services, at least 1."""
    return tuple(
        Change(service.name, number, value)
        for service in services
        for number in numbers
        for now in (service.number(number) or 0,)
        for value in (max(1, now * share // 100),)
        if value < now
    )


# -- other servers --------------------------------------------------------------------------


def _other_servers(budget: Budget) -> Iterator[Suggestion]:
    """Return the smallest max_connections that is enough, and where a pooler pays off."""
    name, reserved = budget.database.name, budget.database.reserved.value or 0
    low = budget.database.limit or 0
    # A proxy's share grows with max_connections, so some are not enough at any size.
    largest = Change(name, "max_connections", _MOST_OF_POSTGRES)
    value = _MOST_OF_POSTGRES if low < _MOST_OF_POSTGRES and _fits(budget, largest) else None
    while value is not None and low + 1 < value:
        middle = (low + value) // 2
        fits = _fits(budget, Change(name, "max_connections", middle))
        low, value = (low, middle) if fits else (middle, value)
    if value is not None:
        text = (
            f"database: max_connections of at least {value:,} "
            f"({value - reserved:,} and {reserved} reserved)"
        )
        if instance_class := budget.database.instance_class:
            found = smallest_class(instance_class, value)
            text += (
                f", which {found} has" if found else ", more than the formula gives to any class"
            )
        change = Change(name, "max_connections", value)
        yield Suggestion(kind="database", text=text, changes=(change,))
    for service in budget.direct:
        room = None
        # Below 20 connections, a pooler saves too little.
        if service.ceiling is not None and service.ceiling >= 20:
            room = _largest_value(budget, service.name, "pooler", service.ceiling // 2)
        if room is not None:
            text = (
                f"{service.name} behind RDS Proxy or PgBouncer with {room} server connections for "
                f"its {service.ceiling:,} clients: pays off if at most {room} of them are in a "
                "transaction at once"
            )
            change = Change(service.name, "pooler", room)
            yield Suggestion(kind="pooler", text=text, changes=(change,))


def _limit(budget: Budget) -> Iterator[Suggestion]:
    """If one number of one service is all that is unknown, return how large it may be."""
    unclear = [service for service in budget.direct if service.ceiling is None]
    others = [gap for gap in budget.gaps if not any(gap.of == each.name for each in unclear)]
    if len(unclear) != 1 or others or budget.unread:
        return
    (service,) = unclear
    missing = [name for name, quantity in service.numbers.items() if not quantity.is_known]
    if missing == ["pool_size", "max_overflow"]:
        missing = ["per_process"]
    if len(missing) != 1 or service.overlap.kind == "unknown":
        return
    (number,) = missing
    value = _largest_value(budget, service.name, number, 1_000_000)
    if value is None:
        text = f"{service.name} does not fit: {_at_most(service, number, 1)} is too much already"
        yield Suggestion(kind="limit", text=text, changes=())
        return
    text = f"{service.name}: {_at_most(service, number, value)}"
    yield Suggestion(kind="limit", text=text, changes=(Change(service.name, number, value),))
