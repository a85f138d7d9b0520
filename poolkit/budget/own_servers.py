"""PgBouncer and PostgreSQL that a deployment runs itself, in containers.

Sources: PgBouncer, "Configuration" (default_pool_size 20, reserve_pool_size 0,
max_db_connections 0 for no limit, max_client_conn 100; a pool is a pair of database and user);
PostgreSQL, 19.3.1 (max_connections 100, superuser_reserved_connections 3). The variables are
those of the images edoburu/pgbouncer and bitnami/pgbouncer.
"""

from __future__ import annotations

import configparser
import re
from typing import TYPE_CHECKING

from poolkit.budget.model import Database, Pooler, Variable
from poolkit.budget.processes.command_lines import names_program
from poolkit.budget.quantity import Quantity, known, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolkit.budget.model import Workload

POOL_SIZE, RESERVE, MOST_OF_DATABASE, CLIENTS = (
    "default_pool_size",
    "reserve_pool_size",
    "max_db_connections",
    "max_client_conn",
)
_DEFAULTS = {POOL_SIZE: 20, RESERVE: 0, MOST_OF_DATABASE: 0, CLIENTS: 100}
_POSTGRES_IMAGE = re.compile(
    r"(^|/)(postgres|postgresql|postgis|timescaledb|pgvector|spilo)[\w.-]*([:@]|$)"
)
_SETTING = re.compile(
    r"(?:^|[\s=]|--|-c)(max|superuser_reserved|reserved)[-_]connections(?:\s*=\s*|[ \t]+)'?([^\s'#]+)",
    re.MULTILINE,
)
_COMMENT = re.compile(r"#.*")
_RESERVES = {"superuser_reserved": 3, "reserved": 0}


def is_pgbouncer(workload: Workload) -> bool:
    """Tell whether a container is PgBouncer."""
    image = workload.image.partition("@")[0].rpartition("/")[2]
    if re.search(r"pgbouncer[_-]exporter", workload.image):
        return False
    return "pgbouncer" in image or names_program(workload, frozenset({"pgbouncer"}))


def is_postgres(workload: Workload) -> bool:
    """Tell whether a container is a PostgreSQL server."""
    return bool(_POSTGRES_IMAGE.search(workload.image)) and not names_program(
        workload, frozenset({"psql", "pg_dump", "pg_restore", "createdb"})
    )


# -- PgBouncer ------------------------------------------------------------------------------


def pgbouncer(workload: Workload, pools: int | None) -> Pooler:
    """Return what a PgBouncer opens and takes.

    Args:
        workload: the container.
        pools: how many pairs of database and user there are; None: as its settings tell.

    """
    ini = _ini(workload)
    settings = {name: _setting(workload, ini, name) for name in _DEFAULTS}
    return Pooler(
        name=workload.name,
        kind="PgBouncer",
        where=workload.where,
        instances=workload.instances,
        overlap=workload.overlap,
        server_connections=_server_connections(workload, ini, settings, pools),
        clients=settings[CLIENTS],
        resource=workload.resource,
        hosts=workload.hosts,
    )


def _ini(workload: Workload) -> configparser.ConfigParser | None:
    for name, text in workload.mounted.items():
        if name.endswith(".ini") and "[pgbouncer]" in text:
            parser = configparser.ConfigParser(
                interpolation=None, strict=False, comment_prefixes=(";", "#")
            )
            try:
                parser.read_string(text)
            except configparser.Error:
                continue
            return parser
    return None


def _setting(workload: Workload, ini: configparser.ConfigParser | None, name: str) -> Quantity:
    for prefix in ("", "PGBOUNCER_"):
        found = workload.variables.get(prefix + name.upper())
        if found is not None:
            return _of_variable(found, prefix + name.upper(), workload)
    written = ini.get("pgbouncer", name, fallback=None) if ini else None
    if written is not None:
        if written.strip().isdecimal():
            return known(int(written), f"pgbouncer.ini ({name})", workload.where)
        return unknown(f"pgbouncer.ini: {name} is {written!r}", workload.where)
    if workload.unread_variables or (ini is None and not _speaks_of_itself(workload)):
        return unknown(
            f"{name}: nothing that configures this PgBouncer could be read", workload.where
        )
    return known(_DEFAULTS[name], f"{_DEFAULTS[name]}, PgBouncer's default {name}", workload.where)


def _speaks_of_itself(workload: Workload) -> bool:
    """An image configured by variables has some; one without may hold a whole pgbouncer.ini."""
    return any(
        re.match(r"PGBOUNCER_|DB_|DATABASE_URL|POSTGRESQL_|POOL_MODE|DATABASES_", name)
        for name in workload.variables
    )


def _of_variable(found: Variable, name: str, workload: Workload) -> Quantity:
    if found.text is None or not found.text.strip().isdecimal():
        return unknown(f"{name}: {found.reason or f'{found.text!r} is no number'}", workload.where)
    return known(int(found.text), f"{found.origin} ({name})", workload.where)


def _server_connections(
    workload: Workload,
    ini: configparser.ConfigParser | None,
    settings: Mapping[str, Quantity],
    pools: int | None,
) -> Quantity:
    """Pools x (default_pool_size + reserve_pool_size); max_db_connections of each database."""
    databases = _databases(ini)
    most, size, reserve = settings[MOST_OF_DATABASE], settings[POOL_SIZE], settings[RESERVE]
    if most.value and databases is not None:
        return known(
            most.value * databases, f"{most.origin} x {databases} database(s)", workload.where
        )
    unclear = next((each for each in (most, size, reserve) if each.value is None), None)
    if unclear is not None:
        return unclear
    count = pools if pools is not None else _pools(workload, ini)
    if count is None:
        return unknown(
            "how many pairs of database and user it pools is not said; give --pgbouncer-pools N, "
            "or set max_db_connections",
            workload.where,
        )
    each = (size.value or 0) + (reserve.value or 0)
    shown = f"{count} pool(s) x {each}: {size.origin}"
    return known(count * each, shown, workload.where)


def _databases(ini: configparser.ConfigParser | None) -> int | None:
    """Count the databases; a `*` may be any number of them."""
    if ini is None:
        return 1
    listed = list(ini["databases"]) if ini.has_section("databases") else []
    return None if not listed or "*" in listed else len(listed)


def _pools(workload: Workload, ini: configparser.ConfigParser | None) -> int | None:
    if ini is None:
        # One database and one user are what the images' variables can name.
        return 1
    databases = _databases(ini)
    if databases is None:
        return None
    forced = [re.search(r"\buser\s*=", ini["databases"][name]) for name in ini["databases"]]
    return databases if all(forced) else None


# -- PostgreSQL -----------------------------------------------------------------------------


def postgres(workload: Workload) -> Database:
    """Return the limits of a PostgreSQL server in a container."""
    found = _settings(workload)
    limit = _limit(found, workload)
    return Database(
        name=workload.name,
        kind="PostgreSQL",
        where=workload.where,
        max_connections=limit,
        formula=f"max_connections {limit}" if limit.is_known else "",
        reserved=_reserved(found, workload),
        hosts=workload.hosts,
    )


def _settings(workload: Workload) -> dict[str, str]:
    """Return what the configuration files set, and over them the command line."""
    files = [_COMMENT.sub("", text) for text in workload.mounted.values()]
    # -N is max_connections by its short name.
    words = re.sub(r"(^|\s)-N *", r"\1-c max_connections=", " ".join(workload.command or ()))
    return {match[1]: match[2] for match in _SETTING.finditer("\n".join([*files, words]))}


def _limit(found: dict[str, str], workload: Workload) -> Quantity:
    written = workload.variables.get("POSTGRESQL_MAX_CONNECTIONS")
    if "max" in found:
        return _set_to(found["max"], "max_connections", workload)
    if written is not None:
        return _of_variable(written, "POSTGRESQL_MAX_CONNECTIONS", workload)
    if "config_file" in " ".join(workload.command or ()):
        return unknown("max_connections: its config_file could not be read", workload.where)
    return known(100, f"{workload.where}: PostgreSQL's default", workload.where)


def _reserved(found: dict[str, str], workload: Workload) -> Quantity:
    labels, total = [], 0
    for name, default in _RESERVES.items():
        set_to = _set_to(found.get(name, str(default)), f"{name}_connections", workload)
        if set_to.value is None:
            return set_to
        total += set_to.value
        labels += [f"{set_to} {name}_connections"] if set_to.value else []
    return known(total, " + ".join(labels), workload.where)


def _set_to(text: str, name: str, workload: Workload) -> Quantity:
    if text.isdecimal():
        return known(int(text), workload.command_origin or str(workload.where), workload.where)
    return unknown(f"{name} is {text!r}, which is no number here", workload.where)
