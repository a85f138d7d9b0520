"""The budgets: every ceiling, their sum, and whether each database has enough connections for it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from poolkit.budget.model import Pooler, Quantity, Service, total, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolkit.budget.model import Database, NotCounted, SourceLocation, Unread

Verdict: TypeAlias = Literal["fits", "nothing to count", "cannot be shown to fit", "does not fit"]
EXIT_STATUS: Mapping[Verdict, int] = {
    "fits": 0,
    "nothing to count": 3,
    "cannot be shown to fit": 3,
    "does not fit": 1,
}
"""The exit status of each verdict; the worst verdict comes last."""


class Answer(NamedTuple):
    """What makes the numbers of a service, pooler or database known."""

    option: str = ""
    """An option of the command; empty: only the files can have it."""
    form: str = ""
    """The form of its value, such as POOL+OVERFLOW."""
    table: str = ""
    """The table of [tool.poolkit.budget]; empty: it has no entry."""

    def flag(self, name: str) -> str:
        """Return the option with its value; empty if there is none."""
        of = f"{shlex.quote(name)}=" if self.table == "services" else ""
        return f"{self.option} {of}{self.form}".strip()

    def entry(self, name: str) -> str:
        """Return the line of the file; empty if it has none."""
        key = name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)
        value = f'"{self.form}"' if self.table == "services" else self.form
        return f"{self.table}.{key} = {value}" if self.table else ""


class Gap(NamedTuple):
    """An unknown number, and what would make it known."""

    of: str
    number: str
    reason: str
    where: SourceLocation | None
    """Its own line, or that of the service, pooler or database that it belongs to."""
    answer: Answer = Answer()

    @property
    def sentence(self) -> str:
        """The number and why it is unknown; some reasons name the number themselves."""
        number = self.number.replace("_", " ")
        is_named = self.reason.startswith((number, self.number))
        return self.reason if is_named else f"{number}: {self.reason}"


class Overload(NamedTuple):
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

    def _ceilings(self, limit: int | None) -> list[int | None]:
        """Return the ceilings of all that opens connections; None where one is unknown.

        Args:
            limit: the server's max_connections, of which a proxy may take a share.
        """
        poolers = [pooler.ceiling(limit) for pooler in self.poolers]
        services = [service.ceiling for service in self.direct]
        return [*services, *poolers, self.migrations, self.operators]

    @cached_property
    def needed(self) -> int | None:
        """The sum of all ceilings; None if one of them is unknown."""
        return total(*self._ceilings(self.max_connections))

    @cached_property
    def known(self) -> int:
        """The sum of the known ceilings: the deployment needs at least this many."""
        return self._known_at(self.max_connections)

    def _known_at(self, limit: int | None) -> int:
        return sum(filter(None, self._ceilings(limit)))

    @property
    def is_over(self) -> bool:
        """True if the known ceilings are more than the most connections that can be available."""
        if self.database.bounds is None:
            return False
        # A proxy's share grows with max_connections.
        most = max(self.max_connections or 0, self.database.highest or 0)
        return self._known_at(most) > self.database.bounds[1]

    @property
    def is_close(self) -> bool:
        """True if it depends on the error of an estimated limit whether the known ceilings fit."""
        if self.database.bounds is None or self.is_over:
            return False
        limit = self.max_connections or 0
        return self._known_at(min(limit, self.database.lowest or limit)) > self.database.bounds[0]

    @property
    def verdict(self) -> Verdict:
        """Whether the deployment fits; an unknown number counts neither for it nor against it."""
        if self.overloads or self.is_over:
            return "does not fit"
        is_nothing_there = self.database.where is None and not (self.services or self.poolers)
        if self.unread or (self.gaps and not is_nothing_there):
            return "cannot be shown to fit"
        return "fits" if self.services else "nothing to count"

    @property
    def overloads(self) -> tuple[Overload, ...]:
        """The poolers that would get more clients than they accept."""
        found = []
        for pooler in self.poolers:
            limit = pooler.client_limit()
            clients = sum(service.ceiling or 0 for service in self.clients_of(pooler.name))
            if limit is not None and clients > limit:
                found.append(Overload(pooler, clients, limit))
        return tuple(found)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Every unknown number that matters."""
        database, found = self.database, list[Gap]()
        limit = database.max_connections
        if self.is_close:
            low, high = database.bounds or (0, 0)
            reason = f"it is an estimate: {low:,} to {high:,} connections are available"
            limit = unknown(f"{reason}, and {self.known:,} are needed", limit.where)
        of_limits = {"max_connections": limit, "reserved": database.reserved}
        how = Answer("--reserve", "N")
        if not limit.is_known:
            how = Answer("--max-connections", "N", "databases" if database.where else "")
        # The only gap without a name is the limit of a database that no file has.
        parts = [(database.name if database.where else "", database.where, of_limits, how)]
        limited = {pooler.name for pooler in self.poolers if pooler.clients is not None}
        every: list[Pooler | Service] = [*self.poolers, *self.services]
        for part in every:
            numbers = dict(part.numbers)
            if part.overlap.kind == "unknown":
                numbers["overlap"] = unknown(part.overlap.reason)
            # The number of clients matters only to a pooler that limits it, and has some.
            if isinstance(part, Pooler) and not self.clients_of(part.name):
                numbers.pop("client limit", None)
            if isinstance(part, Pooler) or not part.through or part.through in limited:
                parts.append((part.name, part.where, numbers, _answer(part)))
        for name, where, numbers, how in parts:
            unclear: dict[Quantity, str] = {}
            for number, quantity in numbers.items():
                # pool_size and max_overflow are often unknown together, which is one gap.
                if not quantity.is_known:
                    unclear.setdefault(quantity, number)
            found += [
                Gap(name, number, each.reason, each.where or where, how)
                for each, number in unclear.items()
            ]
        return tuple(found)


class Check(NamedTuple):
    """A line about a measurement, and whether it is within its ceiling."""

    text: str
    is_within: bool = True


def _answer(part: Service | Pooler) -> Answer:
    """Return what makes the numbers of a service or pooler known."""
    if isinstance(part, Pooler):
        return Answer("--pgbouncer-pools", "N") if part.server_connections else Answer()
    if all(number.is_known for number in part.numbers.values()):
        return Answer()  # Only the template has the overlap.
    form = "POOL+OVERFLOW"
    form += "" if part.processes.is_known else "xPROCESSES"
    form += "" if part.instances.is_known else "@INSTANCES"
    return Answer("--service", form, "services")


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """The budgets of a deployment, one for each of its databases."""

    each: tuple[Budget, ...]
    """At least one; without a database in the files, one whose limit is unknown."""
    not_counted: tuple[NotCounted, ...] = ()
    unread: tuple[Unread, ...] = ()
    environment: str = ""
    knee: int | None = None
    """The connections at the knee of a run on such a server, if there is one."""
    checks: tuple[Check, ...] = ()
    """What a run or the server itself had, compared with the ceilings."""

    @property
    def only(self) -> Budget:
        """The budget of the only database.

        Raises:
            ValueError: there are several.
        """
        (budget,) = self.each
        return budget

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Every unknown number of all databases, and the parts of files that were not read."""
        found = dict.fromkeys(gap for budget in self.each for gap in budget.gaps)
        return (*found, *(Gap("", "", part.reason, part.where) for part in self.unread))

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all databases."""
        return self.worst.verdict

    @property
    def worst(self) -> Budget:
        """The budget with the worst verdict."""
        return max(self.each, key=lambda budget: [*EXIT_STATUS].index(budget.verdict))

    def exit_status(self, *, allow_unknown: bool = False) -> int:
        """Return the exit status; with `allow_unknown`, 0 if the known part of something fits."""
        is_within = all(check.is_within for check in self.checks)
        verdict = self.verdict if is_within else "does not fit"
        is_accepted = allow_unknown and verdict == "cannot be shown to fit"
        return EXIT_STATUS["fits" if is_accepted else verdict]
