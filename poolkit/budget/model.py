"""The model: the readers' product, and the only input of all later steps.

A reader turns a container, function or server of a file into a `Workload`. `inventory` decides
which workloads are services, poolers or databases. Every number is a `Quantity`: it has its source,
and it may be unknown.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

from poolkit.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

OverlapKind: TypeAlias = Literal["none", "percent", "surge_percent", "count", "unknown"]
Unit: TypeAlias = Literal[
    "execution environment", "task", "pod", "replica", "instance", "init container", "one-off task"
]
"""What one instance of a workload is."""


@dataclass(frozen=True)
class SourceLocation:
    """A file and a line in it; lines count from 1."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class ResourceKey(NamedTuple):
    """A resource of a CloudFormation stack, unique among all stacks."""

    stack: str
    logical_id: str


# -- numbers --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A whole number or, if `value` is None, the reason why it is unknown."""

    value: int | None
    origin: str
    """Where it was read, or what it was derived from."""
    reason: str = ""
    """Why it is unknown, and what would make it known."""
    where: SourceLocation | None = None

    @property
    def is_known(self) -> bool:
        """True if there is a number."""
        return self.value is not None

    def __str__(self) -> str:
        return "?" if self.value is None else f"{self.value:,}"


def known(value: int, origin: str, where: SourceLocation | None = None) -> Quantity:
    """Return a number with its origin."""
    return Quantity(value=value, origin=origin, where=where)


def unknown(reason: str, where: SourceLocation | None = None) -> Quantity:
    """Return an unknown number with the reason."""
    return Quantity(value=None, origin=str(where or ""), reason=reason, where=where)


def product(*factors: int | None) -> int | None:
    """Multiply; one unknown factor makes the product unknown, even beside a 0."""
    present = [factor for factor in factors if factor is not None]
    return math.prod(present) if len(present) == len(factors) else None


def total(*summands: int | None) -> int | None:
    """Add; one unknown summand makes the sum unknown."""
    present = [summand for summand in summands if summand is not None]
    return sum(present) if len(present) == len(summands) else None


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The additional instances while a deployment replaces the old ones.

    `amount` is a number of instances for the kind `count`. For `percent` it is a share of the
    instances, rounded down (ECS: maximumPercent less 100; Lambda: 100); for `surge_percent` a
    share that is rounded up (Kubernetes: maxSurge).
    """

    kind: OverlapKind = "none"
    amount: int = 0
    origin: str = ""
    reason: str = ""

    def more(self, instances: int | None) -> int | None:
        """Return the number of additional instances; None if it is unknown."""
        if self.kind == "count" or (self.kind != "unknown" and self.amount == 0):
            return self.amount
        if self.kind == "unknown" or instances is None:
            return None
        shares = instances * self.amount
        return -(-shares // 100) if self.kind == "surge_percent" else shares // 100

    def together(self, instances: Quantity) -> str:
        """Return the instances and the additional ones, as a part of a formula."""
        more = self.more(instances.value)
        return str(instances) if more == 0 else f"({instances} + {'?' if more is None else more})"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What runs as a number of instances: a workload, a service or a pooler."""

    name: str
    where: SourceLocation | None
    instances: Quantity
    overlap: Overlap

    def on_all(self, connections: int | None, *, is_deployed: bool = True) -> int | None:
        """Return the connections of all instances with this many each; None if it is unknown."""
        more = self.overlap.more(self.instances.value) if is_deployed else 0
        return product(total(self.instances.value, more), connections)


# -- what the readers produce ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One environment variable of a workload: its text, or what is known instead."""

    text: str | None
    origin: str
    leads_to: tuple[ResourceKey, ...] = ()
    """The resources that its value refers to."""
    reason: str = ""
    """Why the text is unknown."""
    partly: str = ""
    """The known part of an unknown text: a host, for example, without the password."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A sign, beside its variables, that a workload may connect to a database.

    Example: `depends_on: [db]`, a security group that the database's lets in, a mounted secret.
    """

    reason: str
    """For the reader of the report: "depends_on db", "security group App may reach its port"."""
    where: SourceLocation | None = None
    leads_to: tuple[ResourceKey, ...] = ()
    """The resources that it names; with `hosts`, the databases that it is about. Both empty: any."""
    hosts: tuple[str, ...] = ()
    is_network: bool = False
    """True if it only shows that the network lets the workload through.

    Such a sign counts for a program of an unknown kind. It does not count for software that opens no
    connection to a database server, such as Valkey or nginx.
    """


@dataclass(frozen=True, kw_only=True)
class Workload(Part):
    """A container or function as the platform starts it, whatever its program does."""

    platform: str
    """For the reader of the report: "ECS service", "Deployment"."""
    unit: Unit
    variables: Mapping[str, Variable]
    image: str = ""
    command: tuple[str, ...] | None = None
    """None: the image decides."""
    command_origin: str = ""
    unread_variables: str = ""
    """The source of further variables that could not be read."""
    hidden_variables: str = ""
    """The secret that holds variables with unknown names, perhaps a database's."""
    mounted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The texts of its mounted configuration files, by file name."""
    resource: ResourceKey | None = None
    hosts: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    processes: Quantity | None = None
    """The processes of one instance, if the platform decides them; None: the command line does."""
    requests: Quantity | None = None
    """The most requests that one instance handles at once, if the platform limits them."""
    base_image: str = ""
    """The image that its local Dockerfile is built from, if there is one."""

    def text(self, name: str) -> str:
        """Return a variable's text, empty if it is not set or unknown."""
        found = self.variables.get(name)
        return (found.text or "").strip() if found else ""

    def number(self, *names: str) -> Quantity | None:
        """Return the number in the first of these variables that is set; None: none is set."""
        name = next((each for each in names if each in self.variables), None)
        if name is None:
            return None
        found, text = self.variables[name], self.text(name)
        if text.isdecimal():
            return known(int(text), f"{found.origin} ({name})", self.where)
        reason = found.reason or f"{text!r} is not a number"
        return unknown(f"{name}: {reason}", self.where)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The limits of a database server."""

    max_connections: Quantity
    reserved: Quantity
    engine: str = "postgres"
    """`postgres`, `mysql` (MariaDB too), `mssql` or `oracle`; empty: unknown."""
    formula: str = ""
    """A text about the way max_connections was derived; empty if its origin is enough."""
    instance_class: str = ""
    """The class whose memory max_connections was derived from, such as db.m7g.large."""
    lowest: int | None = None
    """If max_connections is an estimate, the least it can be; None: it is exact."""
    highest: int | None = None
    """If max_connections is an estimate, the most it can be; None: it is exact."""
    vcpus: float | None = None
    """The processors of its instance class; None: unknown."""
    carried: int | None = None
    """What the class's memory can carry, if max_connections was set independently of it."""

    def exact(self, max_connections: Quantity, **changes: Any) -> Self:
        """Return it with a number of another source, which is exact if no change says otherwise."""
        derived = {"formula": "", "lowest": None, "highest": None, "carried": None, **changes}
        return dataclasses.replace(self, max_connections=max_connections, **derived)


@dataclass(frozen=True, kw_only=True)
class Database(Limit):
    """A database server and its limits."""

    name: str
    kind: str
    where: SourceLocation | None
    resources: tuple[ResourceKey, ...] = ()
    hosts: tuple[str, ...] = ()

    @property
    def is_set_too_high(self) -> bool:
        """True if max_connections is more than the memory can carry."""
        most = self.max_connections.value
        return most is not None and self.carried is not None and most > self.carried

    @property
    def limit(self) -> int | None:
        """The number to calculate with: max_connections, or what the memory can carry if less."""
        return self.carried if self.is_set_too_high else self.max_connections.value

    @property
    def available(self) -> int | None:
        """The limit less the connections that the server reserves."""
        if self.limit is None or self.reserved.value is None:
            return None
        return max(0, self.limit - self.reserved.value)

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The least and most that can be available; they differ if the limit is an estimate."""
        limit, reserved = self.limit, self.reserved.value
        if limit is None or reserved is None:
            return None
        low = limit if self.lowest is None else min(self.lowest, limit)
        high = limit if self.highest is None else max(self.highest, limit)
        return max(0, low - reserved), max(0, high - reserved)


@dataclass(frozen=True, kw_only=True)
class Pooler(Part):
    """RDS Proxy, PgBouncer or another pooler: its server connections count, and its clients do not."""

    kind: str
    """RDS Proxy, PgBouncer, or the name of another pooler."""
    server_connections: Quantity | None = None
    """The most connections of one instance to the server; None: `percent` is the limit."""
    percent: Quantity | None = None
    """RDS Proxy: MaxConnectionsPercent."""
    clients: Quantity | None = None
    """The most clients of one instance; None: no limit is documented."""
    resource: ResourceKey | None = None
    hosts: tuple[str, ...] = ()
    leads_to: tuple[ResourceKey, ...] = ()
    """The databases behind it; with `server_hosts`. Both empty: unknown."""
    server_hosts: tuple[str, ...] = ()

    @property
    def numbers(self) -> Mapping[str, Quantity]:
        """The numbers of its ceiling and of its limit for clients, by name."""
        found = {
            "instances": None if self.percent else self.instances,
            "server connections": self.server_connections,
            "MaxConnectionsPercent": self.percent,
            "client limit": self.clients,
        }
        return {name: number for name, number in found.items() if number is not None}

    def ceiling(self, max_connections: int | None, *, is_deployed: bool = True) -> int | None:
        """Return the most connections to the server, while the pooler is being deployed or not."""
        if self.percent is not None:
            share = product(max_connections, self.percent.value)
            # AWS does not document how it rounds; up is on the safe side.
            return None if share is None else -(-share // 100)
        each = self.server_connections.value if self.server_connections else None
        return self.on_all(each, is_deployed=is_deployed)

    def client_limit(self) -> int | None:
        """Return the most clients of all instances; None: unknown or no limit."""
        return product(self.instances.value, self.clients.value) if self.clients else None

    def formula(self, max_connections: int | None) -> str:
        """Return the ceiling's formula with its numbers."""
        if self.percent is not None:
            shown = "?" if max_connections is None else f"{max_connections:,}"
            return f"{self.percent} % of {shown}"
        return f"{self.overlap.together(self.instances)} x {self.server_connections}"


class Unread(NamedTuple):
    """A part of the files that may hold services, and that could not be read."""

    where: SourceLocation
    reason: str


@dataclass(frozen=True, kw_only=True)
class Description:
    """What files describe, as a reader returns it."""

    workloads: tuple[Workload, ...] = ()
    databases: tuple[Database, ...] = ()
    poolers: tuple[Pooler, ...] = ()
    entry_points: frozenset[ResourceKey] = frozenset()
    """Load balancers and discovery services, which lead to a workload of their stack."""
    aliases: Mapping[ResourceKey, frozenset[ResourceKey]] = dataclasses.field(default_factory=dict)
    """The databases and poolers that another resource leads to: a secret, a proxy's endpoint."""
    unread: tuple[Unread, ...] = ()


# -- what the budget counts -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NotCounted:
    """A workload or file that is left out, with the reason."""

    name: str
    platform: str
    where: str
    reason: str

    @classmethod
    def of(cls, part: Workload | Service, reason: str) -> NotCounted:
        """Return a workload or service with the reason why it is left out."""
        where = str(part.where or "")
        return cls(name=part.name, platform=part.platform, where=where, reason=reason)


class Login(NamedTuple):
    """What a service's variables show of its connections; empty where they show nothing."""

    user: str = ""
    database: str = ""
    application: str = ""
    """The application_name."""


@dataclass(frozen=True, kw_only=True)
class Service(Part):
    """A workload that opens connections, with the numbers of its ceiling."""

    platform: str
    unit: Unit
    processes: Quantity
    pool_size: Quantity
    max_overflow: Quantity
    target: str = ""
    why: str = ""
    """The sign that it connects to the database; empty: it was declared."""
    through: str = ""
    """The name of the pooler that it connects to; empty: straight to the database."""
    login: Login = field(default_factory=Login)

    @property
    def per_process(self) -> int | None:
        """The most connections of one process."""
        return total(self.pool_size.value, self.max_overflow.value)

    @property
    def steady(self) -> int | None:
        """The ceiling while nothing is being deployed."""
        return self.on_all(product(self.processes.value, self.per_process), is_deployed=False)

    @property
    def ceiling(self) -> int | None:
        """The ceiling while old and new instances run together."""
        return self.on_all(product(self.processes.value, self.per_process))

    @property
    def numbers(self) -> Mapping[str, Quantity]:
        """The numbers of the formula, by name."""
        names = ("instances", "processes", "pool_size", "max_overflow")
        return {name: getattr(self, name) for name in names}

    @property
    def formula(self) -> str:
        """The ceiling's formula with its numbers."""
        processes = "" if self.processes.value == 1 else f" x {self.processes}"
        pool = f"({self.pool_size} + {self.max_overflow})"
        pool = str(self.pool_size) if self.max_overflow.value == 0 else pool
        return f"{self.overlap.together(self.instances)}{processes} x {pool}"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The project's `[tool.poolkit.budget]`: what files do not show, kept for every run.

    Unlike an option, an answer may be about something that these files do not have.
    """

    origin: str = ""
    services: Mapping[str, str] = field(default_factory=dict)
    """POOL+OVERFLOW[xPROCESSES][@INSTANCES] by service."""
    ignore: tuple[str, ...] = ()
    databases: Mapping[str, int] = field(default_factory=dict)
    """max_connections by database."""
    classes: Mapping[str, int] = field(default_factory=dict)
    """max_connections by instance class."""
    software: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What an image runs, by its name."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command line; docs/budget.md explains each."""

    paths: tuple[Path, ...] = ()
    environment: str = ""
    parameters: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Parameters by template, which win over the environment's file; from `poolkit deploy`."""
    services: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    database: str = ""
    database_url: str = ""
    max_connections: int | None = None
    instance_class: str = ""
    migrations: int = 1
    operators: int = 3
    reserve: int | None = None
    pgbouncer_pools: int | None = None
    allow_unknown: bool = False
    report_class: bool = False
    answers: Answers = field(default_factory=Answers)

    def __post_init__(self) -> None:
        """Refuse impossible numbers.

        Raises:
            BudgetError: a number is negative, or two options contradict each other.
        """
        least = {"migrations": 0, "operators": 0, "reserve": 0}
        for name, lowest in {**least, "max_connections": 1, "pgbouncer_pools": 1}.items():
            if (value := getattr(self, name)) is not None and value < lowest:
                raise BudgetError(f"--{name.replace('_', '-')} must not be {value}")
        given = ("database_url", "max_connections", "instance_class")
        several = [f"--{name.replace('_', '-')}" for name in given if getattr(self, name)]
        if len(several) > 1 and not self.report_class:
            raise BudgetError(f"{' and '.join(several)}: give one of them")
