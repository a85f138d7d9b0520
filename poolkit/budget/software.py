"""What a container's image and command say: a database server, a pooler, a client, or no client.

The images stand in tables/software.toml; `[tool.poolkit.budget.software]` adds others. Sources of the
rest: PgBouncer, "Configuration" (a pool is a pair of database and user); PostgreSQL, 19.3.1.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from poolkit.budget.limits import SERVER_RESERVE, platform_limit, reserve, setting
from poolkit.budget.model import Database, Pooler, Quantity, known, product, unknown
from poolkit.budget.processes import PROGRAMS, names_program, started
from poolkit.budget.signs import SERVERS, engines_besides, hosts_in, is_about_database
from poolkit.budget.tables import table
from poolkit.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from poolkit.budget.model import Workload

_TAG = re.compile(r"@.*|:[^/]*$")
# A script in the image of a server that is not the server: it prepares, copies or waits.
_SCRIPT = re.compile(r"migrat|backup|dump|restore|seed|cron|wait|setup|\.(py|sql)\b")

_Sections: TypeAlias = "dict[str, dict[str, str]]"
_OWN_VARIABLE = re.compile(r"PGBOUNCER_|DB_|DATABASE_URL|POSTGRESQL_|POOL_MODE|DATABASES_")
_SETTING = re.compile(
    r"(?:^|[\s=]|--|-c)(max|superuser_reserved|reserved)[-_]connections(?:\s*=\s*|[ \t]+)'?([^\s'#]+)",
    re.MULTILINE,
)
_MENTION = re.compile(r"(?<!\w)max[-_]connections(?!\w)")
# Texts that change the settings in a way that is not understood.
_CHANGES = re.compile(r"(\.(sql|sh)|Dockerfile|initdb\.d/?)$")
_SETTINGS = re.compile(r"(?<!hba\.)(?<!ident\.)(conf(\.d|ig)?|mysql|postgresql|\.cnf|\.ini)/?$")
_KINDS = {"postgres": "PostgreSQL", "mysql": "MySQL"}
_COMMENT = re.compile(r"#.*")
_POOL_SIZE = re.compile(r"\bpool_size\s*=\s*(\d+)")
_HOST = re.compile(r"\bhost\s*=\s*([\w.-]+)")


@dataclass(frozen=True, kw_only=True)
class Software:
    """A piece of software that is known by its image."""

    name: str
    images: tuple[str, ...]
    role: Literal["server", "pooler", "client", "none"]
    engine: str = "postgres"
    """The engine, if it is a server."""
    pool: tuple[str, ...] = ()
    """The variables that set the most connections of one process, or a server's max_connections."""
    options: tuple[str, ...] = ()
    """The options of its command line that set them."""
    default: int | None = None
    """The connections without these variables; None: unknown."""
    overflow: int = 0
    """Further connections of one process."""
    embedded: bool = False
    """True if it stores its data in a file without a database among its variables."""
    further: str = ""
    """The variable that sets their number instead, or turns them off with `false`."""
    programs: tuple[str, ...] = ()
    """The programs by which a server or pooler is started."""
    limit: str = ""
    """Why a server's max_connections is unknown without the variables; empty: the default."""
    settings: str = ""
    """The settings that a server's image writes into its configuration file."""
    needs: tuple[str, ...] = ()
    """Variables of which one must be set, and no host, for the image to count."""

    def is_image(self, repository: str, variables: Collection[str]) -> bool:
        """Return whether a repository has one of the images."""
        is_client = any(each.endswith("HOST") for each in variables)
        if self.needs and (is_client or not set(self.needs) & set(variables)):
            return False
        return _is_one_of(repository, self.images)


@functools.cache
def _is_one_of(repository: str, images: tuple[str, ...]) -> bool:
    """Return whether a repository has one of the images; many workloads share their image."""
    last = repository.rpartition("/")[2]
    return any(
        fnmatchcase(f"/{repository}", f"*/{each}") if "/" in each else fnmatchcase(last, each)
        for each in images
    )


def software_table(
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Software, ...]:
    """Return the known software: that of a user, by image, and then that of the table.

    Example: `{"example/api": {"role": "client", "pool": "API_POOL", "default": 5}}`.

    Raises:
        BudgetError: an entry has another form.
    """
    found = [{"name": image, "images": image, **each} for image, each in (extra or {}).items()]
    try:
        own = tuple(_software(each) for each in found)
    except (TypeError, ValueError) as error:
        raise BudgetError(f"[tool.poolkit.budget.software]: {error}") from None
    return (*own, *_built_in())


@functools.cache
def _built_in() -> tuple[Software, ...]:
    return tuple(_software(each) for each in table("software")["software"])


def _software(entry: Mapping[str, Any]) -> Software:
    lists = ("images", "pool", "options", "programs", "needs")
    if isinstance(entry.get("pool"), int):
        entry = {**entry, "pool": (), "default": entry["pool"]}
    values: dict[str, Any] = {
        key: tuple([value] if isinstance(value, str) else value) if key in lists else value
        for key, value in entry.items()
    }
    if values.get("role") not in ("server", "pooler", "client", "none"):
        raise ValueError(f"{entry['name']}: role must be server, pooler, client or none")
    return Software(**values)


def software_of(workload: Workload, softwares: Collection[Software] = ()) -> Software | None:
    """Return the software of a workload's image, or of the image that it is built from."""
    for image in (workload.image, workload.base_image):
        repository = _TAG.sub("", image.strip()).lower()
        for each in (softwares or _built_in()) if repository else ():
            if each.is_image(repository, workload.variables):
                return each
    return None


def is_server(workload: Workload, softwares: Collection[Software] = ()) -> bool:
    """Return whether a container is a database server, and not a client with the same image."""
    found = software_of(workload, softwares)
    return found is not None and found.role == "server" and _runs(workload, found)


def is_pooler(workload: Workload, softwares: Collection[Software] = ()) -> bool:
    """Return whether a container is a pooler, by its image or its command."""
    found = software_of(workload, softwares)
    if found is not None and found.role == "pooler":
        return _runs(workload, found)
    return workload.unit != "init container" and names_program(workload, {"pgbouncer"})


def is_no_client(
    workload: Workload,
    engines: Collection[str] = ("postgres", "mysql"),
    softwares: Collection[Software] = (),
) -> str:
    """Return why a workload opens no connection to a database server; empty if it may.

    Args:
        workload: the workload.
        engines: the engines of the servers of the deployment; empty: only the software counts,
            since a setting names one of the servers.
        softwares: the known software.

    """
    found = software_of(workload, softwares)
    if found is not None and found.role == "none":
        # An image that is built on it may start another program.
        program, words = started(workload)[0], " ".join(workload.command or ())
        is_same = any(each.rpartition("/")[2] in words for each in found.images)
        if workload.image or is_same or program[:1] in ("", "-"):
            return f"{found.name} ({workload.image or workload.base_image}) connects to no database"
    return engines_besides(workload, set(engines) & SERVERS) if engines else ""


def _runs(workload: Workload, software: Software) -> bool:
    """Return whether a container runs the server or pooler of its image."""
    if workload.unit == "init container":
        return False
    program, text = started(workload)[0], " ".join(workload.command or ())
    if program in PROGRAMS["clients"]:
        return False
    if not program or program.startswith("-") or names_program(workload, set(software.programs)):
        return True
    return program not in {"python"} | PROGRAMS["shells"] and _SCRIPT.search(text) is None


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
    defaults: dict[str, int] = table("software")["pgbouncer"]
    size, spare, most, clients = (_setting(workload, ini, *each) for each in defaults.items())
    # Without a pgbouncer.ini, the images' variables name one database and one user. Without a name,
    # edoburu's image passes any database on, and with AUTH_QUERY any user.
    is_any = "edoburu/" in workload.image and (
        not {"DB_NAME", "DATABASE_URL"} & set(workload.variables)
        or "AUTH_QUERY" in workload.variables
    )
    listed = ini.get("databases", {}) if ini else {"*": ""} if is_any else {"": "user="}
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
    texts = {name: each.text or each.partly for name, each in workload.variables.items()}
    files = [software.settings if software else "", *workload.mounted.values(), *texts.values()]
    command = " ".join(workload.command or ())
    # -N is short for max_connections. The command line comes last, because it wins.
    words = re.sub(r"(^|\s)-N *", r"\1-c max_connections=", command)
    lines = [*(_COMMENT.sub("", text) for text in files), words]
    found = {match[1]: match[2] for match in _SETTING.finditer("\n".join(lines))}
    origin = workload.command_origin or str(workload.where)
    numbers = [workload.number(each) for each in (software.pool if software else ())]
    limit = next((each for each in numbers if each is not None), None)
    written = {name: text for name, text in texts.items() if text}
    written |= {**workload.mounted, "its command": words}
    unclear = [name for name, text in written.items() if _is_unclear(name, text)]
    if unclear and not _sets_limit(words):
        limit = unknown(f"max_connections: {unclear[0]} may set it", workload.where)
    elif "max" in found:
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


def _is_unclear(name: str, text: str) -> bool:
    """Return whether a text may set max_connections in a way that is not understood."""
    if not text:
        return _SETTINGS.search(name) is not None
    is_mentioned = _MENTION.search(_COMMENT.sub("", text)) is not None
    return is_mentioned and (_CHANGES.search(name) is not None or not _sets_limit(text))


def _sets_limit(text: str) -> bool:
    return any(match[1] == "max" for match in _SETTING.finditer(_COMMENT.sub("", text)))
