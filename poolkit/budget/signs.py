"""The signs in a workload's variables and command line that it connects to a database server.

The names and values that count stand in tables/variable_names.toml. A sign may also speak against
it: a path to an SQLite file, or the URL of another store.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from poolkit.budget.tables import table

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from poolkit.budget.model import Variable, Workload

SERVERS = frozenset({"postgres", "mysql", "mssql", "oracle", "cockroachdb"})
"""The engines that are servers with a limit of connections."""

_NAMES = table("variable_names")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
_SCHEME = re.compile(r"\b([a-z][a-z0-9+:.-]*)://|\bjdbc:([a-z0-9]+):", re.IGNORECASE)
_FILE = re.compile(
    r"^(data source\s*=)?\S*(\.(sqlite3?|db3?|mmdb)([?;]\S*)?|:memory:)$|^file:", re.IGNORECASE
)
# The forms of libpq and of .NET: `host=db dbname=app`, `Server=db;Database=app`.
_PAIRS = re.compile(
    r"\b(host|server|data source)\s*=[^;]+.*\b(dbname|database|initial catalog)\s*=", re.IGNORECASE
)
_HOST = re.compile(
    r"(?:@|host=|server=|//(?=[^/@]*(?:/|$)))(?:tcp[:(])?\[?([a-z0-9][\w.-]*)\]?(?=[:/?,;)\s]|$)"
    r"|^([a-z0-9][\w.-]*)(?=(?::\d+)?(?:[/,;][^@]*)?$)",
    re.IGNORECASE,
)
NO_HOST = re.compile(
    r"(^|_)(DB|DATABASE|PGDATABASE|NAME|USER|USERNAME|PASSWORD|SCHEMA)$"
    r"|(PORT|PASSWORD|PASS|USERNAME|USER|TYPE|ENGINE|DRIVER|ADAPTER|DIALECT|VENDOR|SSLMODE)$"
)
"""The names of variables whose value is no host, although it may be the same text."""


class Sign(NamedTuple):
    """A variable, argument or mounted file that is about a database."""

    name: str
    engine: str | None
    """`postgres`, `mysql`, `sqlite`, ...; None: a server of an unknown engine."""

    @property
    def is_other_store(self) -> bool:
        """True if it is about no database server: an SQLite file, Redis, a web service."""
        return self.engine is not None and self.engine not in SERVERS


def database_signs(workload: Workload) -> list[Sign]:
    """Return what a workload's variables, arguments and mounted files show, in their order."""
    found = [sign(name, each) for name, each in workload.variables.items()]
    texts = {"its command line": "\n".join(workload.command or ()), **workload.mounted}
    found += [
        Sign(name, engine)
        for name, text in texts.items()
        if (engine := _engine_of_url(text)) in SERVERS
    ]
    signs = [each for each in found if each is not None]
    # DB_TYPE=sqlite or KC_DB=mysql decides for DB_HOST or KC_DB_URL, which name no engine.
    for name, variable in workload.variables.items():
        *prefix, last = _words(name)
        engine = _engine_of_kind(variable.text or "") if last in _NAMES["kinds"]["names"] else None
        for number, each in enumerate(signs):
            if each.engine is None and _words(each.name)[: len(prefix)] == prefix:
                signs[number] = each._replace(engine=engine)
    return signs


def uses_database(workload: Workload) -> bool:
    """Return whether a workload has a sign of a database server."""
    return any(not each.is_other_store for each in database_signs(workload))


def is_about_database(name: str, variable: Variable) -> bool:
    """Return whether a variable is about a database server, by its value or its name."""
    found = sign(name, variable)
    return found is not None and not found.is_other_store


def engines_besides(workload: Workload, engines: Collection[str]) -> str:
    """Return why a workload's settings lead to no server of these engines; empty if they may."""
    signs = database_signs(workload)
    is_open = bool(workload.unread_variables or workload.hidden_variables)
    # A sign beside the variables, such as depends_on, may be about a setting inside the image.
    if not signs or is_open or any(not each.is_network for each in workload.evidence):
        return ""
    if any(each.engine is None or each.engine in engines for each in signs):
        return ""
    named = ", ".join(f"{each.name} ({each.engine})" for each in signs[:3])
    return f"its settings are about another store: {named}"


def sign(name: str, variable: Variable) -> Sign | None:
    """Return what a variable shows about a database; None if it is about something else."""
    return _sign(name, (variable.partly if variable.text is None else variable.text).strip())


@functools.cache
def _sign(name: str, text: str) -> Sign | None:
    engine = _engine_of_url(text)
    if engine in SERVERS:
        return Sign(name, engine)
    is_about, by_name = _by_name(name)
    for host_engine, patterns in _NAMES["hosts"].items():
        if any(re.search(pattern, text) for pattern in patterns):
            return Sign(name, by_name or (None if host_engine == "unknown" else host_engine))
    if _PAIRS.search(text):
        return Sign(name, "sqlite" if _FILE.search(text) else by_name)
    if not is_about:
        return None
    words, files = _words(name), _NAMES["files"]
    if engine is None and _FILE.search(text):
        engine = "sqlite"
    is_path = text.startswith(("/", "./", "~")) and not set(files["except"]) & set(words)
    if engine is None and by_name != "sqlite" and is_path and words[-1] in files["names"]:
        # A folder or a script: it shows neither that a server is used, nor that none is.
        return None
    if engine is None and by_name is None and words[-1] in _NAMES["kinds"]["names"]:
        engine = _engine_of_kind(text)
    found = Sign(name, engine or by_name)
    may_be_beside = set(_NAMES["other_stores"]["beside"]) & set(words)
    return None if may_be_beside and found.is_other_store and found.engine != "sqlite" else found


def hosts_in(text: str) -> set[str]:
    """Return the hosts in a URL, a list of hosts or a text of `host=`, also by their first part."""
    hosts = {match[1] or match[2] for match in _HOST.finditer(text.strip())}
    # A host is also known by its first part, unless it is an address.
    return hosts | {each.partition(".")[0] for each in hosts if not each.replace(".", "").isdigit()}


def with_other_hosts(name: str, variable: Variable, names: Mapping[str, str]) -> Variable:
    """Return a variable with other names for the hosts in its text."""
    if not variable.text or NO_HOST.search(name.upper()):
        return variable

    def other(match: re.Match[str]) -> str:
        host = match[1] or match[2]
        return match[0].replace(host, names[host]) if host in names else match[0]

    return replace(variable, text=_HOST.sub(other, variable.text.strip()))


def _words(name: str) -> list[str]:
    return [each.upper() for each in _CAMEL.split(name) if each] or [""]


def _engine_of_kind(text: str) -> str | None:
    """Return the engine in a value such as `pgsql` or `django.db.backends.sqlite3`."""
    values = {text.lower(), *re.split(r"[.+:]", text.lower())}
    return next((each for each, known in _NAMES["kinds"].items() if values & set(known)), None)


def _engine_of_url(text: str) -> str | None:
    """Return the engine of the URLs in a text, a server's before another store's."""
    parts = [
        re.split(r"[+:.-]", (match[1] or match[2]).lower()) for match in _SCHEME.finditer(text)
    ]
    schemes = {part for each in parts for part in each}
    engines = [each for each, known in _NAMES["schemes"].items() if schemes & set(known)]
    return engines[0] if engines else None


@functools.cache
def _by_name(name: str) -> tuple[bool, str | None]:
    """Return whether a name is about a database, and the engine that it names."""
    words, parts = _words(name), "|".join(_NAMES["any"]["parts"])

    def has(terms: list[str], endings: tuple[str, ...] = ()) -> bool:
        pattern = re.compile(rf"({'|'.join(terms)})({parts})?\d*")
        return any(pattern.fullmatch(word) or word.endswith(endings) for word in words if word)

    joined = f" {' '.join(words)} "
    if any(f" {each} " in joined for each in _NAMES["any"]["except"]):
        return False, None
    for engine, terms in _NAMES["engines"].items():
        if has(terms):
            return True, engine
    if any(word.startswith(tuple(_NAMES["other_stores"]["words"])) for word in words):
        return False, None
    is_about = has(_NAMES["any"]["words"], tuple(_NAMES["any"]["endings"]))
    return is_about or any(f" {each} " in joined for each in _NAMES["any"]["phrases"]), None
