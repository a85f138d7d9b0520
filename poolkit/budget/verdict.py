"""The budget: every ceiling, their sum, and whether the database has enough connections for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from poolkit.budget.model import Service, total, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.model import (
        Database,
        NotCounted,
        Pooler,
        Quantity,
        SourceLocation,
        Unread,
    )

Verdict: TypeAlias = Literal["fits", "does not fit", "cannot be shown to fit"]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """An unknown number, and what would make it known."""

    of: str
    number: str
    reason: str
    where: str
    location: SourceLocation | None
    """The line of the service, pooler or database that it belongs to."""


@dataclass(frozen=True, kw_only=True)
class Overload:
    """A pooler that would get more clients than it accepts."""

    pooler: Pooler
    clients: int
    limit: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A deployment and its database. Ceilings count all services being deployed at once."""

    database: Database
    services: tuple[Service, ...]
    poolers: tuple[Pooler, ...] = ()
    migrations: int = 1
    operators: int = 3
    not_counted: tuple[NotCounted, ...] = ()
    unread: tuple[Unread, ...] = ()
    environment: str = ""

    @property
    def direct(self) -> tuple[Service, ...]:
        """The services that connect straight to the database."""
        return tuple(service for service in self.services if not service.through)

    def clients_of(self, pooler: str) -> tuple[Service, ...]:
        """Return the services that connect to a pooler."""
        return tuple(service for service in self.services if service.through == pooler)

    @property
    def max_connections(self) -> int | None:
        """The server's max_connections."""
        return self.database.max_connections.value

    @property
    def available(self) -> int | None:
        """The server's connections less its reserve."""
        return self.database.available

    @cached_property
    def ceilings(self) -> list[int | None]:
        """Of all that opens connections to the server; None where one is unknown."""
        poolers = [pooler.ceiling(self.max_connections) for pooler in self.poolers]
        own: list[int | None] = [self.migrations, self.operators]
        return [*(service.ceiling for service in self.direct), *poolers, *own]

    @property
    def needed(self) -> int | None:
        """The sum of all ceilings; None if one of them is unknown."""
        return total(*self.ceilings)

    @property
    def known(self) -> int:
        """The sum of the known ceilings: the deployment needs at least this many."""
        return sum(ceiling for ceiling in self.ceilings if ceiling is not None)

    @property
    def is_over(self) -> bool:
        """True if the known ceilings alone are more than the available connections."""
        return self.available is not None and self.known > self.available

    @property
    def verdict(self) -> Verdict:
        """Whether the deployment fits; an unknown number counts neither for it nor against it."""
        if self.overloads or self.is_over:
            return "does not fit"
        if self.needed is None or self.available is None or self.gaps or self.unread:
            return "cannot be shown to fit"
        return "fits"

    @property
    def overloads(self) -> tuple[Overload, ...]:
        """The poolers that would get more clients than they accept."""
        found = []
        for pooler in self.poolers:
            limit = pooler.client_limit()
            clients = sum(service.ceiling or 0 for service in self.clients_of(pooler.name))
            if limit is not None and clients > limit:
                found.append(Overload(pooler=pooler, clients=clients, limit=limit))
        return tuple(found)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Every unknown number that matters."""
        database = self.database
        numbers: dict[str, Quantity | None] = {
            "max_connections": database.max_connections,
            "reserved": database.reserved,
        }
        found = [*_gaps_in(database.name, database.where, numbers)]
        for pooler in self.poolers:
            numbers = {
                "instances": pooler.instances,
                "server connections": pooler.server_connections,
                "MaxConnectionsPercent": pooler.percent,
                "client limit": pooler.clients if self.clients_of(pooler.name) else None,
            }
            found += _gaps_in(pooler.name, pooler.where, numbers)
        limited = {pooler.name for pooler in self.poolers if pooler.clients is not None}
        for service in self.services:
            # The number of clients matters only to a pooler that limits it.
            if service.through and service.through not in limited:
                continue
            numbers = dict(service.numbers)
            if service.overlap.kind == "unknown":
                numbers["overlap"] = unknown(service.overlap.reason)
            found += _gaps_in(service.name, service.where, numbers)
        return tuple(found)

    def with_part(self, part: Service | Pooler) -> Budget:
        """Return this budget with a service or pooler in place of the one of its name."""
        kind = "services" if isinstance(part, Service) else "poolers"
        parts = tuple(part if each.name == part.name else each for each in getattr(self, kind))
        changes: dict[str, Any] = {kind: parts}
        return dataclasses.replace(self, **changes)


def _gaps_in(
    of: str, location: SourceLocation | None, numbers: dict[str, Quantity | None]
) -> Iterator[Gap]:
    seen: list[Quantity] = []
    for name, quantity in numbers.items():
        # pool_size and max_overflow are often unknown together, which is one gap.
        if quantity is not None and not quantity.is_known and quantity not in seen:
            seen.append(quantity)
            where = str(quantity.where or location or "")
            yield Gap(of=of, number=name, reason=quantity.reason, where=where, location=location)
