"""What a budget is made of: services, poolers, the database."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from poolkit.budget.quantity import Quantity, product, total

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolkit.budget.read.documents import SourceLocation
    from poolkit.budget.read.values import Reference

OverlapKind: TypeAlias = Literal["none", "percent", "surge_percent", "count", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How many more instances there are while a deployment replaces them.

    percent: of the instances, rounded down (ECS: maximumPercent less 100; Lambda: 100);
    surge_percent: rounded up (Kubernetes: maxSurge); count: so many.
    """

    kind: OverlapKind = "none"
    amount: int = 0
    origin: str = ""
    reason: str = ""

    def more(self, instances: int | None) -> int | None:
        """Return the instances that come on top; None where that is not known."""
        if self.kind == "none" or (self.kind != "unknown" and self.amount == 0):
            return 0
        if self.kind == "unknown" or instances is None:
            return None
        if self.kind == "count":
            return self.amount
        if self.kind == "percent":
            return instances * self.amount // 100
        return -(-instances * self.amount // 100)


@dataclass(frozen=True, kw_only=True)
class Service:
    """One kind of process that opens connections, and how many of it there can be."""

    name: str
    platform: str
    where: SourceLocation | None
    instances: Quantity
    overlap: Overlap
    processes: Quantity
    pool_size: Quantity
    max_overflow: Quantity
    target: str = ""
    through: str = ""
    """The name of the pooler that it connects to; empty: straight to the database."""
    notes: tuple[str, ...] = ()

    @property
    def per_process(self) -> int | None:
        """The most connections of one process."""
        return total(self.pool_size.value, self.max_overflow.value)

    @property
    def steady(self) -> int | None:
        """The ceiling while nothing is being deployed."""
        return product(self.instances.value, self.processes.value, self.per_process)

    @property
    def ceiling(self) -> int | None:
        """The ceiling while old and new instances run together."""
        more = self.overlap.more(self.instances.value)
        instances = total(self.instances.value, more)
        return product(instances, self.processes.value, self.per_process)

    @property
    def numbers(self) -> Mapping[str, Quantity]:
        """The numbers of the formula, by name."""
        return {
            "instances": self.instances,
            "processes": self.processes,
            "pool_size": self.pool_size,
            "max_overflow": self.max_overflow,
        }

    @property
    def formula(self) -> str:
        """The ceiling's formula with the numbers in it."""
        more = self.overlap.more(self.instances.value)
        together = str(self.instances)
        if more != 0:
            together = f"({self.instances} + {'?' if more is None else more})"
        parts = [together]
        if self.processes.value != 1:
            parts.append(str(self.processes))
        pool = f"({self.pool_size} + {self.max_overflow})"
        parts.append(str(self.pool_size) if self.max_overflow.value == 0 else pool)
        return " x ".join(parts)

    def replace(self, **values: int) -> Service:
        """Return this service with other numbers in its formula."""
        changes = {
            name: dataclasses.replace(getattr(self, name), value=value, reason="")
            for name, value in values.items()
        }
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Pooler:
    """RDS Proxy or PgBouncer: what it opens to the server counts, not what its clients open."""

    name: str
    kind: Literal["RDS Proxy", "PgBouncer"]
    where: SourceLocation | None
    instances: Quantity
    overlap: Overlap
    server_connections: Quantity | None = None
    """What one instance opens at most; None: `percent` says it."""
    percent: Quantity | None = None
    """RDS Proxy: MaxConnectionsPercent."""
    clients: Quantity | None = None
    """How many clients one instance takes; None: no limit is documented."""
    resource: tuple[str, str] | None = None
    hosts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def ceiling(self, max_connections: int | None) -> int | None:
        """Return the most connections to the server, during a deployment of it."""
        if self.percent is not None:
            share = product(max_connections, self.percent.value)
            # AWS does not say how it rounds; up is on the safe side.
            return None if share is None else -(-share // 100)
        more = self.overlap.more(self.instances.value)
        each = self.server_connections.value if self.server_connections else None
        return product(total(self.instances.value, more), each)

    def steady(self, max_connections: int | None) -> int | None:
        """Return the most connections to the server while nothing is being deployed."""
        if self.percent is not None:
            return self.ceiling(max_connections)
        each = self.server_connections.value if self.server_connections else None
        return product(self.instances.value, each)

    def client_limit(self) -> int | None:
        """Return how many clients all instances take together; None: unknown or no limit."""
        return product(self.instances.value, self.clients.value) if self.clients else None

    def formula(self, max_connections: int | None) -> str:
        """Return the ceiling's formula with the numbers in it."""
        if self.percent is not None:
            shown = "?" if max_connections is None else f"{max_connections:,}"
            return f"{self.percent} % of {shown}"
        more = self.overlap.more(self.instances.value)
        together = str(self.instances) if more == 0 else f"({self.instances} + {more or '?'})"
        return f"{together} x {self.server_connections}"


@dataclass(frozen=True, kw_only=True)
class Database:
    """The server, and what it takes."""

    name: str
    kind: str
    where: SourceLocation | None
    max_connections: Quantity
    formula: str
    reserved: Quantity
    nominal: int | None = None
    """What the formula gives for the whole memory of the class, which is too much."""
    carried: int | None = None
    """What the class's memory carries, which max_connections may be set above."""
    resources: tuple[tuple[str, str], ...] = ()
    hosts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_set_too_high(self) -> bool:
        """True if max_connections is more than the memory carries."""
        most = self.max_connections.value
        return most is not None and self.carried is not None and most > self.carried

    @property
    def limit(self) -> int | None:
        """What is reckoned with: max_connections, or what the memory carries if that is less."""
        return self.carried if self.is_set_too_high else self.max_connections.value

    @property
    def available(self) -> int | None:
        """What roles without a share in the reserve can have."""
        if self.limit is None or self.reserved.value is None:
            return None
        return max(0, self.limit - self.reserved.value)


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One environment variable of a workload: its text, or what is known instead."""

    text: str | None
    origin: str
    references: tuple[Reference, ...] = ()
    reason: str = ""
    """Why the text is not known."""
    partly: str = ""
    """What is known of a text that is not known as a whole; a host, say, without the password."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A container or function as the platform starts it, before anyone knows what it does."""

    name: str
    platform: str
    where: SourceLocation | None
    instances: Quantity
    overlap: Overlap
    variables: Mapping[str, Variable]
    image: str = ""
    command: tuple[str, ...] | None = None
    """None: the image decides."""
    command_origin: str = ""
    unread_variables: str = ""
    """Where more variables come from that could not be read."""
    hidden_variables: str = ""
    """Which secret holds variables whose names are not known, a database's maybe among them."""
    mounted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Configuration files that it gets, by name, with their text."""
    resource: tuple[str, str] | None = None
    hosts: tuple[str, ...] = ()

    def text(self, name: str) -> str:
        """Return a variable's text, empty if it is not set or not known."""
        found = self.variables.get(name)
        return (found.text or "").strip() if found else ""
