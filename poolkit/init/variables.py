"""The variables from which an application takes its database, read from its source.

Three places name them: pydantic's settings classes, plain code (`os.environ`, `os.getenv`, `config()`,
`env()`), and `.env` files. Which part of a database a variable holds follows from its name.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from poolkit.init.sources import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from poolkit.init.runtime import Interpreter
    from poolkit.init.sources import Module, Sources

_OF_A_DATABASE = frozenset(
    ["DATABASE", "DB", "POSTGRES", "POSTGRESQL", "PG", "PGSQL", "PSQL", "SQL", "SQLALCHEMY", "RDS"]
)
_OF_SOMETHING_ELSE = frozenset(
    [
        "REDIS",
        "GEOLOCATION",
        "GEOIP",
        "MONGO",
        "MONGODB",
        "MYSQL",
        "SQLITE",
        "CELERY",
        "BROKER",
        "RABBITMQ",
        "TEST",
        "TESTING",
        "ELASTIC",
        "CACHE",
        "ADMIN",
    ]
)
_PARTS = {
    "{database_url}": ("URL", "URI", "DSN"),
    "{db_host}": ("HOST", "HOSTNAME", "SERVER", "ADDRESS"),
    "{db_port}": ("PORT",),
    "{db_user}": ("USER", "USERNAME"),
    "{db_password}": ("PASSWORD", "PASS", "PASSWD", "PWD"),
    "{db_user}:{db_password}": ("CREDENTIALS",),
    "{db_name}": ("NAME", "DB", "DATABASE", "DBNAME"),
}
_OF_LIBPQ = {
    "PGHOST": "{db_host}",
    "PGPORT": "{db_port}",
    "PGUSER": "{db_user}",
    "PGPASSWORD": "{db_password}",
    "PGDATABASE": "{db_name}",
}
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_SCHEME = re.compile(r"postgres(?:ql)?\+(\w+)(?:://|$)")
_HARD_CODED = re.compile(r"postgres(?:ql)?(?:\+\w+)?://[^\s{}$%]*@[^\s{}$%]+")
_ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*$", re.MULTILINE)
ENV_FILES = (".env", ".env.example", ".env.template", ".env.sample", ".env.dist", "env.example")


class Variable(NamedTuple):
    """A variable of the application, and the value that `poolkit compare` gives it."""

    name: str
    value: str
    origin: str
    """The file and line where it is read."""


@dataclass(frozen=True, kw_only=True)
class Variables:
    """What an application reads from its environment, as far as its source shows."""

    database: tuple[Variable, ...] = ()
    broker: tuple[Variable, ...] = ()
    required: tuple[Variable, ...] = ()
    """Settings without a default and without a line in `.env`; the value is `.env.example`'s."""
    notes: tuple[str, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        """The table `env`: what is different from what every target receives."""
        every = {v.name: v.value for v in (*self.database, *self.broker)}
        every |= {v.name: v.value for v in self.required if v.value}
        return {name: value for name, value in every.items() if (name, value) != _ALWAYS_SET}


_ALWAYS_SET = ("DATABASE_URL", "{database_url}")


def variables_of(
    sources: Sources, folder: Path, interpreter: Interpreter | None, *, is_django: bool
) -> Variables:
    """Return the variables of the application whose working directory is `folder`."""
    modules = [m for m in sources.modules if folder in (m.root, *m.root.parents)]
    read: dict[str, str] = {}
    required: dict[str, str] = {}
    for module in modules:
        for name, line in _read_in_code(module):
            read.setdefault(name, f"{module.path.relative_to(sources.root)}:{line}")
    for name, module, line, has_default in _SettingsClasses(modules).variables():
        origin = f"{module.path.relative_to(sources.root)}:{line}"
        read.setdefault(name, origin)
        if not has_default:
            required[name] = origin
    files = _env_files(folder, sources.root)
    if not any(part_of(name) for name in read):
        # Read by a library, or by a way that is not known here.
        read |= {name: file for file, values in files.items() for name in values if part_of(name)}
    driver = _driver_of(modules, interpreter)
    database = []
    for name, origin in read.items():
        if (value := _value_for(name, files, driver, modules if is_django else None)) is not None:
            database.append(Variable(name, value, origin))
    missing = []
    for name, origin in required.items():
        if name not in files.get(".env", {}) and part_of(name) is None and not _is_broker(name):
            example = next((values[name] for values in files.values() if values.get(name)), "")
            # A brace would be a placeholder.
            example = example.replace("{", "{{").replace("}", "}}")
            missing.append(Variable(name, example, origin))
    return Variables(
        database=tuple(database),
        broker=tuple(Variable(n, "{broker_url}", o) for n, o in read.items() if _is_broker(n)),
        required=tuple(missing),
        notes=tuple(_notes(modules, sources.root, has_variables=bool(database))),
    )


def part_of(name: str) -> str | None:
    """Return the placeholder for what a variable of this name holds, or None.

    `POSTGRES_SERVER` holds a host, `DATABASE__DB` a name; `REDIS_DB` and `TEST_DATABASE_URL` are none
    of the application's database.
    """
    name = name.upper()
    if name in _OF_LIBPQ:
        return _OF_LIBPQ[name]
    words = [word for word in name.split("_") if word]
    if len(words) < 2 or not set(words) & _OF_A_DATABASE or set(words) & _OF_SOMETHING_ELSE:
        return None
    last = words[-1]
    if last == "STRING" and "CONNECTION" in words:
        return "{database_url}"
    return next((value for value, endings in _PARTS.items() if last in endings), None)


def _is_broker(name: str) -> bool:
    words = set(name.upper().split("_"))
    return ("BROKER" in words and bool(words & {"URL", "URI"})) or name.upper() in (
        "REDIS_URL",
        "CELERY_RESULT_BACKEND",
        "CELERY_BACKEND_URL",
    )


# -- plain code -----------------------------------------------------------------------------


def _read_in_code(module: Module) -> Iterator[tuple[str, int]]:
    """Yield the variables that code reads by name, and the lines."""
    for node in module.nodes:
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            callee, name = module.full_name(node.value), node.slice.value
        elif isinstance(node, ast.Call):
            callee = module.full_name(node.func)
            first = node.args[0] if node.args else None
            name = first.value if isinstance(first, ast.Constant) else None
            if callee in ("dj_database_url.config", "environ.Env.db") or callee.endswith("env.db"):
                named = [k.value for k in node.keywords if k.arg == "env"]
                constant = named[0] if named else None
                name = constant.value if isinstance(constant, ast.Constant) else name
                name = name or "DATABASE_URL"
        else:
            continue
        if isinstance(name, str) and _VARIABLE.fullmatch(name) and _reads_environment(callee):
            yield name, node.lineno


def _reads_environment(callee: str) -> bool:
    """Return whether a function's or mapping's name is that of the environment.

    `os.environ.get`, `getenv`, `env`, `env.str`, `envir`, decouple's and Starlette's `config`; not
    Flask's `app.config`.
    """
    parts = callee.lower().split(".")
    if parts[-1] in ("setdefault", "pop"):
        return False
    if parts[-1] == "config":
        return parts in (["config"], ["decouple", "config"])
    return any(part.startswith(("env", "getenv")) for part in parts)


# -- pydantic's settings ----------------------------------------------------------------------


@dataclass(frozen=True)
class _SettingsClasses:
    """The classes of a project by their names; settings among them name variables."""

    modules: Iterable[Module]

    @cached_property
    def by_name(self) -> dict[str, tuple[Module, ast.ClassDef]]:
        return {
            node.name: (module, node)
            for module in self.modules
            for node in module.nodes
            if isinstance(node, ast.ClassDef)
        }

    def variables(self) -> Iterator[tuple[str, Module, int, bool]]:
        """Yield each variable with its place, and whether it has a default."""
        for name, (module, node) in self.by_name.items():
            # A base of other settings has no fields, and names its variables by them.
            has_fields = any(isinstance(each, ast.AnnAssign) for each in node.body)
            if self._is_settings(name) and has_fields:
                options = self._options(name)
                for each, line, has_default in self._fields(name, options, set()):
                    yield each, module, line, has_default

    def _bases(self, name: str) -> list[str]:
        if name not in self.by_name:
            return []
        _, node = self.by_name[name]
        return [_last_name(base) for base in node.bases]

    def _is_settings(self, name: str, depth: int = 0) -> bool:
        if name in ("BaseSettings", "PydanticBaseSettings"):
            return True
        return depth < 5 and any(self._is_settings(base, depth + 1) for base in self._bases(name))

    def _options(self, name: str, depth: int = 0) -> dict[str, str]:
        """Return the string options of the class's configuration, with those it inherits."""
        found: dict[str, str] = {}
        if name not in self.by_name or depth > 5:
            return found
        for base in self._bases(name):
            found |= self._options(base, depth + 1)
        for node in self.by_name[name][1].body:
            if isinstance(node, ast.Assign) and _last_name(node.targets[0]) == "model_config":
                call = node.value
                if isinstance(call, ast.Call):
                    found |= _texts((k.arg, k.value) for k in call.keywords)
                elif isinstance(call, ast.Dict):
                    found |= _texts(
                        (getattr(k, "value", None), v)
                        for k, v in zip(call.keys, call.values, strict=True)
                    )
            elif isinstance(node, ast.ClassDef) and node.name == "Config":
                found |= _texts(
                    (_last_name(each.targets[0]), each.value)
                    for each in node.body
                    if isinstance(each, ast.Assign)
                )
        return found

    def _fields(
        self, name: str, options: Mapping[str, str], seen: set[str]
    ) -> Iterator[tuple[str, int, bool]]:
        """Yield the variables of a settings class, and those of models nested in it."""
        if name in seen or name not in self.by_name:
            return
        seen = {*seen, name}
        for base in self._bases(name):
            yield from self._fields(base, options, seen)
        prefix, delimiter = options.get("env_prefix", ""), options.get("env_nested_delimiter", "")
        for node in self.by_name[name][1].body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            own = node.target.id
            if (
                own.startswith("_")
                or own == "model_config"
                or "ClassVar" in ast.dump(node.annotation)
            ):
                continue
            inner = _last_name(node.annotation)
            if delimiter and inner in self.by_name and not self._is_settings(inner):
                nested = {**options, "env_prefix": f"{prefix}{own}{delimiter}"}
                yield from self._fields(inner, nested, seen)
                continue
            aliases, has_default = _field_call(node.value)
            optional = "None" in ast.dump(node.annotation) and node.value is not None
            for each in aliases or [f"{prefix}{own}"]:
                yield each.upper(), node.lineno, has_default or optional


def _field_call(value: ast.expr | None) -> tuple[list[str], bool]:
    """Return the names that `Field(...)` gives a variable, and whether there is a default."""
    if not isinstance(value, ast.Call) or _last_name(value.func) != "Field":
        return [], value is not None
    aliases = []
    for keyword in value.keywords:
        if keyword.arg in ("alias", "validation_alias", "env"):
            aliases += [
                each.value
                for each in ast.walk(keyword.value)
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            ]
    first = value.args[0] if value.args else None
    given = first is not None and not (isinstance(first, ast.Constant) and first.value is ...)
    return aliases, given or any(k.arg in ("default", "default_factory") for k in value.keywords)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return ""


def _texts(pairs: Iterable[tuple[str | None, ast.expr]]) -> dict[str, str]:
    return {
        key: value.value
        for key, value in pairs
        if key and isinstance(value, ast.Constant) and isinstance(value.value, str)
    }


# -- .env files, drivers ------------------------------------------------------------------------


def _env_files(folder: Path, root: Path) -> dict[str, dict[str, str]]:
    """Return the values of each `.env` file, of the working directory before the root's."""
    found: dict[str, dict[str, str]] = {}
    for name in ENV_FILES:
        path = next((f / name for f in (folder, root) if (f / name).is_file()), None)
        if path is not None:
            lines = _ASSIGNMENT.findall(text_of(path))
            found[name] = {variable.upper(): value.strip("'\"") for variable, value in lines}
    return found


def _driver_of(modules: Iterable[Module], interpreter: Interpreter | None) -> str:
    """Return the driver that a URL has to name for this application; empty if a bare one does."""
    drivers: dict[str, int] = {}
    bare = is_async = False
    for module in modules:
        for node in module.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for driver in _SCHEME.findall(node.value):
                    drivers[driver] = drivers.get(driver, 0) + 1
                bare |= node.value in ("postgres://", "postgresql://")
            elif isinstance(node, ast.Call):
                is_async |= _last_name(node.func) == "create_async_engine"
    if drivers or bare:
        # It names its own driver where it makes the URL, or replaces the scheme of a bare one.
        return ""
    installed = interpreter.packages if interpreter is not None else {}
    if is_async:
        return "asyncpg" if "asyncpg" in installed or "psycopg" not in installed else "psycopg"
    has_psycopg2 = {"psycopg2", "psycopg2-binary"} & set(installed)
    if "psycopg" in installed and not has_psycopg2 and "sqlalchemy" in installed:
        return "psycopg"
    return ""


def _expects_heroku(modules: Iterable[Module]) -> bool:
    """Return whether code asks if a URL starts with the scheme that Heroku gives it."""
    return any(
        isinstance(node, ast.Call)
        and _last_name(node.func) == "startswith"
        and any(getattr(each, "value", None) == "postgres://" for each in node.args)
        for module in modules
        for node in module.nodes
    )


def _value_for(
    name: str,
    files: Mapping[str, Mapping[str, str]],
    driver: str,
    django: Iterable[Module] | None,
) -> str | None:
    """Return the value of a variable of the database, or None for any other variable.

    A URL has the driver that the application's own URLs name; those of Django name none.

    Args:
        name: of the variable.
        files: the values of `.env` files.
        driver: of the application's code.
        django: the modules of a project of Django.
    """
    value = part_of(name)
    words = name.split("_")
    if django is not None and words[-1] == "ENGINE" and set(words) & _OF_A_DATABASE:
        return "django.db.backends.postgresql"
    if value != "{database_url}":
        return value
    written = [values[name] for values in files.values() if values.get(name)]
    if written and "://" in written[0]:
        match = _SCHEME.match(written[0])
        driver = match[1] if match else ""
    elif "ASYNC" in words:
        driver = "asyncpg"
    elif django is not None:
        driver = ""
    if not driver and django is not None and _expects_heroku(django):
        return "postgres://{db_user}:{db_password}@{db_host}:{db_port}/{db_name}"
    return f"{{database_url:{driver}}}" if driver else value


def _notes(modules: Iterable[Module], root: Path, *, has_variables: bool) -> list[str]:
    """Return what in the code goes before the variables that `poolkit compare` sets.

    Args:
        modules: of the application.
        root: the project's folder.
        has_variables: whether the code reads its database from variables.
    """
    hard_coded, overriding = "", ""
    for module in modules:
        for node in module.nodes:
            where = f"{module.path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if _HARD_CODED.match(node.value) and not has_variables:
                    note = f"{where} names its database in the code; read DATABASE_URL there"
                    hard_coded = hard_coded or note
            elif isinstance(node, ast.Call) and _last_name(node.func) == "load_dotenv":
                options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                if options.get("override") is True:
                    note = (
                        f"{where}: load_dotenv(override=True) lets .env win over the variables "
                        "that `poolkit compare` sets; remove override there"
                    )
                    overriding = overriding or note
    return [note for note in (hard_coded, overriding) if note]
