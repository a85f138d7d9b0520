"""What the files describe: services, poolers and the database, each with its numbers."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from poolkit.budget.cloudformation.ecs import ecs_workloads
from poolkit.budget.cloudformation.functions import FUNCTION, function_workloads
from poolkit.budget.cloudformation.other_compute import ONE_OFF_TASK, other_workloads
from poolkit.budget.cloudformation.rds import rds_databases, rds_proxies
from poolkit.budget.cloudformation.templates import Stacks, Unread, make_stacks
from poolkit.budget.compose.files import put_together
from poolkit.budget.compose.workloads import compose_workloads
from poolkit.budget.kubernetes.kustomize import rendered, unread_parts
from poolkit.budget.kubernetes.workloads import INIT_CONTAINER, kubernetes_workloads
from poolkit.budget.model import Overlap, Service
from poolkit.budget.own_servers import is_pgbouncer, is_postgres, pgbouncer, postgres
from poolkit.budget.pools import is_about_database, is_migration, pool, uses_database
from poolkit.budget.quantity import known, unknown
from poolkit.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from poolkit.budget.cloudformation.stacks import ParameterValue
    from poolkit.budget.files import Files
    from poolkit.budget.model import Database, Pooler, Variable, Workload
    from poolkit.budget.pools import Assignment, Pool
    from poolkit.budget.read.parameters import Environment

_HOST = re.compile(r"(?:@|^|host=|//(?=[^/@]*(?:/|$)))\[?([A-Za-z0-9][\w.-]*)\]?(?=[:/?,\s]|$)")
_NO_HOST = re.compile(r"(^|_)(DB|DATABASE|PGDATABASE|NAME|USER|USERNAME|PASSWORD|SCHEMA)$")
_ENTRY_POINTS = ("AWS::ElasticLoadBalancingV2::LoadBalancer", "AWS::ServiceDiscovery::Service")


@dataclass(frozen=True, kw_only=True)
class NotCounted:
    """A workload that is left out, and why."""

    name: str
    platform: str
    where: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Everything found; `unread` may hold more services."""

    services: tuple[Service, ...]
    poolers: tuple[Pooler, ...]
    databases: tuple[Database, ...]
    not_counted: tuple[NotCounted, ...] = ()
    unread: tuple[Unread, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Said:
    """What was said on the command line about what the files cannot tell."""

    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    assignments: Mapping[str, Assignment] = field(default_factory=dict)
    ignored: Collection[str] = ()
    database: str = ""
    pgbouncer_pools: int | None = None
    migrations: int = 0
    """How many connections of migrations are counted apart from the services."""


def take_inventory(files: Files, environment: Environment, said: Said) -> Inventory:
    """Return what the files describe.

    Raises:
        BudgetError: something that was named is not there.
        TemplateError: a file is wrong; the message names the line.
    """
    stacks = make_stacks(files.templates, environment, said.parameters)
    workloads = _unique([*_of_stacks(stacks), *_of_files(files, environment, said)])
    _refuse_unknown_names(workloads, said)
    poolers = [each for stack in stacks.by_name.values() for each in rds_proxies(stack)]
    poolers += [pgbouncer(each, said.pgbouncer_pools) for each in workloads if _is_pooler(each)]
    databases = [each for stack in stacks.by_name.values() for each in rds_databases(stack)]
    databases += [postgres(each) for each in workloads if _is_server(each)]
    clients = [each for each in workloads if not _is_pooler(each) and not _is_server(each)]
    databases, others = _chosen(databases, said.database)
    counted, left_out = _sorted_out(clients, said, _resources(poolers, databases), others)
    return Inventory(
        services=tuple(_service(each, said, stacks, poolers, databases) for each in counted),
        poolers=tuple(poolers),
        databases=tuple(databases),
        not_counted=tuple(left_out),
        unread=(*stacks.unread, *unread_parts(files.kubernetes, environment.name)),
    )


def _of_stacks(stacks: Stacks) -> Iterable[Workload]:
    for stack in stacks.by_name.values():
        yield from ecs_workloads(stack)
        yield from function_workloads(stack)
        yield from other_workloads(stack)
        for name, found in stack.section("Resources").items():
            if name.startswith("Fn::ForEach"):
                where = stack.where("Resources", name)
                stacks.unread.append(Unread(where, f"{name} makes resources that are not expanded"))
            elif isinstance(found, dict) and found.get("Type") == "AWS::Serverless::Application":
                where = stack.where("Resources", name)
                stacks.unread.append(Unread(where, f"{name} is a published application, not read"))


def _of_files(files: Files, environment: Environment, said: Said) -> Iterable[Workload]:
    yield from kubernetes_workloads(rendered(files.kubernetes, environment.name))
    for document in put_together(files.compose):
        yield from compose_workloads(document, said.parameters)


def _is_pooler(workload: Workload) -> bool:
    return is_pgbouncer(workload) and workload.platform != INIT_CONTAINER


def _is_server(workload: Workload) -> bool:
    if is_pgbouncer(workload) or workload.platform == INIT_CONTAINER:
        return False
    return is_postgres(workload)


def _unique(workloads: Sequence[Workload]) -> list[Workload]:
    """Two of one name get the file's name before theirs, or a number after it."""
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


def _refuse_unknown_names(workloads: Sequence[Workload], said: Said) -> None:
    names = {each.name for each in workloads}
    for name in [*said.assignments, *said.ignored]:
        if name not in names:
            listed = ", ".join(sorted(names)) or "none"
            raise BudgetError(f"there is no service {name!r} in the templates; there are: {listed}")


def _resources(poolers: Sequence[Pooler], databases: Sequence[Database]) -> set[tuple[str, str]]:
    found = {each.resource for each in poolers if each.resource}
    return found | {resource for each in databases for resource in each.resources}


def _chosen(
    databases: Sequence[Database], name: str
) -> tuple[list[Database], set[tuple[str, str]]]:
    """Return the database that was named, or all; and the resources of the others."""
    if not name:
        return list(databases), set()
    chosen = [each for each in databases if each.name == name]
    if not chosen:
        listed = ", ".join(each.name for each in databases) or "none"
        raise BudgetError(f"--database {name}: there is no such database; there are: {listed}")
    return chosen, _resources((), [each for each in databases if each.name != name])


def _sorted_out(
    workloads: Sequence[Workload],
    said: Said,
    servers: set[tuple[str, str]],
    others: set[tuple[str, str]],
) -> tuple[list[Workload], list[NotCounted]]:
    counted: list[Workload] = []
    left_out: list[NotCounted] = []
    of_migrations = [
        each for each in workloads if each.name not in said.assignments and is_migration(each)
    ][: said.migrations]
    for workload in workloads:
        reason = _why_not(workload, said, servers, others)
        if not reason and workload in of_migrations:
            reason = "it is the migration, which is counted as such"
        if not reason:
            counted.append(workload)
            continue
        left_out.append(
            NotCounted(
                name=workload.name,
                platform=workload.platform,
                where=str(workload.where or ""),
                reason=reason,
            )
        )
    return counted, left_out


def _why_not(
    workload: Workload,
    said: Said,
    servers: set[tuple[str, str]],
    others: set[tuple[str, str]],
) -> str:
    if workload.name in said.ignored:
        return "left out by --ignore"
    leads_to = {each.resource for found in workload.variables.values() for each in found.references}
    if leads_to & others and not leads_to & servers:
        return "it connects to another database"
    if workload.name in said.assignments:
        return ""
    return _why_no_client(workload, leads_here=bool(leads_to & servers))


def _why_no_client(workload: Workload, *, leads_here: bool) -> str:
    if workload.platform == INIT_CONTAINER:
        return "it ends before the other containers of its pod start"
    if workload.unread_variables or workload.hidden_variables:
        return ""
    if leads_here or uses_database(workload):
        return ""
    if workload.platform == ONE_OFF_TASK:
        return "no service runs it; migrations are counted apart"
    return "nothing speaks of a database; count it with --service if it uses one"


# -- services -------------------------------------------------------------------------------


def _service(
    workload: Workload,
    said: Said,
    stacks: Stacks,
    poolers: Sequence[Pooler],
    databases: Sequence[Database],
) -> Service:
    assignment = said.assignments.get(workload.name)
    numbers = pool(workload, assignment)
    if workload.unread_variables and assignment is None:
        nothing = unknown(f"its variables: {workload.unread_variables}", workload.where)
        numbers = dataclasses.replace(numbers, pool_size=nothing, max_overflow=nothing)
    instances = workload.instances
    if assignment is not None and assignment.instances is not None:
        instances = known(assignment.instances, assignment.text)
    through = _through(workload, stacks, poolers, databases)
    return Service(
        name=workload.name,
        platform=workload.platform,
        where=workload.where,
        instances=instances,
        overlap=_overlap(workload, numbers),
        processes=numbers.processes,
        pool_size=numbers.pool_size,
        max_overflow=numbers.max_overflow,
        target=numbers.target,
        through=through.name if through else "",
        notes=_notes(workload, numbers, through, databases),
    )


def _overlap(workload: Workload, numbers: Pool) -> Overlap:
    if workload.platform == FUNCTION and not numbers.keeps_connections:
        # Reserved concurrency holds for all versions together, and nothing outlives an invoke.
        return Overlap()
    return workload.overlap


def _notes(
    workload: Workload, numbers: Pool, through: Pooler | None, databases: Sequence[Database]
) -> tuple[str, ...]:
    if numbers.target == "lambda_proxy" and through is None and databases:
        return (
            "its preset is for a proxy, but nothing shows that it connects to one: counted directly",
        )
    return ()


def _through(
    workload: Workload, stacks: Stacks, poolers: Sequence[Pooler], databases: Sequence[Database]
) -> Pooler | None:
    """Find the pooler that the variables about the database lead to, if they lead nowhere else."""
    about = {
        name: found
        for name, found in workload.variables.items()
        if is_about_database(name, found) or found.references
    }
    found = (_leads_to(each, name, stacks, poolers) for name, each in about.items())
    pooler = next((each for each in found if each is not None), None)
    servers = {host for database in databases for host in database.hosts}
    # With two ways it may take the direct one for all that it does, which is the larger number.
    straight = any(
        _hosts(name, each) & servers
        for name, each in about.items()
        # POSTGRES_DB may be called as the host is.
        if not _NO_HOST.search(name.upper())
    )
    return None if straight else pooler


def _leads_to(
    found: Variable, name: str, stacks: Stacks, poolers: Sequence[Pooler]
) -> Pooler | None:
    for reference in found.references:
        for pooler in poolers:
            if pooler.resource == reference.resource:
                return pooler
        pooler_behind = _behind(reference.stack, reference.logical_id, stacks, poolers)
        if pooler_behind is not None:
            return pooler_behind
    hosts = _hosts(name, found)
    return next((each for each in poolers if hosts & set(each.hosts)), None)


def _hosts(name: str, found: Variable) -> set[str]:
    """Return the hosts that a variable about the database names, in full and by their first part."""
    text = found.partly if found.text is None else found.text
    if not text or not is_about_database(name, found):
        return set()
    hosts = {match[1] for match in _HOST.finditer(text)}
    return hosts | {host.partition(".")[0] for host in hosts if not host.replace(".", "").isdigit()}


def _behind(
    stack: str, logical_id: str, stacks: Stacks, poolers: Sequence[Pooler]
) -> Pooler | None:
    """A load balancer before the only PgBouncer of its stack leads to that one."""
    found = stacks.by_name.get(stack)
    resource = found.resources.get(logical_id) if found else None
    if resource is None or resource.type not in _ENTRY_POINTS:
        return None
    inside = [
        each
        for each in poolers
        if each.resource and each.resource[0] == stack and each.kind == "PgBouncer"
    ]
    return inside[0] if len(inside) == 1 else None
