"""Ways to make a deployment fit: for each part of it, the largest number that does.

Every suggestion can be applied to its budget, and then the known part of that budget fits, also at
the lowest value of an estimated limit. With unknown numbers left, the verdict is then "cannot be
shown to fit".
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from poolkit.budget.limits import smallest_class
from poolkit.budget.model import Pooler, Service, known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from poolkit.budget.verdict import Budget, Overload

_Part: TypeAlias = Service | Pooler
Kind: TypeAlias = Literal["change", "together", "database", "limit"]
_MOST_OF_POSTGRES = 262_143
_OF_POOLERS = {
    "percent": "MaxConnectionsPercent",
    "server_connections": "server connections",
    "clients": "clients",
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
    # Advice has to hold at the least that an estimated limit can be.
    most, lowest = budget.max_connections or 0, budget.database.lowest
    budget = _with_limit(budget, most if lowest is None else min(most, lowest))
    room = (budget.available or 0) - budget.known
    if _fits(budget):
        return tuple(_limit(budget, room))
    # Each limit that is exceeded: what is left of it, and the parts that use it.
    exceeded: list[tuple[int, Sequence[_Part]]] = [
        (over.limit - over.clients, budget.clients_of(over.pooler.name))
        for over in budget.overloads
    ]
    exceeded += [(room, [*budget.direct, *budget.poolers])] if budget.is_over else []
    parts = [part for _, users in exceeded for part in users if _ceiling(part, budget) is not None]
    found: list[Suggestion] = []
    if len(exceeded) == 1:
        found += [_more_clients(over) for over in budget.overloads]
        # The largest first: a change there costs the others nothing, and helps most.
        for part in sorted(parts, key=lambda each: -(_ceiling(each, budget) or 0)):
            found += _alone(budget, part, exceeded[0][0])
    found += [] if found else _together(budget, parts)
    found += [] if budget.overloads else _larger_server(budget)
    return tuple(found)


# -- applying -------------------------------------------------------------------------------


def applied(budget: Budget, suggestion: Suggestion) -> Budget:
    """Return the budget after a suggestion has been followed."""
    for name, number, value in suggestion.changes:
        if number == "max_connections":
            # The memory of the new server can carry it.
            return _with_limit(budget, value, carried=None)
        # A proxy and a service may have the same name, and no number.
        kind = "poolers" if number in _OF_POOLERS else "services"
        parts: tuple[_Part, ...] = getattr(budget, kind)
        parts = tuple(_changed(e, number, value) if e.name == name else e for e in parts)
        changes: dict[str, Any] = {kind: parts}
        budget = dataclasses.replace(budget, **changes)
    return budget


def _with_limit(budget: Budget, value: int, **changes: Any) -> Budget:
    """Return the budget on a server with an exact max_connections."""
    limit = dataclasses.replace(budget.database.max_connections, value=value, reason="")
    exact: dict[str, Any] = {"max_connections": limit, "lowest": None, "highest": None, **changes}
    return dataclasses.replace(budget, database=dataclasses.replace(budget.database, **exact))


def _changed(part: _Part, number: str, value: int) -> _Part:
    """Return a part with another number; `per_process` changes the pool's two."""
    numbers = {number: value}
    if number == "per_process" and isinstance(part, Service):
        # Overflow is reduced first: the pool's connections are reused, which makes them cheap.
        size = min(part.pool_size.value or value, value)
        numbers = {"pool_size": size, "max_overflow": value - size}
    changes: dict[str, Any] = {name: known(each, "suggested") for name, each in numbers.items()}
    return dataclasses.replace(part, **changes)


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
        numbers = {"per_process": part.per_process, "processes": part.processes.value}
        return {**numbers, "instances": part.instances.value}
    quantities = {"server_connections": part.server_connections, "percent": part.percent}
    return {name: each.value for name, each in quantities.items() if each is not None}


def _named(part: _Part, number: str, value: int) -> tuple[str, str]:
    """Return a number's name and value as the report prints them."""
    if isinstance(part, Pooler):
        return _OF_POOLERS[number], f"{value:,}"
    if number == "instances":
        is_function = part.unit == "execution environment"
        return "concurrency" if is_function else f"{part.unit}s", f"{value:,}"
    if number == "per_process":
        size = min(part.pool_size.value or value, value)
        return "pool", f"{size}+{value - size}"
    return number, f"{value:,}"


def _alone(budget: Budget, part: _Part, room: int) -> Iterator[Suggestion]:
    """Return the largest value of each number by itself, also of the only one that is unknown.

    Args:
        budget: the one with the part.
        part: a service or pooler.
        room: what is left beside the part as it is; negative if that is too much.
    """
    room += _ceiling(part, budget) or 0

    def ceiling(number: str, value: int) -> int | None:
        return _ceiling(_changed(part, number, value), budget)

    def fits(number: str, value: int) -> bool:
        most = ceiling(number, value)
        return most is not None and most <= room

    for number, now in _numbers(part).items():
        value = _largest(partial(fits, number), 1_000_000 if now is None else now - 1)
        name, shown = _named(part, number, value or 1)
        if value is not None:
            text = f"{part.name}: {name} at most {shown}"
            text += "" if now is None else f" (now {_named(part, number, now)[1]})"
            kind: Kind = "limit" if now is None else "change"
            yield Suggestion(kind, text, (Change(part.name, number, value),))
        elif now is None and ceiling(number, 1) is not None:
            yield Suggestion("limit", f"{part.name} does not fit: {name} of 1 is too much")


def _limit(budget: Budget, room: int) -> Iterator[Suggestion]:
    """If one number of one service is all that is unknown, return how large it may be."""
    unclear = [service for service in budget.direct if service.ceiling is None]
    is_all = {gap.of for gap in budget.gaps} == {each.name for each in unclear}
    if len(unclear) == 1 and is_all and not budget.unread:
        yield from _alone(budget, unclear[0], room)


def _together(budget: Budget, parts: Sequence[_Part]) -> Iterator[Suggestion]:
    """If no number alone is enough, return smaller pools of all parts."""
    pools = [
        (part, number, now)
        for part in parts
        for number, now in _numbers(part).items()
        if number not in ("processes", "instances") and now is not None and now > 1
    ]

    def shares(share: int) -> Suggestion:
        smaller = [(part, number, max(1, now * share // 100)) for part, number, now in pools]
        changes = tuple(Change(part.name, number, value) for part, number, value in smaller)
        texts = (" ".join((each[0].name, *_named(*each))) for each in smaller)
        return Suggestion("together", f"together: {', '.join(texts)}", changes)

    share = _largest(lambda share: _fits(applied(budget, shares(share))), 99)
    if share is not None:
        yield shares(share)


def _more_clients(overload: Overload) -> Suggestion:
    """Return how many clients a pooler has to accept."""
    pooler = overload.pooler
    enough = -(-overload.clients // max(1, pooler.instances.value or 1))
    text = f"{pooler.name}: max_client_conn at least {enough:,} (now {pooler.clients})"
    return Suggestion("change", text, (Change(pooler.name, "clients", enough),))


def _larger_server(budget: Budget) -> Iterator[Suggestion]:
    """Return the smallest max_connections that is enough, and the class that has it."""
    database, low = budget.database, budget.database.limit or 0

    def fits(limit: int) -> bool:
        return _fits(_with_limit(budget, limit, carried=None))

    # A proxy's share grows with max_connections, so some are not enough at any size.
    if not fits(_MOST_OF_POSTGRES):
        return
    value = low + bisect_left(range(low, _MOST_OF_POSTGRES), True, key=fits)
    reserved = database.reserved.value or 0
    text = f"database: max_connections at least {value:,}"
    text += f" ({value - reserved:,} and {reserved} reserved)"
    if database.instance_class:
        found = smallest_class(database, value)
        text += f", which {found} has" if found else ", more than the formula gives a class"
    yield Suggestion("database", text, (Change(database.name, "max_connections", value),))
