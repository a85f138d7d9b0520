"""From descriptions to budgets: which workloads are servers, poolers, clients or neither.

A workload is a client if any sign leads to a server: a variable, or evidence of another kind. A name
is a sign, and its absence shows nothing, so what is not counted is listed with the reason.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from poolkit.budget.cloudformation.workloads import describe_templates
from poolkit.budget.compose.workloads import describe_compose
from poolkit.budget.kubernetes.workloads import describe_manifests
from poolkit.budget.live import login
from poolkit.budget.model import NotCounted, Overlap, Service, known, unknown
from poolkit.budget.own_servers import own_pooler, own_server
from poolkit.budget.pools import is_migration, pool, read_assignments
from poolkit.budget.read.parameters import read_parameters
from poolkit.budget.signs import SERVERS, database_signs, hosts_in
from poolkit.budget.software import is_no_client, is_pooler, is_server, software_table
from poolkit.budget.terraform.workloads import describe_terraform
from poolkit.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from poolkit.budget.files import Files
    from poolkit.budget.model import (
        Database,
        Description,
        Options,
        Pooler,
        Quantity,
        ResourceKey,
        Unread,
        Variable,
        Workload,
    )
    from poolkit.budget.pools import Assignment
    from poolkit.budget.read.parameters import Environment
    from poolkit.budget.software import Software

_NO_HOST = re.compile(
    r"(^|_)(DB|DATABASE|PGDATABASE|NAME|USER|USERNAME|PASSWORD|SCHEMA)$"
    r"|(PORT|PASSWORD|PASS|USERNAME|USER|TYPE|ENGINE|DRIVER|ADAPTER|DIALECT|VENDOR|SSLMODE)$"
)
_NO_ADDRESS = re.compile(rf"SECRET|CREDENTIAL|ARN|{_NO_HOST.pattern}")
_ADDRESS = re.compile(
    r"://|\bhost=|(host|server|endpoint|addr|address|url|uri|dsn)=", re.IGNORECASE
)
_Named = TypeVar("_Named", "Workload", "Database")


@dataclass(frozen=True, kw_only=True)
class Client:
    """A service and the names of the databases that it may connect to; empty: any."""

    service: Service
    databases: frozenset[str] = frozenset()

    def may_use(self, databases: Collection[str]) -> bool:
        """Return whether it may connect to one of some databases."""
        return not self.databases or not self.databases.isdisjoint(databases)


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Everything found; `unread` may hold more services."""

    clients: tuple[Client, ...] = ()
    poolers: tuple[tuple[Pooler, frozenset[str]], ...] = ()
    """Each with the names of the databases behind it; none: any."""
    databases: tuple[Database, ...] = ()
    not_counted: tuple[NotCounted, ...] = ()
    unread: tuple[Unread, ...] = ()


def take_inventory(files: Files, environment: Environment, options: Options) -> Inventory:
    """Read the files and return their services, poolers and databases.

    Raises:
        BudgetError: a service or parameter that was named does not exist.
        TemplateError: a file is wrong; the message names the line.
    """
    given, assignments = read_parameters(options.parameters), read_assignments(options.services)
    answers = options.answers
    for name, text in answers.services.items():
        ((_, answer),) = read_assignments([f"{name}={text}"]).items()
        answer = dataclasses.replace(answer, text=f"{answers.origin} services.{name}")
        assignments.setdefault(name, answer)
    ignored = {*options.ignored, *answers.ignore}
    known_software = software_table(answers.software)
    described = (
        describe_templates(files.templates, environment, given),
        describe_manifests(files.kubernetes, environment.name, options.paths),
        describe_compose(files.compose, given, known_software),
        *map(describe_terraform, files.terraform),
    )
    workloads = _with_unique_names(each for found in described for each in found.workloads)
    databases = [each for found in described for each in found.databases]
    clients: list[Workload] = []
    own_poolers: list[Workload] = []
    for each in workloads:
        if is_server(each, known_software):
            databases.append(own_server(each, known_software))
        else:
            (own_poolers if is_pooler(each, known_software) else clients).append(each)
    databases = _with_unique_names(databases)
    poolers = [each for found in described for each in found.poolers]
    poolers += [own_pooler(each, options.pgbouncer_pools, known_software) for each in own_poolers]
    names = {each.name for each in workloads} | {each.name for each in databases}
    for name in (*assignments, *ignored):
        # An answer is for every run, and this one may be about other files. Without files, each
        # service stands on the command line only.
        is_answer = name in answers.services or name in answers.ignore
        if name not in names and not is_answer and (workloads or name not in assignments):
            listed = ", ".join(sorted(names)) or "none"
            raise BudgetError(f"there is no service {name!r} in the templates; there are: {listed}")
    databases = [each for each in databases if each.name not in ignored]
    servers = _Servers(poolers, databases, described, known_software)
    counted, not_counted = _counted(clients, assignments, ignored, options.migrations, servers)
    if not workloads:
        counted = [Client(service=_declared(*each)) for each in assignments.items()]
    return Inventory(
        clients=tuple(counted),
        poolers=tuple((each, servers.of_pooler[each.name]) for each in poolers),
        databases=tuple(databases),
        not_counted=tuple(not_counted),
        unread=(*files.unread, *(each for found in described for each in found.unread)),
    )


def _with_unique_names(parts: Iterable[_Named]) -> list[_Named]:
    """Put the file before a name that occurs in several, and a number after one in the same file.

    The names must not depend on the order of the files.
    """
    parts = list(parts)
    files: dict[str, set[str]] = {}
    for part in parts:
        files.setdefault(part.name, set()).add(part.where.file if part.where else "")
    found: list[_Named] = []
    taken: set[str] = set()
    for part in parts:
        name, same = part.name, {PurePath(file) for file in files[part.name]}
        if len(same) > 1 and part.where is not None:
            own = PurePath(part.where.file)
            is_alone = [each.stem for each in same].count(own.stem) == 1
            name = f"{own.stem if is_alone else own.with_suffix('')}/{name}"
        numbered = itertools.chain([name], (f"{name}#{number}" for number in itertools.count(2)))
        name = next(each for each in numbered if each not in taken)
        taken.add(name)
        found.append(dataclasses.replace(part, name=name))
    return found


# -- which workloads count ------------------------------------------------------------------


class _Sign(NamedTuple):
    """A sign that a workload connects to a database."""

    reason: str
    databases: frozenset[str] = frozenset()
    """The names of the databases that it is about; empty: any."""
    is_network: bool = False
    is_open: bool = False
    """True if it may be about another database than the other signs."""

    @property
    def is_certain(self) -> bool:
        """True if it names a server of these files."""
        return bool(self.databases) and not self.is_network


def _counted(
    clients: Sequence[Workload],
    assignments: Mapping[str, Assignment],
    ignored: Collection[str],
    most_migrations: int,
    servers: _Servers,
) -> tuple[list[Client], list[NotCounted]]:
    """Return the workloads that count, and the others with the reason."""
    counted: list[Client] = []
    left_out: list[NotCounted] = []
    migrations = 0
    for workload in clients:
        assignment = assignments.get(workload.name)
        signs = list(servers.signs(workload))
        # A variable that could not be read may be about a database.
        is_open = bool(workload.unread_variables or workload.hidden_variables)
        other = is_no_client(workload, servers.engines, servers.software)
        reason = ""
        if workload.name in ignored:
            reason = "left out by --ignore, or by ignore of the project"
        elif assignment is not None:
            pass
        elif workload.unit == "init container":
            reason = "it ends before the other containers of its pod start"
        elif other and not any(each.is_certain for each in signs):
            reason = other
        elif not signs and not is_open and workload.unit == "one-off task":
            reason = "no service runs it; migrations are counted apart"
        elif not signs and not is_open:
            reason = "no sign of a database; if it uses one, count it with --service"
        elif is_migration(workload) and migrations < most_migrations:
            migrations += 1
            reason = "it is the migration, which is counted as such"
        if reason:
            left_out.append(NotCounted.of(workload, reason))
            continue
        is_any = not all(each.databases for each in signs)
        named = frozenset(name for each in signs for name in each.databases)
        why = signs[0].reason if signs else workload.unread_variables or workload.hidden_variables
        service = _service(workload, assignment, servers, why)
        counted.append(Client(service=service, databases=frozenset() if is_any else named))
    return counted, left_out


# -- services -------------------------------------------------------------------------------


def _service(
    workload: Workload, assignment: Assignment | None, servers: _Servers, why: str
) -> Service:
    numbers = pool(workload, assignment, servers.software)
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
        why=why,
        through=through.name if through else "",
        login=login(workload),
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
    """The databases and poolers, and what leads to each of them."""

    def __init__(
        self,
        poolers: Sequence[Pooler],
        databases: Sequence[Database],
        described: Sequence[Description],
        known_software: tuple[Software, ...],
    ) -> None:
        self.software = known_software
        self._aliases = {key: to for each in described for key, to in each.aliases.items()}
        kinds = {each.engine for each in databases}
        self._by_engine = {
            # A server of an unknown engine may be of any.
            kind: frozenset(each.name for each in databases if each.engine in (kind, ""))
            for kind in (SERVERS if "" in kinds else kinds)
        }
        # Resources and host names -> the names of the databases that they lead to.
        self._by_key = {key: frozenset({each.name}) for each in databases for key in each.resources}
        self._by_host: dict[str, frozenset[str]] = {}
        for database in databases:
            for host in database.hosts:
                same = self._by_host.get(host, frozenset())
                self._by_host[host] = same | {database.name}
        self._own_keys, self._own_hosts = set(self._by_key), set(self._by_host)
        self.engines = tuple(self._by_engine) or ("postgres", "mysql")
        self.of_pooler: dict[str, frozenset[str]] = {}
        self._pooler_by_key: dict[ResourceKey, Pooler] = {}
        self._pooler_by_host = {host: each for each in poolers for host in each.hosts}
        for pooler in poolers:
            behind = self._leads_to(pooler.leads_to, pooler.server_hosts)
            # Without a hint it may connect to any of them.
            self.of_pooler[pooler.name] = behind or frozenset(each.name for each in databases)
            if pooler.resource:
                self._pooler_by_key[pooler.resource] = pooler
        for key in (key for each in described for key in each.entry_points):
            # A load balancer in front of the only PgBouncer of its stack leads to it.
            inside = [
                each
                for each in poolers
                if each.kind == "PgBouncer" and each.resource and each.resource.stack == key.stack
            ]
            if len(inside) == 1:
                self._pooler_by_key.setdefault(key, inside[0])
        for key, pooler in self._pooler_by_key.items():
            self._by_key[key] = self.of_pooler[pooler.name]
        for host, pooler in self._pooler_by_host.items():
            self._by_host.setdefault(host, self.of_pooler[pooler.name])

    def _resolved(self, keys: Iterable[ResourceKey]) -> set[ResourceKey]:
        return {to for key in keys for to in (key, *self._aliases.get(key, ()))}

    def _leads_to(self, keys: Iterable[ResourceKey], hosts: Iterable[str]) -> frozenset[str]:
        """Return the names of the databases that resources and hosts lead to."""
        found = [self._by_key.get(key, frozenset()) for key in self._resolved(keys)]
        found += [self._by_host.get(host, frozenset()) for host in hosts]
        return frozenset[str]().union(*found)

    def signs(self, workload: Workload) -> list[_Sign]:
        """Return every sign that a workload connects to one of the databases."""
        certain, unclear = list[_Sign](), list[_Sign]()
        shown = {each.name: each for each in database_signs(workload)}
        for name in (*workload.variables, *(shown.keys() - workload.variables.keys())):
            variable, found = workload.variables.get(name), shown.get(name)
            engine = found.engine if found else None
            databases = frozenset[str]()
            if variable is not None:
                databases = self._leads_to(variable.leads_to, _hosts(name, variable))
            label = f"variable {name}" if variable is not None and name else f"its {name}".strip()
            if databases:
                certain.append(_Sign(label, databases))
            elif found is None or found.is_other_store:
                continue
            elif engine is None or not self._by_engine:
                is_open = variable is None or _is_address(name, variable)
                unclear.append(_Sign(label, is_open=is_open))
            elif engine in self._by_engine:
                # A URL of one engine may lead to each server of this engine.
                unclear.append(_Sign(label, self._by_engine[engine], is_open=True))
        for each in workload.evidence:
            databases = self._leads_to(each.leads_to, each.hosts)
            if databases:
                certain.append(_Sign(each.reason, databases, is_network=each.is_network))
            elif not (each.leads_to or each.hosts):
                unclear.append(_Sign(each.reason, is_network=each.is_network, is_open=True))
        # A user name beside a known host is about the same database. An unknown URL may be about
        # another one.
        named = [each for each in certain if not each.is_network]
        # The network lets a client through to more servers than the one that it names.
        certain, is_known = named or certain, bool(named)
        return certain + [each for each in unclear if each.is_open or not is_known]

    def pooler_of(self, workload: Workload) -> Pooler | None:
        """Return the pooler that a client's variables lead to, if no host of a server is beside it.

        A secret of the server beside the pooler's address holds the credentials for both ways.
        """
        pooler = None
        for name, variable in workload.variables.items():
            hosts = _hosts(name, variable)
            # A client with two ways may use the direct one only, which is the larger number.
            is_address = not _NO_ADDRESS.search(name.upper())
            if hosts & self._own_hosts or (is_address and set(variable.leads_to) & self._own_keys):
                return None
            keys = self._resolved(variable.leads_to)
            by_key = (self._pooler_by_key[key] for key in keys if key in self._pooler_by_key)
            by_host = (self._pooler_by_host[host] for host in hosts if host in self._pooler_by_host)
            pooler = pooler or next(by_key, None) or next(by_host, None)
        return pooler


def _hosts(name: str, variable: Variable) -> set[str]:
    """Return the hosts that a variable's text may name, each also by its first part."""
    text = variable.partly if variable.text is None else variable.text
    # POSTGRES_DB and DB_TYPE may have the same text as the host.
    return set() if _NO_HOST.search(name.upper()) else hosts_in(text)


def _is_address(name: str, variable: Variable) -> bool:
    """Return whether a variable may hold the address of a server."""
    is_hidden = variable.text is None or _ADDRESS.search(f"{name}={variable.text}")
    return bool(is_hidden) and not _NO_HOST.search(name.upper())
