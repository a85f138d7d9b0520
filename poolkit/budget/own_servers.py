"""PgBouncer and PostgreSQL in containers of the deployment itself.

Sources: PgBouncer, "Configuration" (default_pool_size 20, reserve_pool_size 0,
max_db_connections 0 for no limit, max_client_conn 100; a pool is a pair of database and user);
PostgreSQL, 19.3.1 (max_connections 100, superuser_reserved_connections 3). The variables are
those of the images edoburu/pgbouncer and bitnami/pgbouncer.
"""

from __future__ import annotations

import configparser
import re
from typing import TYPE_CHECKING

from poolkit.budget.model import Database, Pooler, Quantity, known, unknown

if TYPE_CHECKING:
    from poolkit.budget.model import Workload

_POOL_SIZE, _RESERVE, _MOST_OF_DATABASE, _CLIENTS = (
    "default_pool_size",
    "reserve_pool_size",
    "max_db_connections",
    "max_client_conn",
)
_DEFAULTS = {_POOL_SIZE: 20, _RESERVE: 0, _MOST_OF_DATABASE: 0, _CLIENTS: 100}
_OWN_VARIABLE = re.compile(r"PGBOUNCER_|DB_|DATABASE_URL|POSTGRESQL_|POOL_MODE|DATABASES_")
_SETTING = re.compile(
    r"(?:^|[\s=]|--|-c)(max|superuser_reserved|reserved)[-_]connections(?:\s*=\s*|[ \t]+)'?([^\s'#]+)",
    re.MULTILINE,
)
_COMMENT = re.compile(r"#.*")


# -- PgBouncer ------------------------------------------------------------------------------


def pgbouncer(workload: Workload, pools: int | None) -> Pooler:
    """Return the server connections and the client limit of a PgBouncer.

    Args:
        workload: the container.
        pools: the number of pairs of database and user; None: as in its settings.

    """
    ini = None
    for name, text in workload.mounted.items():
        if name.endswith(".ini") and "[pgbouncer]" in text and ini is None:
            parser = configparser.ConfigParser(
                interpolation=None, strict=False, comment_prefixes=(";", "#")
            )
            try:
                parser.read_string(text)
            except configparser.Error:
                continue
            ini = parser
    # An image without any variable of its own may hold a complete pgbouncer.ini.
    has_variables = any(map(_OWN_VARIABLE.match, workload.variables))
    is_unread = bool(workload.unread_variables) or (ini is None and not has_variables)
    settings: dict[str, Quantity] = {}
    for name, default in _DEFAULTS.items():
        variables = (name.upper(), f"PGBOUNCER_{name.upper()}")
        variable = next((each for each in variables if each in workload.variables), None)
        written = ini.get("pgbouncer", name, fallback=None) if ini else None
        if variable is not None:
            settings[name] = _of_variable(workload, variable)
        elif written is not None and written.strip().isdecimal():
            settings[name] = known(int(written), f"pgbouncer.ini ({name})", workload.where)
        elif written is not None:
            settings[name] = unknown(f"pgbouncer.ini: {name} is {written!r}", workload.where)
        elif is_unread:
            reason = f"{name}: the configuration of this PgBouncer could not be read"
            settings[name] = unknown(reason, workload.where)
        else:
            settings[name] = known(default, f"PgBouncer's default {name}", workload.where)
    return Pooler(
        name=workload.name,
        kind="PgBouncer",
        where=workload.where,
        instances=workload.instances,
        overlap=workload.overlap,
        server_connections=_server_connections(workload, ini, settings, pools),
        clients=settings[_CLIENTS],
        resource=workload.resource,
        hosts=workload.hosts,
    )


def _of_variable(workload: Workload, name: str) -> Quantity:
    found = workload.variables[name]
    if found.text is None or not found.text.strip().isdecimal():
        reason = found.reason or f"{found.text!r} is not a number"
        return unknown(f"{name}: {reason}", workload.where)
    return known(int(found.text), f"{found.origin} ({name})", workload.where)


def _server_connections(
    workload: Workload,
    ini: configparser.ConfigParser | None,
    settings: dict[str, Quantity],
    pools: int | None,
) -> Quantity:
    """Return pools x (default_pool_size + reserve_pool_size), or max_db_connections per database."""
    # Without a pgbouncer.ini, the images' variables name one database and one user.
    databases: int | None = 1
    has_forced_users = True
    if ini is not None:
        listed = dict(ini["databases"]) if ini.has_section("databases") else {}
        # A * stands for any number of databases.
        databases = None if not listed or "*" in listed else len(listed)
        has_forced_users = all(re.search(r"\buser\s*=", text) for text in listed.values())
    most, size, reserve = settings[_MOST_OF_DATABASE], settings[_POOL_SIZE], settings[_RESERVE]
    if most.value and databases is not None:
        origin = f"{most.origin} x {databases} database(s)"
        return known(most.value * databases, origin, workload.where)
    unclear = next((each for each in (most, size, reserve) if each.value is None), None)
    if unclear is not None:
        return unclear
    if pools is None and has_forced_users:
        pools = databases
    if pools is None:
        return unknown(
            "the number of pairs of database and user is unknown; give --pgbouncer-pools N, or "
            "set max_db_connections",
            workload.where,
        )
    each = (size.value or 0) + (reserve.value or 0)
    return known(pools * each, f"{pools} pool(s) x {each}: {size.origin}", workload.where)


# -- PostgreSQL -----------------------------------------------------------------------------


def postgres(workload: Workload) -> Database:
    """Return the limits of a PostgreSQL server in a container."""
    files = [_COMMENT.sub("", text) for text in workload.mounted.values()]
    command = " ".join(workload.command or ())
    # -N is short for max_connections. The command line comes last, because it wins.
    words = re.sub(r"(^|\s)-N *", r"\1-c max_connections=", command)
    found = {match[1]: match[2] for match in _SETTING.finditer("\n".join([*files, words]))}
    if "max" in found:
        limit = _set_to(found["max"], "max_connections", workload)
    elif "POSTGRESQL_MAX_CONNECTIONS" in workload.variables:
        limit = _of_variable(workload, "POSTGRESQL_MAX_CONNECTIONS")
    elif "config_file" in command:
        limit = unknown("max_connections: its config_file could not be read", workload.where)
    else:
        limit = known(100, f"{workload.where}: PostgreSQL's default", workload.where)
    superuser = _set_to(
        found.get("superuser_reserved", "3"), "superuser_reserved_connections", workload
    )
    others = _set_to(found.get("reserved", "0"), "reserved_connections", workload)
    reserved = next((each for each in (superuser, others) if not each.is_known), None)
    if reserved is None:
        numbers = {"superuser_reserved_connections": superuser, "reserved_connections": others}
        labels = [f"{number} {name}" for name, number in numbers.items() if number.value]
        both = (superuser.value or 0) + (others.value or 0)
        reserved = known(both, " + ".join(labels), workload.where)
    return Database(
        name=workload.name,
        kind="PostgreSQL",
        where=workload.where,
        max_connections=limit,
        reserved=reserved,
        resources=(workload.resource,) if workload.resource else (),
        hosts=workload.hosts,
    )


def _set_to(text: str, name: str, workload: Workload) -> Quantity:
    if text.isdecimal():
        return known(int(text), workload.command_origin or str(workload.where), workload.where)
    return unknown(f"{name} is {text!r}, which is not a number", workload.where)
