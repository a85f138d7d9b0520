"""From descriptions to budgets: which workloads are servers, poolers, clients or neither.

A workload is a client if any sign leads to a server: a variable, or evidence of another kind. A name
is a sign, and its absence shows nothing, so what is not counted is listed with the reason.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from poolkit.budget.cloudformation.workloads import describe_templates
from poolkit.budget.compose.workloads import describe_compose
from poolkit.budget.files import read_by
from poolkit.budget.kubernetes.workloads import describe_manifests
from poolkit.budget.measured import login
from poolkit.budget.model import NotCounted, Overlap, Service, Variable, Workload, known, unknown
from poolkit.budget.pools import is_migration, pool, read_assignments
from poolkit.budget.read.parameters import read_parameters
from poolkit.budget.signs import NO_HOST, SERVERS, database_signs, hosts_in, is_about_database
from poolkit.budget.software import (
    is_no_client,
    is_pooler,
    is_server,
    own_pooler,
    own_server,
    software_table,
)
from poolkit.budget.terraform.workloads import describe_terraform, without_copies
from poolkit.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from poolkit.budget.files import Files
    from poolkit.budget.model import (
        Database,
        Description,
        Options,
        Pooler,
        ResourceKey,
        Unread,
    )
    from poolkit.budget.pools import Assignment
    from poolkit.budget.read.parameters import Environment
    from poolkit.budget.software import Software

_NO_ADDRESS = re.compile(rf"SECRET|CREDENTIAL|ARN|{NO_HOST.pattern}")
_ADDRESS = re.compile(
    r"://|\bhost=|(host|server|endpoint|addr|address|url|uri|dsn)=", re.IGNORECASE
)
_Part = TypeVar("_Part", "Service", "Pooler")
_Named = TypeVar("_Named", "Workload", "Database")
_Version = TypeVar("_Version", "Pooler", "Database")


@dataclass(frozen=True, kw_only=True)
class Client(Generic[_Part]):
    """A service or pooler, and the names of the databases that it may connect to."""

    part: _Part
    certain: frozenset[str] = frozenset()
    possible: frozenset[str] = frozenset()
    """With `certain` empty: any."""

    def may_use(self, databases: Collection[str]) -> bool:
        """Return whether it may connect to one of some databases."""
        named = self.certain | self.possible
        return not named or not named.isdisjoint(databases)

    def unless_certain(self, database: str) -> _Part:
        """Return the part, with an unknown number unless it certainly connects to the database."""
        if database in self.certain or len(self.possible) < 2:
            return self.part
        listed = ", ".join(sorted(self.possible))
        reason = f"it is unclear to which of these it connects: {listed}"
        # The share of a proxy does not depend on its instances.
        number = "instances" if getattr(self.part, "percent", None) is None else "percent"
        changes: dict[str, Any] = {number: unknown(f"{reason}; name the server in a variable")}
        return dataclasses.replace(self.part, **changes)


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Everything found; `unread` may hold more services."""

    clients: tuple[Client[Service], ...] = ()
    poolers: tuple[Client[Pooler], ...] = ()
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
    named = {*options.paths, Path(environment.file)}
    # The templates that an environment deploys are named by it.
    named |= {each.path for each in files.templates if environment.file}
    manifests = read_by(
        lambda each: describe_manifests(each, environment.name, options.paths),
        files.kubernetes,
        named,
    )
    described = (
        read_by(lambda each: describe_templates(each, environment, given), files.templates, named),
        manifests,
        read_by(lambda each: describe_compose(each, given, known_software), files.compose, named),
        *map(describe_terraform, without_copies(files.terraform)),
    )
    objects = {each.resource for each in manifests.workloads}
    workloads = _with_names([each for found in described for each in found.workloads], objects)
    # Without files, each service stands on the command line only.
    workloads = workloads or [_declared(name) for name in assignments]
    clients: list[Workload] = []
    own_poolers: list[Workload] = []
    own_servers: list[Database] = []
    for each in workloads:
        if is_server(each, known_software):
            own_servers.append(own_server(each, known_software))
        else:
            (own_poolers if is_pooler(each, known_software) else clients).append(each)
    databases = [each for found in described for each in found.databases]
    databases = _with_unique_names([*databases, *_servers_once(own_servers)])
    poolers = [each for found in described for each in found.poolers]
    poolers += _poolers_once(
        own_pooler(each, options.pgbouncer_pools, known_software) for each in own_poolers
    )
    names = {each.name for each in workloads} | {each.name for each in databases}
    for name in (*assignments, *ignored):
        # An answer is for every run, and this one may be about other files.
        is_answer = name in answers.services or name in answers.ignore
        if name not in names and not is_answer:
            listed = ", ".join(sorted(names)) or "none"
            raise BudgetError(f"there is no service {name!r} in the templates; there are: {listed}")
    servers = _Servers(poolers, databases, described, known_software)
    counted, not_counted = _counted(clients, assignments, ignored, options.migrations, servers)
    return Inventory(
        clients=tuple(_clients_once(counted, not_counted)),
        poolers=tuple(Client(part=each, possible=servers.behind[each.name]) for each in poolers),
        databases=tuple(databases),
        not_counted=tuple(not_counted),
        unread=(*files.unread, *(each for found in described for each in found.unread)),
    )


def _declared(name: str) -> Workload:
    """Return a service that no file has; --service gives its numbers."""
    nothing = unknown("no file has it")
    return Workload(
        name=name,
        platform="declared",
        unit="instance",
        where=None,
        instances=nothing,
        overlap=Overlap(),
        variables={},
        processes=nothing,
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


# -- versions of one object -----------------------------------------------------------------


def _with_names(workloads: Sequence[Workload], objects: Collection[object]) -> list[Workload]:
    """Return the workloads with unique names; the versions of one Kubernetes object share one.

    Kubernetes knows an object by kind, namespace and name: another manifest of it replaces it.
    """
    groups: dict[object, list[Workload]] = {}
    for each in workloads:
        is_object = each.resource is not None and each.resource in objects
        groups.setdefault(each.resource if is_object else id(each), []).append(each)
    first = _with_unique_names(min(each, key=_place) for each in groups.values())
    return [
        dataclasses.replace(each, name=one.name)
        for one, versions in zip(first, groups.values(), strict=True)
        for each in versions
    ]


def _place(part: Workload | Service | Pooler | Database) -> tuple[str, int]:
    return (part.where.file, part.where.line or 0) if part.where else ("", 0)


def _largest(ceiling: int | None) -> float:
    return math.inf if ceiling is None else ceiling


def _versions(parts: Iterable[_Version]) -> Iterable[list[_Version]]:
    """Return the parts of one name together."""
    found: dict[str, list[_Version]] = {}
    for each in sorted(parts, key=_place):
        found.setdefault(each.name, []).append(each)
    return found.values()


def _servers_once(servers: Iterable[Database]) -> Iterator[Database]:
    """Return each server once, with the least limit of its versions; unknown if one is."""
    for versions in _versions(servers):
        least = min(versions, key=lambda each: -1 if each.available is None else each.available)
        hosts = dict.fromkeys(host for each in versions for host in each.hosts)
        yield dataclasses.replace(least, hosts=tuple(hosts))


def _poolers_once(poolers: Iterable[Pooler]) -> Iterator[Pooler]:
    """Return each pooler once, with the largest ceiling of its versions; unknown if one is."""
    for versions in _versions(poolers):
        hosts = dict.fromkeys(host for each in versions for host in each.server_hosts)
        keys = dict.fromkeys(key for each in versions for key in each.leads_to)
        most = max(versions, key=lambda each: _largest(each.ceiling(None)))
        yield dataclasses.replace(most, server_hosts=tuple(hosts), leads_to=tuple(keys))


def _clients_once(
    clients: Sequence[Client[Service]], left_out: list[NotCounted]
) -> Iterator[Client[Service]]:
    """Return each service once, with the largest ceiling of its versions; list the others."""
    by_name: dict[str, list[Client[Service]]] = {}
    for each in clients:
        by_name.setdefault(each.part.name, []).append(each)
    for versions in by_name.values():
        parts = sorted((each.part for each in versions), key=_place)
        # Behind a pooler, a version adds nothing to those that connect directly.
        most = max(
            [each for each in parts if not each.through] or parts,
            key=lambda each: (_largest(each.ceiling), _largest(each.instances.value)),
        )
        yield Client(
            part=most,
            certain=frozenset.intersection(*(each.certain for each in versions)),
            possible=frozenset[str]().union(*(each.possible for each in versions)),
        )
        reason = f"the same {most.platform} as in {most.where}"
        left_out += [NotCounted.of(each, reason) for each in parts if each is not most]


# -- which workloads count ------------------------------------------------------------------


class _Way(NamedTuple):
    """The databases that a resource or host name leads to, and the pooler before them."""

    databases: frozenset[str] = frozenset()
    pooler: Pooler | None = None


class _Sign(NamedTuple):
    """A sign that a workload connects to a database."""

    reason: str
    databases: frozenset[str] = frozenset()
    """The names of the databases that it is about; empty: any."""
    is_network: bool = False
    is_open: bool = False
    """True if it may be about another database than the other signs."""
    pooler: Pooler | None = None
    is_direct: bool = False
    """True if it is the address of a server without a pooler."""


def _counted(
    clients: Sequence[Workload],
    assignments: Mapping[str, Assignment],
    ignored: Collection[str],
    most_migrations: int,
    servers: _Servers,
) -> tuple[list[Client[Service]], list[NotCounted]]:
    """Return the workloads that count, and the others with the reason."""
    counted: list[Client[Service]] = []
    left_out: list[NotCounted] = []
    migrations: set[str] = set()
    for workload in clients:
        assignment, signs = assignments.get(workload.name), servers.signs(workload)
        names_server = any(each.databases and not each.is_network for each in signs)
        # A variable that could not be read may be about a database.
        unread = workload.unread_variables or workload.hidden_variables
        engines = () if names_server else servers.engines
        other = is_no_client(workload, engines, servers.software)
        reason = ""
        if workload.name in ignored:
            reason = "left out by --ignore, or by ignore of the project"
        elif assignment is not None:
            pass
        elif workload.unit == "init container":
            reason = "it ends before the other containers of its pod start"
        elif other:
            reason = other
        elif not signs and not unread and workload.unit == "one-off task":
            reason = "no service runs it; migrations are counted apart"
        elif not signs and not unread:
            reason = "no sign of a database; if it uses one, count it with --service"
        elif is_migration(workload) and len(migrations | {workload.name}) <= most_migrations:
            migrations.add(workload.name)
            reason = "it is the migration, which is counted as such"
        if reason:
            left_out.append(NotCounted.of(workload, reason))
            continue
        # Several databases, or the network alone, do not show to which one it connects.
        clear = [each for each in signs if len(each.databases) == 1 and not each.is_network]
        sure = frozenset[str]().union(*(each.databases for each in clear))
        every = [each.databases or servers.names for each in signs] or [servers.names]
        possible = frozenset[str]().union(*every)
        # A client with two ways may use the direct one only, which is the larger number.
        poolers = [each.pooler for each in signs if each.pooler]
        is_direct = any(each.is_direct for each in signs)
        service = dataclasses.replace(
            _service(workload, assignment, servers.software),
            why=signs[0].reason if signs else unread,
            through="" if is_direct or not poolers else poolers[0].name,
        )
        counted.append(Client(part=service, certain=sure, possible=possible))
    return counted, left_out


# -- services -------------------------------------------------------------------------------


def _service(
    workload: Workload, assignment: Assignment | None, known_software: tuple[Software, ...]
) -> Service:
    numbers = pool(workload, assignment, known_software)
    if workload.unread_variables and assignment is None:
        nothing = unknown(f"its variables: {workload.unread_variables}", workload.where)
        numbers = dataclasses.replace(numbers, pool_size=nothing, max_overflow=nothing)
    instances, overlap = workload.instances, workload.overlap
    if assignment is not None and assignment.instances is not None:
        instances = known(assignment.instances, assignment.text)
    if workload.unit == "execution environment" and not numbers.keeps_connections:
        # Reserved concurrency holds for all versions together, and no connection outlives an invoke.
        overlap = Overlap()
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
        login=login(workload),
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
        self.names = frozenset(each.name for each in databases)
        self._aliases = {key: to for each in described for key, to in each.aliases.items()}
        kinds = {each.engine for each in databases}
        self._by_engine = {
            # A server of an unknown engine may be of any.
            kind: frozenset(each.name for each in databases if each.engine in (kind, ""))
            for kind in (SERVERS if "" in kinds else kinds)
        }
        # Resources and host names -> the databases that they lead to.
        self._ways: dict[ResourceKey | str, _Way] = {}
        self._by_file: dict[str, frozenset[str]] = {}
        for database in databases:
            own, file = frozenset({database.name}), database.where.file if database.where else ""
            self._by_file[file] = self._by_file.get(file, own) | own
            ends: list[ResourceKey | str] = [*database.resources, *database.hosts]
            for end in ends:
                before = self._ways.get(end) or _Way()
                self._ways[end] = _Way(before.databases | own)
        self.engines = tuple(self._by_engine) or ("postgres", "mysql")
        # Without a hint, a pooler may connect to any of them.
        self.behind = {
            each.name: frozenset[str]().union(
                *(way.databases for way in self._led(each.leads_to, each.server_hosts))
            )
            for each in poolers
        }
        fronts: dict[ResourceKey | str, Pooler] = {}
        for key in (key for each in described for key in each.entry_points):
            # A load balancer in front of the only PgBouncer of its stack leads to it.
            inside = [
                each for each in poolers if each.resource and each.resource.stack == key.stack
            ]
            if len(inside) == 1 and inside[0].kind == "PgBouncer":
                fronts[key] = inside[0]
        for each in poolers:
            fronts |= dict.fromkeys(
                [*([each.resource] if each.resource else []), *each.hosts], each
            )
        for end, pooler in fronts.items():
            self._ways.setdefault(end, _Way(self.behind[pooler.name] or self.names, pooler))

    def _led(self, keys: Iterable[ResourceKey], hosts: Iterable[str]) -> list[_Way]:
        """Return the ways that begin at resources, at what they stand for, and at host names."""
        ends: list[ResourceKey | str] = [
            *(to for key in keys for to in (key, *self._aliases.get(key, ()))),
            *hosts,
        ]
        return [self._ways[end] for end in dict.fromkeys(ends) if end in self._ways]

    def signs(self, workload: Workload) -> list[_Sign]:
        """Return every sign that a workload connects to one of the databases."""
        certain, unclear = list[_Sign](), list[_Sign]()
        shown = {each.name: each for each in database_signs(workload)}
        for name in (*workload.variables, *(shown.keys() - workload.variables.keys())):
            variable, found = workload.variables.get(name), shown.get(name)
            label = f"variable {name}" if variable is not None and name else f"its {name}".strip()
            if variable is not None and (reached := self._by_variable(label, name, variable)):
                certain.append(reached)
            elif found is None or found.is_other_store:
                continue
            elif found.engine in (None, *self.engines):
                # A URL of one engine may lead to each server of this engine.
                databases = self._by_engine.get(found.engine or "", frozenset())
                is_open = variable is None or _is_address(name, variable)
                unclear.append(_Sign(label, databases, is_open=is_open))
        for each in workload.evidence:
            ways = self._led(each.leads_to, each.hosts)
            databases = frozenset[str]().union(*(way.databases for way in ways))
            if databases:
                certain.append(_Sign(each.reason, databases, is_network=each.is_network))
            elif not each.leads_to and all(map(_is_managed, each.hosts)):
                unclear.append(_Sign(each.reason, is_network=each.is_network, is_open=True))
        named = [each for each in certain if not each.is_network]
        # The network lets a client through to more servers than the one that it names. A user name
        # beside a known host is about the same database; an unknown URL may be about another one.
        signs = [*(named or certain), *(each for each in unclear if each.is_open or not named)]
        # Each compose file is a deployment of its own, and its names hold inside it.
        is_compose = workload.platform == "compose service" and workload.where is not None
        near = self._by_file.get(workload.where.file if is_compose and workload.where else "")
        return [
            each._replace(databases=(each.databases & near or each.databases or near))
            if near
            else each
            for each in signs
        ]

    def _by_variable(self, label: str, name: str, variable: Variable) -> _Sign | None:
        """Return the sign of a variable that leads to a database; None if it leads to none.

        A secret of the server beside a pooler's address holds the credentials for both ways.
        """
        ways = self._led(variable.leads_to, hosts := _hosts(name, variable))
        if not ways:
            return None
        is_address = not _NO_ADDRESS.search(name.upper())
        ends: list[ResourceKey | str] = [*hosts, *(variable.leads_to if is_address else ())]
        return _Sign(
            label,
            frozenset[str]().union(*(way.databases for way in ways)),
            pooler=next((way.pooler for way in ways if way.pooler), None),
            is_direct=any(self._ways[end].pooler is None for end in ends if end in self._ways),
        )


def _is_managed(host: str) -> bool:
    """Return whether a host name is one that a cloud gives to its database servers."""
    return is_about_database("", Variable(text=host, origin=""))


def _hosts(name: str, variable: Variable) -> set[str]:
    """Return the hosts that a variable's text may name, each also by its first part."""
    text = variable.partly if variable.text is None else variable.text
    # POSTGRES_DB and DB_TYPE may have the same text as the host.
    return set() if NO_HOST.search(name.upper()) else hosts_in(text)


def _is_address(name: str, variable: Variable) -> bool:
    """Return whether a variable may hold the address of a server."""
    is_hidden = variable.text is None or _ADDRESS.search(f"{name}={variable.text}")
    return bool(is_hidden) and not NO_HOST.search(name.upper())
