"""Poolers and database servers in containers of the deployment itself.

Sources: PgBouncer, "Configuration" (default_pool_size 20, reserve_pool_size 0,
max_db_connections 0 for no limit, max_client_conn 100; a pool is a pair of database and user);
PostgreSQL, 19.3.1; Pgpool-II, "Connections and Authentication" (num_init_children x max_pool). The
variables are those of the images edoburu/pgbouncer, bitnami/pgbouncer and bitnami/pgpool.
"""

from __future__ import annotations

import configparser
import contextlib
import math
import re
from typing import TYPE_CHECKING

from poolkit.budget.limits import server_limit, setting
from poolkit.budget.model import Database, Pooler, Quantity, known, total, unknown
from poolkit.budget.signs import hosts_in, is_about_database
from poolkit.budget.software import software_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from poolkit.budget.model import Workload
    from poolkit.budget.software import Software

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
    software = software_of(workload, softwares)
    kind = software.name if software and software.role == "pooler" else "PgBouncer"
    texts = [text for text in workload.mounted.values() if "[databases]" in text]
    texts += [each.text for each in workload.variables.values() if each.text]
    hosts = {host for text in texts for host in _HOST.findall(text)}
    for name, variable in workload.variables.items():
        if is_about_database(name, variable):
            hosts |= hosts_in(variable.partly if variable.text is None else variable.text)
    connections, clients = _of_pgbouncer(workload, pools)
    if kind != "PgBouncer":
        factors = [_variable(workload, each) for each in (software.pool if software else ())]
        given = [each.value for each in factors if each is not None and each.value is not None]
        connections = unknown(f"the pools of {kind} cannot be read from the files", workload.where)
        if given and len(given) == len(factors):
            connections = known(math.prod(given), f"{workload.where}: {kind}", workload.where)
        clients = None
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


def _of_pgbouncer(workload: Workload, pools: int | None) -> tuple[Quantity, Quantity | None]:
    """Return the most connections to the server, and the most clients.

    The connections are pools x (default_pool_size + reserve_pool_size), or max_db_connections of
    each database.
    """
    ini = None
    for name, text in workload.mounted.items():
        if name.endswith(".ini") and "[pgbouncer]" in text and ini is None:
            parser = configparser.ConfigParser(
                interpolation=None, strict=False, comment_prefixes=(";", "#")
            )
            with contextlib.suppress(configparser.Error):
                parser.read_string(text)
                ini = parser
    size, spare, most, clients = (_setting(workload, ini, *each) for each in _DEFAULTS.items())
    # Without a pgbouncer.ini, the images' variables name one database and one user.
    databases: int | None = 1
    has_forced_users = True
    if ini is not None:
        listed = dict(ini["databases"]) if ini.has_section("databases") else {}
        # A * stands for any number of databases.
        databases = None if not listed or "*" in listed else len(listed)
        has_forced_users = all(re.search(r"\buser\s*=", text) for text in listed.values())
    if most.value and databases is not None:
        origin = f"{most.origin} x {databases} database(s)"
        return known(most.value * databases, origin, workload.where), clients
    unclear = next((each for each in (most, size, spare) if each.value is None), None)
    if unclear is not None:
        return unclear, clients
    if pools is None and has_forced_users:
        pools = databases
    if pools is None:
        reason = (
            "the number of pairs of database and user is unknown; give --pgbouncer-pools N, or "
            "set max_db_connections"
        )
        return unknown(reason, workload.where), clients
    each = (size.value or 0) + (spare.value or 0)
    origin = f"{pools} pool(s) x {each}: {size.origin}"
    return known(pools * each, origin, workload.where), clients


def _setting(
    workload: Workload, ini: configparser.ConfigParser | None, name: str, default: int
) -> Quantity:
    """Return a setting of PgBouncer: of a variable, pgbouncer.ini, or its default."""
    for variable in (name.upper(), f"PGBOUNCER_{name.upper()}"):
        if (found := _variable(workload, variable)) is not None:
            return found
    written = ini.get("pgbouncer", name, fallback=None) if ini else None
    if written is not None:
        if written.strip().isdecimal():
            return known(int(written), f"pgbouncer.ini ({name})", workload.where)
        return unknown(f"pgbouncer.ini: {name} is {written!r}", workload.where)
    # An image without any variable of its own may hold a complete pgbouncer.ini.
    has_variables = any(map(_OWN_VARIABLE.match, workload.variables))
    if workload.unread_variables or (ini is None and not has_variables):
        reason = f"{name}: the configuration of this PgBouncer could not be read"
        return unknown(reason, workload.where)
    return known(default, f"PgBouncer's default {name}", workload.where)


def _variable(workload: Workload, name: str) -> Quantity | None:
    """Return the number in a variable, None if it is not set."""
    found = workload.variables.get(name)
    if found is None:
        return None
    if found.text is None or not found.text.strip().isdecimal():
        reason = found.reason or f"{found.text!r} is not a number"
        return unknown(f"{name}: {reason}", workload.where)
    return known(int(found.text), f"{found.origin} ({name})", workload.where)


# -- servers --------------------------------------------------------------------------------


def own_server(workload: Workload, softwares: Collection[Software] = ()) -> Database:
    """Return the limits of a database server in a container."""
    software = software_of(workload, softwares)
    engine = software.engine if software else "postgres"
    defaults = server_limit(engine, workload.where)
    files = [_COMMENT.sub("", text) for text in workload.mounted.values()]
    command = " ".join(workload.command or ())
    # -N is short for max_connections. The command line comes last, because it wins.
    words = re.sub(r"(^|\s)-N *", r"\1-c max_connections=", command)
    found = {match[1]: match[2] for match in _SETTING.finditer("\n".join([*files, words]))}
    origin = workload.command_origin or str(workload.where)
    variables = [_variable(workload, each) for each in (software.pool if software else ())]
    limit = next((each for each in variables if each is not None), None)
    if "max" in found:
        limit = setting(found["max"], "max_connections", origin, workload.where)
    elif limit is None and "config_file" in command:
        limit = unknown("max_connections: its config_file could not be read", workload.where)
    elif limit is None and software and software.by_memory:
        limit = unknown(f"{software.name} sets max_connections by the memory", workload.where)
    elif limit is None:
        limit = defaults.max_connections
    reserved = defaults.reserved
    if engine == "postgres" and len(found) > ("max" in found):
        names = {"superuser_reserved": "3", "reserved": "0"}
        parts = [
            setting(found.get(name, text), f"{name}_connections", origin, workload.where)
            for name, text in names.items()
        ]
        labels = [
            f"{each} {name}_connections"
            for each, name in zip(parts, names, strict=True)
            if each.value
        ]
        value = total(*(each.value for each in parts))
        unclear = next((each for each in parts if not each.is_known), None)
        reserved = unclear or known(value or 0, " + ".join(labels), workload.where)
    return Database(
        name=workload.name,
        kind=_KINDS.get(engine, engine),
        engine=engine,
        where=workload.where,
        max_connections=limit,
        reserved=reserved,
        resources=(workload.resource,) if workload.resource else (),
        hosts=workload.hosts,
    )
