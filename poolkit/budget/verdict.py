"""The budget: every ceiling, their sum, and whether it is within what the database takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from poolkit.budget.quantity import total

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.cloudformation.templates import Unread
    from poolkit.budget.inventory import NotCounted
    from poolkit.budget.model import Database, Pooler, Service

Verdict: TypeAlias = Literal["fits", "does not fit", "cannot be shown to fit"]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A number that is not known, and what would make it known."""

    of: str
    number: str
    reason: str
    where: str


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """A pooler that has more clients than it takes."""

    pooler: str
    clients: int
    limit: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A fleet and its database. A ceiling is what is open while everything is being deployed."""

    database: Database
    services: tuple[Service, ...]
    poolers: tuple[Pooler, ...] = ()
    migrations: int = 1
    operators: int = 3
    not_counted: tuple[NotCounted, ...] = ()
    unread: tuple[Unread, ...] = ()
    environment: str = ""
    notes: tuple[str, ...] = ()

    @property
    def direct(self) -> tuple[Service, ...]:
        """The services that connect straight to the database."""
        return tuple(service for service in self.services if not service.through)

    def clients_of(self, pooler: str) -> tuple[Service, ...]:
        """Return the services that connect to a pooler."""
        return tuple(service for service in self.services if service.through == pooler)

    @property
    def max_connections(self) -> int | None:
        """What the server takes in all."""
        return self.database.max_connections.value

    @property
    def available(self) -> int | None:
        """What the server takes, less its reserve."""
        return self.database.available

    def _ceilings(self) -> list[int | None]:
        poolers = [pooler.ceiling(self.max_connections) for pooler in self.poolers]
        own: list[int | None] = [self.migrations, self.operators]
        return [*(service.ceiling for service in self.direct), *poolers, *own]

    @property
    def needed(self) -> int | None:
        """The sum of all ceilings; None as long as one of them is unknown."""
        return total(*self._ceilings())

    @property
    def known(self) -> int:
        """The sum of the ceilings that are known: it takes this many at least."""
        return sum(ceiling for ceiling in self._ceilings() if ceiling is not None)

    @property
    def verdict(self) -> Verdict:
        """Whether the fleet fits; an unknown never speaks for it, and never against it."""
        if self.crowded or (self.available is not None and self.known > self.available):
            return "does not fit"
        if self.needed is None or self.available is None or self.gaps or self.unread:
            return "cannot be shown to fit"
        return "fits"

    @property
    def crowded(self) -> tuple[Crowd, ...]:
        """The poolers that have more clients than they take."""
        found = []
        for pooler in self.poolers:
            limit = pooler.client_limit()
            ceilings = [service.ceiling or 0 for service in self.clients_of(pooler.name)]
            if limit is not None and sum(ceilings) > limit:
                found.append(Crowd(pooler=pooler.name, clients=sum(ceilings), limit=limit))
        return tuple(found)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Every number that matters and is not known."""
        return tuple(self._gaps())

    def _gaps(self) -> Iterator[Gap]:
        for name, quantity in (
            ("max_connections", self.database.max_connections),
            ("reserved", self.database.reserved),
        ):
            if quantity.value is None:
                where = str(quantity.where or self.database.where or "")
                yield Gap(of=self.database.name, number=name, reason=quantity.reason, where=where)
        for pooler in self.poolers:
            yield from self._gaps_of_pooler(pooler)
        for service in self.services:
            if not service.through or self._is_limited(service.through):
                yield from _gaps_of_service(service)

    def _is_limited(self, pooler: str) -> bool:
        """Tell whether it matters how many clients a pooler has."""
        return any(each.name == pooler and each.clients is not None for each in self.poolers)

    def _gaps_of_pooler(self, pooler: Pooler) -> Iterator[Gap]:
        numbers = {
            "instances": pooler.instances,
            "server connections": pooler.server_connections,
            "MaxConnectionsPercent": pooler.percent,
            "client limit": pooler.clients if self.clients_of(pooler.name) else None,
        }
        for name, quantity in numbers.items():
            if quantity is not None and quantity.value is None:
                where = str(quantity.where or pooler.where or "")
                yield Gap(of=pooler.name, number=name, reason=quantity.reason, where=where)

    def with_service(self, service: Service) -> Budget:
        """Return this budget with a service in place of the one of its name."""
        services = tuple(service if each.name == service.name else each for each in self.services)
        return dataclasses.replace(self, services=services)

    def with_pooler(self, pooler: Pooler) -> Budget:
        """Return this budget with a pooler in place of the one of its name."""
        poolers = tuple(pooler if each.name == pooler.name else each for each in self.poolers)
        return dataclasses.replace(self, poolers=poolers)


def _gaps_of_service(service: Service) -> Iterator[Gap]:
    seen: set[str] = set()
    for name, quantity in service.numbers.items():
        # One reason is one gap: pool_size and max_overflow are unknown together.
        if quantity.value is None and quantity.reason not in seen:
            seen.add(quantity.reason)
            where = str(quantity.where or service.where or "")
            yield Gap(of=service.name, number=name, reason=quantity.reason, where=where)
    if service.overlap.kind == "unknown":
        where = str(service.where or "")
        yield Gap(of=service.name, number="overlap", reason=service.overlap.reason, where=where)
