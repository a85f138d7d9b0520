"""Poolers and database servers in containers of the deployment itself.

Sources: PgBouncer, "Configuration" (default_pool_size 20, reserve_pool_size 0,
max_db_connections 0 for no limit, max_client_conn 100; a pool is a pair of database and user);
PostgreSQL, 19.3.1; Pgpool-II, "Connections and Authentication" (num_init_children x max_pool). The
variables are those of the images edoburu/pgbouncer, bitnami/pgbouncer and bitnami/pgpool.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from poolkit.budget.limits import SERVER_RESERVE, platform_limit, reserve, setting
from poolkit.budget.model import Database, Pooler, Quantity, known, product, unknown
from poolkit.budget.signs import hosts_in, is_about_database
from poolkit.budget.software import software_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from poolkit.budget.model import Workload
    from poolkit.budget.software import Software

_Sections: TypeAlias = "dict[str, dict[str, str]]"
_DEFAULTS = {
    "default_pool_size": 20,
    "reserve_pool_size": 0,
    "max_db_connections": 0,
    "max_client_conn": 100,
}
_OWN_VARIABLE = re.compile(r"PGBOUNCER_|DB_|DATABASE_URL|POSTGRESQL_|POOL_MODE|DATABASES_")
_SETTING = re.compile(
    r"(?:^|[\s=]|--|-c)(max|superuser_reserved|reserved)[-_]connections(?:\s*=\s*|[ \t]+)'?([^\s'#]+)",
    re.MULTILINE,
)
_KINDS = {"postgres": "PostgreSQL", "mysql": "MySQL"}
_COMMENT = re.compile(r"#.*")
_POOL_SIZE = re.compile(r"\bpool_size\s*=\s*(\d+)")
_HOST = re.compile(r"\bhost\s*=\s*([\w.-]+)")


# -- poolers --------------------------------------------------------------------------------


def own_pooler(
    workload: Workload, pools: int | None, softwares: Collection[Software] = ()
) -> Pooler:
    """Return the server connections and the client limit of a pooler.

    Args:
        workload: the container.
        pools: the number of pairs of database and user; None: as in its settings.
        softwares: the known software.

    """
    software, ini = software_of(workload, softwares), _ini(workload)
    kind = software.name if software and software.role == "pooler" else "PgBouncer"
    connections, clients = _of_pgbouncer(workload, ini, pools)
    if software is not None and kind != "PgBouncer":
        factors = [workload.number(each) for each in software.pool] or [None]
        size = product(*(each.value if each else None for each in factors))
        connections = unknown(f"the pools of {kind} cannot be read from the files", workload.where)
        if size is not None:
            connections = known(size, f"{workload.where}: {kind}", workload.where)
        clients = None
    hosts = set(_HOST.findall("\n".join(ini.get("databases", {}).values())))
    for name, variable in workload.variables.items():
        if is_about_database(name, variable):
            hosts |= hosts_in(variable.partly if variable.text is None else variable.text)
    return Pooler(
        name=workload.name,
        kind=kind,
        where=workload.where,
        instances=workload.instances,
        overlap=workload.overlap,
        server_connections=connections,
        clients=clients,
        resource=workload.resource,
        hosts=workload.hosts,
        server_hosts=tuple(sorted(hosts - set(workload.hosts))),
    )


def _of_pgbouncer(
    workload: Workload, ini: _Sections, pools: int | None
) -> tuple[Quantity, Quantity | None]:
    """Return the most connections to the server, and the most clients.

    The connections are pools x (default_pool_size + reserve_pool_size), or max_db_connections of
    each database.
    """
    size, spare, most, clients = (_setting(workload, ini, *each) for each in _DEFAULTS.items())
    # Without a pgbouncer.ini, the images' variables name one database and one user.
    listed = ini.get("databases", {}) if ini else {"": "user="}
    # A * stands for any number of databases.
    databases = None if not listed or "*" in listed else len(listed)
    if most.value and databases is not None:
        origin = f"{most.origin} x {databases} database(s)"
        return known(most.value * databases, origin, workload.where), clients
    unclear = next((each for each in (most, size, spare) if each.value is None), None)
    if unclear is not None:
        return unclear, clients
    if pools is None and all(re.search(r"\buser\s*=", text) for text in listed.values()):
        pools = databases
    if pools is None:
        reason = (
            "the number of pairs of database and user is unknown; give --pgbouncer-pools N, or "
            "set max_db_connections"
        )
        return unknown(reason, workload.where), clients
    # A database may have a larger pool of its own.
    own_sizes = map(int, _POOL_SIZE.findall("\n".join(listed.values())))
    each = max(size.value or 0, *own_sizes, 0) + (spare.value or 0)
    origin = f"{pools} pool(s) x {each}: {size.origin}"
    return known(pools * each, origin, workload.where), clients


def _ini(workload: Workload) -> _Sections:
    """Return the sections of a mounted pgbouncer.ini; empty if there is none."""
    sections: _Sections = {}
    here: dict[str, str] = {}
    texts = (text for name, text in workload.mounted.items() if name.endswith(".ini"))
    for line in next((text for text in texts if "[pgbouncer]" in text), "").splitlines():
        name, separator, value = line.strip().partition("=")
        if name.startswith("["):
            here = sections.setdefault(name.strip("[] "), {})
        elif separator and not name.startswith((";", "#")):
            here[name.strip()] = value.strip()
    return sections


def _setting(workload: Workload, ini: _Sections, name: str, default: int) -> Quantity:
    """Return a setting of PgBouncer: of a variable, pgbouncer.ini, or its default."""
    if (found := workload.number(name.upper(), f"PGBOUNCER_{name.upper()}")) is not None:
        return found
    if (written := ini.get("pgbouncer", {}).get(name)) is not None:
        if written.isdecimal():
            return known(int(written), f"pgbouncer.ini ({name})", workload.where)
        return unknown(f"pgbouncer.ini: {name} is {written!r}", workload.where)
    # An image without any variable of its own may hold a complete pgbouncer.ini.
    has_variables = any(map(_OWN_VARIABLE.match, workload.variables))
    if workload.unread_variables or (not ini and not has_variables):
        reason = f"{name}: the configuration of this PgBouncer could not be read"
        return unknown(reason, workload.where)
    return known(default, f"PgBouncer's default {name}", workload.where)


# -- servers --------------------------------------------------------------------------------


def own_server(workload: Workload, softwares: Collection[Software] = ()) -> Database:
    """Return the limits of a database server in a container."""
    software = software_of(workload, softwares)
    engine = software.engine if software else "postgres"
    defaults = platform_limit("servers", engine, where=workload.where)
    # EXTRA_CONF, MARIADB_EXTRA_FLAGS and POSTGRES_INITDB_ARGS are such variables.
    texts = [each.text or each.partly for each in workload.variables.values()]
    files = [software.settings if software else "", *workload.mounted.values(), *texts]
    command = " ".join(workload.command or ())
    # -N is short for max_connections. The command line comes last, because it wins.
    words = re.sub(r"(^|\s)-N *", r"\1-c max_connections=", command)
    lines = [*(_COMMENT.sub("", text) for text in files), words]
    found = {match[1]: match[2] for match in _SETTING.finditer("\n".join(lines))}
    origin = workload.command_origin or str(workload.where)
    numbers = [workload.number(each) for each in (software.pool if software else ())]
    limit = next((each for each in numbers if each is not None), None)
    if "max" in found:
        limit = setting(found["max"], "max_connections", origin, workload.where)
    elif limit is None and "config_file" in command:
        limit = unknown("max_connections: its config_file could not be read", workload.where)
    elif limit is None and software and software.limit:
        limit = unknown(f"{software.name}: {software.limit}", workload.where)
    reserves = {
        f"{name}_connections": setting(value, f"{name}_connections", origin, workload.where)
        for name, value in found.items()
        if name != "max"
    }
    return Database(
        name=workload.name,
        kind=_KINDS.get(engine, engine),
        engine=engine,
        where=workload.where,
        max_connections=limit or defaults.max_connections,
        reserved=reserve(defaults.engine, {**SERVER_RESERVE, **reserves}),
        resources=(workload.resource,) if workload.resource else (),
        hosts=workload.hosts,
    )
