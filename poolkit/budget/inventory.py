"""From descriptions to services: which workloads are servers, poolers, clients or neither."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.budget.cloudformation.workloads import describe_templates
from poolkit.budget.compose.workloads import describe_compose
from poolkit.budget.kubernetes.workloads import describe_manifests
from poolkit.budget.model import NotCounted, Overlap, Service, known, unknown
from poolkit.budget.own_servers import is_pgbouncer, is_postgres, pgbouncer, postgres
from poolkit.budget.pools import (
    is_about_database,
    is_migration,
    pool,
    read_assignments,
    uses_database,
)
from poolkit.budget.read.parameters import read_parameters
from poolkit.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from poolkit.budget.files import Files
    from poolkit.budget.model import (
        Database,
        Options,
        Pooler,
        Quantity,
        ResourceKey,
        Unread,
        Workload,
    )
    from poolkit.budget.pools import Assignment
    from poolkit.budget.read.parameters import Environment

_HOST = re.compile(r"(?:@|^|host=|//(?=[^/@]*(?:/|$)))\[?([A-Za-z0-9][\w.-]*)\]?(?=[:/?,\s]|$)")
_NO_HOST = re.compile(r"(^|_)(DB|DATABASE|PGDATABASE|NAME|USER|USERNAME|PASSWORD|SCHEMA)$")


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Everything found; `unread` may hold more services."""

    services: tuple[Service, ...]
    poolers: tuple[Pooler, ...]
    databases: tuple[Database, ...]
    not_counted: tuple[NotCounted, ...] = ()
    unread: tuple[Unread, ...] = ()


def take_inventory(files: Files, environment: Environment, options: Options) -> Inventory:
    """Read the files and return their services, poolers and databases.

    Raises:
        BudgetError: a service, parameter or database that was named does not exist.
        TemplateError: a file is wrong; the message names the line.
    """
    given, assignments = read_parameters(options.parameters), read_assignments(options.services)
    if not (files.templates or files.compose or files.kubernetes):
        declared = tuple(_declared(*each) for each in assignments.items())
        return Inventory(services=declared, poolers=(), databases=())
    templates = describe_templates(files.templates, environment, given)
    manifests = describe_manifests(files.kubernetes, environment.name)
    compose = describe_compose(files.compose, given)
    described = (templates, manifests, compose)
    workloads = _with_unique_names(each for found in described for each in found.workloads)
    names = {each.name for each in workloads}
    for name in [*assignments, *options.ignored]:
        if name not in names:
            listed = ", ".join(sorted(names)) or "none"
            raise BudgetError(f"there is no service {name!r} in the templates; there are: {listed}")
    poolers = list(templates.poolers)
    poolers += [pgbouncer(w, options.pgbouncer_pools) for w in workloads if is_pgbouncer(w)]
    databases = list(templates.databases)
    databases += [postgres(workload) for workload in workloads if is_postgres(workload)]
    others: list[Database] = []
    if options.database:
        others = [each for each in databases if each.name != options.database]
        databases = [each for each in databases if each.name == options.database]
        if not databases:
            listed = ", ".join(each.name for each in others) or "none"
            raise BudgetError(
                f"--database {options.database}: there is no such database; there are: {listed}"
            )
    servers = _Servers(poolers, databases, others, templates.entry_points)
    clients = [each for each in workloads if not is_pgbouncer(each) and not is_postgres(each)]
    counted, not_counted = _counted(clients, assignments, options, servers)
    return Inventory(
        services=tuple(_service(each, assignments.get(each.name), servers) for each in counted),
        poolers=tuple(poolers),
        databases=tuple(databases),
        not_counted=tuple(not_counted),
        unread=tuple(each for found in described for each in found.unread),
    )


def _with_unique_names(workloads: Iterable[Workload]) -> list[Workload]:
    """Put the file's name before a name that occurs twice, or a number after it."""
    workloads = list(workloads)
    names = [each.name for each in workloads]
    found: list[Workload] = []
    taken: set[str] = set()
    for workload in workloads:
        name = workload.name
        if names.count(name) > 1 and workload.where is not None:
            stem = workload.where.file.rpartition("/")[2].partition(".")[0]
            name = f"{stem}/{name}"
        number = 2
        while name in taken:
            name, number = f"{name.partition('#')[0]}#{number}", number + 1
        taken.add(name)
        found.append(dataclasses.replace(workload, name=name))
    return found


# -- which workloads count ------------------------------------------------------------------


def _counted(
    clients: Sequence[Workload],
    assignments: Mapping[str, Assignment],
    options: Options,
    servers: _Servers,
) -> tuple[list[Workload], list[NotCounted]]:
    """Return the workloads that count, and the others with the reason."""
    counted: list[Workload] = []
    left_out: list[NotCounted] = []
    migrations = [each for each in clients if each.name not in assignments and is_migration(each)][
        : options.migrations
    ]
    for workload in clients:
        leads_to = {key for found in workload.variables.values() for key in found.leads_to}
        leads_here = bool(leads_to & servers.resources)
        # A variable that could not be read may be about a database.
        is_open = bool(workload.unread_variables or workload.hidden_variables)
        may_use_one = leads_here or is_open or uses_database(workload)
        reason = ""
        if workload.name in options.ignored:
            reason = "left out by --ignore"
        elif leads_to & servers.other_resources and not leads_here:
            reason = "it connects to another database"
        elif workload.name in assignments:
            reason = ""
        elif workload.unit == "init container":
            reason = "it ends before the other containers of its pod start"
        elif not may_use_one and workload.unit == "one-off task":
            reason = "no service runs it; migrations are counted apart"
        elif not may_use_one:
            reason = "no variable is about a database; if it uses one, count it with --service"
        elif workload in migrations:
            reason = "it is the migration, which is counted as such"
        if reason:
            left_out.append(
                NotCounted(
                    name=workload.name,
                    platform=workload.platform,
                    where=str(workload.where or ""),
                    reason=reason,
                )
            )
        else:
            counted.append(workload)
    return counted, left_out


# -- services -------------------------------------------------------------------------------


def _service(workload: Workload, assignment: Assignment | None, servers: _Servers) -> Service:
    numbers = pool(workload, assignment)
    if workload.unread_variables and assignment is None:
        nothing = unknown(f"its variables: {workload.unread_variables}", workload.where)
        numbers = dataclasses.replace(numbers, pool_size=nothing, max_overflow=nothing)
    instances, overlap = workload.instances, workload.overlap
    if assignment is not None and assignment.instances is not None:
        instances = known(assignment.instances, assignment.text)
    if workload.unit == "execution environment" and not numbers.keeps_connections:
        # Reserved concurrency holds for all versions together, and no connection outlives an invoke.
        overlap = Overlap()
    through = servers.pooler_of(workload)
    return Service(
        name=workload.name,
        platform=workload.platform,
        unit=workload.unit,
        where=workload.where,
        instances=instances,
        overlap=overlap,
        processes=numbers.processes,
        pool_size=numbers.pool_size,
        max_overflow=numbers.max_overflow,
        target=numbers.target,
        through=through.name if through else "",
    )


def _declared(name: str, assignment: Assignment) -> Service:
    """Return a service that stands in no file, only on the command line."""

    def quantity(value: int | None) -> Quantity:
        if value is None:
            form = f"--service {name}=POOL+OVERFLOWxPROCESSES@INSTANCES"
            return unknown(f"no file has it; declare it: {form}")
        return known(value, assignment.text)

    return Service(
        name=name,
        platform="declared",
        unit="instance",
        where=None,
        instances=quantity(assignment.instances),
        overlap=Overlap(),
        processes=quantity(assignment.processes),
        pool_size=quantity(assignment.pool_size),
        max_overflow=quantity(assignment.max_overflow),
    )


class _Servers:
    """The databases and poolers that a client's variables can lead to."""

    def __init__(
        self,
        poolers: Sequence[Pooler],
        databases: Sequence[Database],
        others: Sequence[Database],
        entry_points: Collection[ResourceKey],
    ) -> None:
        self._poolers = poolers
        self._by_key: dict[ResourceKey, Pooler] = {}
        for key in entry_points:
            # A load balancer in front of the only PgBouncer of its stack leads to it.
            inside = [
                each
                for each in poolers
                if each.kind == "PgBouncer" and each.resource and each.resource.stack == key.stack
            ]
            if len(inside) == 1:
                self._by_key[key] = inside[0]
        self._by_key |= {each.resource: each for each in poolers if each.resource}
        self._database_hosts = {host for each in databases for host in each.hosts}
        self.resources = {each.resource for each in poolers if each.resource}
        self.resources |= {key for each in databases for key in each.resources}
        self.other_resources = {key for each in others for key in each.resources}

    def pooler_of(self, workload: Workload) -> Pooler | None:
        """Return the pooler that a client's variables lead to, if they lead nowhere else."""
        pooler = None
        for name, found in workload.variables.items():
            hosts = set[str]()
            text = found.partly if found.text is None else found.text
            if text and is_about_database(name, found):
                hosts = {match[1] for match in _HOST.finditer(text)}
                # A host is also known by its first part, unless it is an address.
                names = [host for host in hosts if not host.replace(".", "").isdigit()]
                hosts |= {host.partition(".")[0] for host in names}
            # A client with two ways may use the direct one only, which is the larger number.
            # POSTGRES_DB may have the same text as the host.
            if hosts & self._database_hosts and not _NO_HOST.search(name.upper()):
                return None
            by_key = (self._by_key[key] for key in found.leads_to if key in self._by_key)
            by_host = (each for each in self._poolers if hosts & set(each.hosts))
            pooler = pooler or next(by_key, None) or next(by_host, None)
        return pooler
