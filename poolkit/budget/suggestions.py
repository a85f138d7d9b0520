"""Ways to make a deployment fit: for each part of it, the largest number that does.

Every suggestion can be applied to its budget, and then the known part of that budget fits, also at
the lowest value of an estimated limit. With unknown numbers left, the verdict is then "cannot be
shown to fit".
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from poolkit.budget.limits import smallest_class
from poolkit.budget.model import Overlap, Pooler, Service, known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from poolkit.budget.verdict import Budget

_Part: TypeAlias = Service | Pooler
Kind: TypeAlias = Literal["change", "together", "database", "pooler", "limit"]
_MOST_OF_POSTGRES = 262_143
_WORTH_A_POOLER = 20
"""The ceiling below which a pooler saves too little."""
_OF_POOLERS = ("percent", "server_connections", "clients")
_NAMES = {
    "per_process": "connections per process",
    "percent": "MaxConnectionsPercent",
    "server_connections": "server connections",
}


class Change(NamedTuple):
    """A number of a service, pooler or database, and its new value."""

    of: str
    number: str
    value: int


class Suggestion(NamedTuple):
    """One way to make it fit; without changes, the reason why a number can be no solution."""

    kind: Kind
    text: str
    changes: tuple[Change, ...] = ()


def suggestions(budget: Budget) -> tuple[Suggestion, ...]:
    """Return the ways to make a budget fit; none if it does, or if its limit is unknown."""
    if budget.available is None:
        return ()
    budget = _at_lowest(budget)
    room = (budget.available or 0) - budget.known
    if _fits(budget):
        return tuple(_limit(budget, room))
    found: list[Suggestion] = []
    parts: list[_Part] = []
    if not budget.overloads:
        parts = [*budget.direct, *budget.poolers]
    elif len(budget.overloads) == 1 and not budget.is_over:
        (overload,) = budget.overloads
        pooler = overload.pooler
        parts, room = [*budget.clients_of(pooler.name)], overload.limit - overload.clients
        enough = -(-overload.clients // max(1, pooler.instances.value or 1))
        text = f"{pooler.name}: max_client_conn at least {enough:,} (now {pooler.clients})"
        found.append(Suggestion("change", text, (Change(pooler.name, "clients", enough),)))
    # The largest first: a change there costs the others nothing, and helps most.
    for part in sorted(parts, key=lambda each: -(_ceiling(each, budget) or 0)):
        if (ceiling := _ceiling(part, budget)) is not None:
            found += _alone(budget, part, ceiling + room)
    found += [] if found else _together(budget)
    found += [] if budget.overloads else _other_servers(budget, room)
    return tuple(found)


# -- applying -------------------------------------------------------------------------------


def applied(budget: Budget, suggestion: Suggestion) -> Budget:
    """Return the budget after a suggestion has been followed."""
    # A proxy and a service may have the same name, and no number.
    parts: dict[tuple[str, bool], _Part] = {(each.name, False): each for each in budget.services}
    parts |= {(each.name, True): each for each in budget.poolers}
    for name, number, value in suggestion.changes:
        if number == "max_connections":
            # The memory of the new server can carry it.
            return _with_limit(budget, value, carried=None)
        key = (name, number in _OF_POOLERS)
        parts[key] = _changed(parts[key], number, value)
    services = tuple(part for part in parts.values() if isinstance(part, Service))
    poolers = tuple(part for part in parts.values() if isinstance(part, Pooler))
    return dataclasses.replace(budget, services=services, poolers=poolers)


def _with_limit(budget: Budget, value: int, **changes: Any) -> Budget:
    """Return the budget on a server with an exact max_connections."""
    limit = dataclasses.replace(budget.database.max_connections, value=value, reason="")
    exact: dict[str, Any] = {"max_connections": limit, "lowest": None, "highest": None, **changes}
    return dataclasses.replace(budget, database=dataclasses.replace(budget.database, **exact))


def _at_lowest(budget: Budget) -> Budget:
    """Return the budget at the least that an estimated limit can be, where advice has to hold."""
    most, lowest = budget.max_connections or 0, budget.database.lowest
    return _with_limit(budget, most if lowest is None else min(most, lowest))


def _changed(part: _Part, number: str, value: int) -> _Part:
    """Return a part with another number; `per_process` changes the pool's two."""
    numbers, more = {number: value}, dict[str, Any]()
    if number == "per_process" and isinstance(part, Service):
        # Overflow is reduced first: the pool's connections are reused, which makes them cheap.
        size = min(part.pool_size.value or value, value)
        numbers = {"pool_size": size, "max_overflow": value - size}
    elif number == "pooler":
        # The pooler's connections take the place of the service's.
        numbers = {"instances": 1, "processes": 1, "pool_size": value, "max_overflow": 0}
        more = {"overlap": Overlap()}
    more |= {name: known(each, "suggested") for name, each in numbers.items()}
    return dataclasses.replace(part, **more)


def _fits(budget: Budget) -> bool:
    """Return whether the known part fits."""
    return not budget.overloads and not budget.is_over


def _ceiling(part: _Part, budget: Budget) -> int | None:
    return part.ceiling if isinstance(part, Service) else part.ceiling(budget.max_connections)


def _largest(fits: Callable[[int], bool], highest: int) -> int | None:
    """Return the largest number from 1 to `highest` that fits, if every smaller one fits too."""
    numbers = range(1, highest + 1)
    return bisect_left(numbers, True, key=lambda value: not fits(value)) or None


# -- smaller numbers ------------------------------------------------------------------------


def _numbers(part: _Part) -> dict[str, int | None]:
    """Return the numbers of a part that can be reduced, by name; None: unknown."""
    if isinstance(part, Service):
        return {name: part.number(name) for name in ("per_process", "processes", "instances")}
    quantities = {"server_connections": part.server_connections, "percent": part.percent}
    return {name: each.value for name, each in quantities.items() if each is not None}


def _named(part: _Part, number: str, value: int) -> tuple[str, str]:
    """Return a number's name and value as the report prints them."""
    if isinstance(part, Service) and number == "per_process" and part.per_process is not None:
        size = min(part.pool_size.value or value, value)
        return "pool", f"{size}+{value - size}"
    if isinstance(part, Service) and number == "instances":
        is_function = part.unit == "execution environment"
        return "concurrency" if is_function else f"{part.unit}s", f"{value:,}"
    return _NAMES.get(number, number), f"{value:,}"


def _alone(budget: Budget, part: _Part, room: int) -> Iterator[Suggestion]:
    """Return the largest value of each number by itself, also of the only one that is unknown."""
    for number, now in _numbers(part).items():

        def fits(value: int, number: str = number) -> bool:
            ceiling = _ceiling(_changed(part, number, value), budget)
            return ceiling is not None and ceiling <= room

        value = _largest(fits, 1_000_000 if now is None else now - 1)
        if value is not None:
            name, shown = _named(part, number, value)
            text = f"{part.name}: {name} at most {shown}"
            text += "" if now is None else f" (now {_named(part, number, now)[1]})"
            kind: Kind = "limit" if now is None else "change"
            yield Suggestion(kind, text, (Change(part.name, number, value),))


def _limit(budget: Budget, room: int) -> Iterator[Suggestion]:
    """If one number of one service is all that is unknown, return how large it may be."""
    unclear = [service for service in budget.direct if service.ceiling is None]
    is_all = {gap.of for gap in budget.gaps} == {each.name for each in unclear}
    if len(unclear) == 1 and is_all and not budget.unread:
        found = list(_alone(budget, unclear[0], room))
        yield from found
        missing = [number for number, value in _numbers(unclear[0]).items() if value is None]
        if not found and len(missing) == 1:
            name, _ = _named(unclear[0], missing[0], 1)
            yield Suggestion("limit", f"{unclear[0].name} does not fit: {name} of 1 is too much")


def _together(budget: Budget) -> Iterator[Suggestion]:
    """If no number alone is enough: smaller pools of all parts, and then fewer instances too."""
    parts: list[_Part] = [*budget.direct, *budget.poolers] if budget.is_over else []
    parts += [each for over in budget.overloads for each in budget.clients_of(over.pooler.name)]
    numbers = [
        (part, number, now)
        for part in parts
        if _ceiling(part, budget) is not None
        for number, now in _numbers(part).items()
        if number != "processes" and now is not None
    ]
    for has_instances in (False, True):

        def shares(share: int, *, has_instances: bool = has_instances) -> Suggestion:
            changes, texts = [], []
            for part, number, now in numbers:
                value = max(1, now * share // 100)
                if value < now and (has_instances or number != "instances"):
                    changes.append(Change(part.name, number, value))
                    texts.append(" ".join((part.name, *_named(part, number, value))))
            return Suggestion("together", f"together: {', '.join(texts)}", tuple(changes))

        share = _largest(lambda share: _fits(applied(budget, shares(share))), 99)
        if share is not None:
            yield shares(share)
            return


# -- other servers --------------------------------------------------------------------------


def _other_servers(budget: Budget, room: int) -> Iterator[Suggestion]:
    """Return the smallest max_connections that is enough, and where a pooler pays off."""
    database, low = budget.database, budget.database.limit or 0

    def fits(limit: int) -> bool:
        return _fits(_with_limit(budget, limit, carried=None))

    # A proxy's share grows with max_connections, so some are not enough at any size.
    if fits(_MOST_OF_POSTGRES):
        value = low + bisect_left(range(low, _MOST_OF_POSTGRES), True, key=fits)
        reserved = database.reserved.value or 0
        text = f"database: max_connections at least {value:,}"
        text += f" ({value - reserved:,} and {reserved} reserved)"
        if database.instance_class:
            found = smallest_class(database, value)
            text += f", which {found} has" if found else ", more than the formula gives a class"
        changes = (Change(database.name, "max_connections", value),)
        yield Suggestion("database", text, changes)
    for service in budget.direct:
        ceiling = service.ceiling or 0
        most = min(ceiling // 2, ceiling + room)
        if ceiling >= _WORTH_A_POOLER and most > 0:
            text = (
                f"{service.name} behind RDS Proxy or PgBouncer with {most:,} server connections "
                f"for its {ceiling:,} clients: pays off if at most {most:,} of them are in a "
                "transaction at once"
            )
            yield Suggestion("pooler", text, (Change(service.name, "pooler", most),))
