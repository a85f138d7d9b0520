"""What would make a fleet fit: for each part of it, the largest number that does.

Every suggestion can be applied to the budget it was made for, and then that budget fits; where
numbers are unknown, it then fits as far as it is known.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from poolkit.budget.instance_classes import smallest_class
from poolkit.budget.model import Overlap, Pooler
from poolkit.budget.quantity import known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from poolkit.budget.model import Service
    from poolkit.budget.verdict import Budget

Kind: TypeAlias = Literal["change", "together", "database", "pooler", "limit"]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One way to make it fit; `changes` are service or pooler, number and its largest value."""

    kind: Kind
    text: str
    changes: tuple[tuple[str, str, int], ...]


def suggestions(budget: Budget) -> tuple[Suggestion, ...]:
    """Return the ways to make a budget fit; none where it does, or where nobody can tell."""
    if budget.available is None:
        return ()
    if budget.verdict == "fits":
        return ()
    return tuple(_suggestions(budget))


def applied(budget: Budget, suggestion: Suggestion) -> Budget:
    """Return the budget after a suggestion has been followed."""
    for name, number, value in suggestion.changes:
        budget = _apply(budget, name, number, value)
    return budget


def _apply(budget: Budget, name: str, number: str, value: int) -> Budget:
    if number == "max_connections":
        limit = dataclasses.replace(budget.database.max_connections, value=value, reason="")
        # On a server whose memory carries that.
        database = dataclasses.replace(budget.database, max_connections=limit, carried=None)
        return dataclasses.replace(budget, database=database)
    if number == "pooler":
        return _behind_pooler(budget, name, value)
    for pooler in budget.poolers:
        if pooler.name == name:
            field = {"clients": "clients", "percent": "percent"}.get(number, "server_connections")
            changed = dataclasses.replace(
                pooler,
                **{field: known(value, "suggested")},  # type: ignore[arg-type]  # a field
            )
            return budget.with_pooler(changed)
    service = next(each for each in budget.services if each.name == name)
    return budget.with_service(_changed(service, number, value))


def _changed(service: Service, number: str, value: int) -> Service:
    if number != "per_process":
        return service.replace(**{number: value})
    # The pool keeps its share, overflow gives way first.
    size = min(service.pool_size.value or value, value)
    return service.replace(pool_size=size, max_overflow=value - size)


def _behind_pooler(budget: Budget, name: str, value: int) -> Budget:
    service = next(each for each in budget.services if each.name == name)
    pooler = Pooler(
        name=f"pooler of {name}",
        kind="PgBouncer",
        where=None,
        instances=known(1, "suggested"),
        overlap=Overlap(),
        server_connections=known(value, "suggested"),
    )
    moved = budget.with_service(dataclasses.replace(service, through=pooler.name))
    return dataclasses.replace(moved, poolers=(*budget.poolers, pooler))


def _within(budget: Budget) -> bool:
    """Tell whether what is known fits."""
    return not budget.crowded and budget.known <= (budget.available or 0)


def _largest(fits: Callable[[int], bool], highest: int) -> int | None:
    """Return the largest number from 1 to `highest` that fits, given that a smaller one does too."""
    if highest < 1 or not fits(1):
        return None
    low, high = 1, highest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _suggestions(budget: Budget) -> Iterator[Suggestion]:
    if budget.verdict == "cannot be shown to fit":
        yield from _limits(budget)
        return
    over = budget.known > (budget.available or 0)
    yield from _client_limits(budget)
    for crowd in budget.crowded:
        for service in budget.clients_of(crowd.pooler):
            yield from _changes(budget, service)
    if not over:
        return
    alone = [found for service in budget.direct for found in _changes(budget, service)]
    alone += list(_pooler_changes(budget))
    yield from alone
    if not alone:
        yield from _together(budget)
    yield from _larger_database(budget)
    yield from _poolers(budget)


_MORE = {
    "Lambda function": ("reserved concurrency", "reserved concurrency"),
    "ECS service": ("task", "tasks"),
    "compose service": ("replica", "replicas"),
}


def _changes(budget: Budget, service: Service) -> Iterator[Suggestion]:
    """Give the largest pool, process count and instance count that fit, each by itself."""
    if service.ceiling is None:
        return
    one, several = _MORE.get(service.platform, ("pod", "pods"))
    for number, present, words in (
        ("per_process", service.per_process, "a pool of {pool}"),
        ("processes", service.processes.value, "{value} processes"),
        ("instances", service.instances.value, "{value} {several}"),
    ):
        value = _largest_of(budget, service, number, (present or 0) - 1)
        if value is None:
            continue
        changed = _changed(service, number, value)
        pool = f"{changed.pool_size}+{changed.max_overflow}"
        shown = words.format(pool=pool, value=value, several=several if value != 1 else one)
        if service.platform == "Lambda function" and number == "instances":
            shown = f"reserved concurrency {value}"
        unless = f"{service.name}: {shown} at most" + _instead_of(service, number)
        yield Suggestion(kind="change", text=unless, changes=((service.name, number, value),))


def _instead_of(service: Service, number: str) -> str:
    if number == "per_process":
        return f" (now {service.pool_size}+{service.max_overflow})"
    return f" (now {service.numbers[number]})"


def _largest_of(budget: Budget, service: Service, number: str, highest: int) -> int | None:
    return _largest(
        lambda value: _within(budget.with_service(_changed(service, number, value))), highest
    )


def _pooler_changes(budget: Budget) -> Iterator[Suggestion]:
    for pooler in budget.poolers:
        proxy = pooler.percent is not None
        now = pooler.percent if proxy else pooler.server_connections
        if now is None or now.value is None or pooler.ceiling(budget.max_connections) is None:
            continue
        number = "percent" if proxy else "server_connections"
        value = _largest(
            lambda each, name=pooler.name, number=number: _within(
                _apply(budget, name, number, each)
            ),  # type: ignore[misc]  # mypy knows no defaults in a lambda
            now.value - 1,
        )
        if value is not None:
            what = "MaxConnectionsPercent" if proxy else "server connections (pool sizes)"
            text = f"{pooler.name}: {what} {value} at most (now {now})"
            yield Suggestion(kind="change", text=text, changes=((pooler.name, number, value),))


def _together(budget: Budget) -> Iterator[Suggestion]:
    """Where no number alone is enough: smaller pools everywhere, then fewer instances too."""
    direct = [service for service in budget.direct if service.ceiling is not None]
    for numbers in (("per_process",), ("per_process", "instances")):
        found = _largest(lambda share, n=numbers: _within(_shrunk(budget, direct, n, share)), 100)  # type: ignore[misc]  # mypy knows no defaults in a lambda
        if found is None:
            continue
        changed = _shrunk(budget, direct, numbers, found)
        changes = tuple(_differences(direct, changed, numbers))
        text = "all together: " + ", ".join(
            _shown(changed, name, number, value) for name, number, value in changes
        )
        yield Suggestion(kind="together", text=text, changes=changes)
        return


def _shrunk(
    budget: Budget, services: list[Service], numbers: tuple[str, ...], share: int
) -> Budget:
    """Take a share, in percent, of some numbers of all services; 1 at least."""
    for service in services:
        changed = service
        for number in numbers:
            now = service.per_process if number == "per_process" else service.numbers[number].value
            changed = _changed(changed, number, min(now or 1, max(1, (now or 1) * share // 100)))
        budget = budget.with_service(changed)
    return budget


def _differences(
    services: list[Service], changed: Budget, numbers: tuple[str, ...]
) -> Iterator[tuple[str, str, int]]:
    after = {service.name: service for service in changed.services}
    for service in services:
        for number in numbers:
            now, then = _number(service, number), _number(after[service.name], number)
            if then is not None and now != then:
                yield service.name, number, then


def _number(service: Service, number: str) -> int | None:
    return service.per_process if number == "per_process" else service.numbers[number].value


def _shown(budget: Budget, name: str, number: str, value: int) -> str:
    service = next(each for each in budget.services if each.name == name)
    if number == "per_process":
        return f"{name} a pool of {service.pool_size}+{service.max_overflow}"
    one, several = _MORE.get(service.platform, ("pod", "pods"))
    return f"{name} {value} {one if value == 1 else several}"


def _client_limits(budget: Budget) -> Iterator[Suggestion]:
    for crowd in budget.crowded:
        pooler = next(each for each in budget.poolers if each.name == crowd.pooler)
        value = -(-crowd.clients // max(1, pooler.instances.value or 1))
        raised = budget.with_pooler(dataclasses.replace(pooler, clients=known(value, "suggested")))
        if _within(raised):
            text = f"{crowd.pooler}: max_client_conn {value} at least (now {pooler.clients})"
            yield Suggestion(kind="change", text=text, changes=((crowd.pooler, "clients", value),))


def _larger_database(budget: Budget) -> Iterator[Suggestion]:
    """Name the max_connections that would do; a proxy's share of it grows with it."""
    reserved = budget.database.reserved.value or 0

    def fits(value: int) -> bool:
        return _within(_apply(budget, budget.database.name, "max_connections", value))

    value = next((each for each in _doubling(budget) if fits(each)), None)
    if value is None:
        return
    low = budget.database.limit or 0
    while low + 1 < value:
        middle = (low + value) // 2
        low, value = (low, middle) if fits(middle) else (middle, value)
    named = _class_for(budget, value)
    text = f"database: max_connections {value:,} at least ({value - reserved:,} and {reserved} reserved){named}"
    change = (budget.database.name, "max_connections", value)
    yield Suggestion(kind="database", text=text, changes=(change,))


def _doubling(budget: Budget) -> Iterator[int]:
    value = max(8, budget.database.limit or 0)
    while value < 262_143:  # PostgreSQL's own limit
        value *= 2
        yield min(value, 262_143)


def _class_for(budget: Budget, connections: int) -> str:
    formula = budget.database.formula
    if not formula.startswith("db."):
        return ""
    found = smallest_class(formula.partition(",")[0], connections)
    return f", which {found} has" if found else ", more than the formula gives to any class"


def _poolers(budget: Budget) -> Iterator[Suggestion]:
    """Say where a pooler pays off: where most connections wait most of the time."""
    for service in budget.direct:
        if service.ceiling is None or service.ceiling < 20:
            continue
        room = _largest(
            lambda value, name=service.name: _within(_behind_pooler(budget, name, value)),  # type: ignore[misc]  # mypy knows no defaults in a lambda
            service.ceiling // 2,
        )
        if room is None:
            continue
        text = (
            f"{service.name} behind RDS Proxy or PgBouncer with {room} server connections for its "
            f"{service.ceiling:,} clients: pays off if no more than {room} of them are in a "
            "transaction at once"
        )
        yield Suggestion(kind="pooler", text=text, changes=((service.name, "pooler", room),))


def _limits(budget: Budget) -> Iterator[Suggestion]:
    """Where one number of one service is all that is unknown, say how large it may be."""
    unclear = [service for service in budget.direct if service.ceiling is None]
    others = [gap for gap in budget.gaps if not any(gap.of == each.name for each in unclear)]
    if len(unclear) != 1 or others or budget.unread:
        return
    (service,) = unclear
    missing = [name for name, quantity in service.numbers.items() if quantity.value is None]
    number = (
        "per_process"
        if missing == ["pool_size", "max_overflow"]
        else missing[0]
        if len(missing) == 1
        else ""
    )
    if not number or service.overlap.kind == "unknown":
        return
    value = _largest_of(budget, service, number, 1_000_000)
    if value is None:
        text = f"{service.name}: there is no room for it, whatever its {number.replace('_', ' ')}"
        yield Suggestion(kind="limit", text=text, changes=())
        return
    named = {
        "instances": "reserved concurrency"
        if service.platform == "Lambda function"
        else "instances",
        "per_process": "connections of a process",
    }.get(number, number)
    text = f"{service.name} fits with {named} {value:,} at most"
    yield Suggestion(kind="limit", text=text, changes=((service.name, number, value),))
