"""All findings about a project, and the `[tool.poolkit]` table that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.errors import ConfigurationError
from poolkit.init.applications import FUNCTIONS, WEB, Application, applications_in
from poolkit.init.interpreter import Interpreter, find_interpreter, interpreter_at, own_interpreter
from poolkit.init.routes import (
    LOGIN,
    Description,
    described,
    is_health,
    plain_routes,
    read_from_source,
    tasks_of,
)
from poolkit.init.schema import NOT_IN_THE_WHEEL, Schema, schema_of, tables_of
from poolkit.init.servers import asgi_server, wsgi_server
from poolkit.init.sources import CODE_FOLDERS, Sources
from poolkit.init.templates import function_numbers
from poolkit.init.variables import Variables, variables_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")
_DEBIAN_FILES = Path("/usr/share/postgresql")


@dataclass(frozen=True, kw_only=True)
class Deployable:
    """One application, as a target would run it."""

    application: Application
    target: str
    """The name of its table."""
    table: dict[str, Any]
    """Its keys, without `locustfile`."""
    description: Description = field(default_factory=Description)
    server: str = ""
    """What serves it, for people."""
    tasks: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Celery's tasks: names and parameters."""
    tables: tuple[str, ...] = ()
    """The tables of its models."""
    broker: str = ""
    """The variable that names its broker."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a project consists of, as far as its files show."""

    root: Path
    folder: Path
    """The working directory of the application: the root, or a folder below it."""
    interpreter: Interpreter
    is_own_interpreter: bool
    deployables: tuple[Deployable, ...]
    others: tuple[Application, ...] = ()
    """Applications of the same kinds that were not taken."""
    variables: Variables = field(default_factory=Variables)
    schema: Schema = field(default_factory=Schema)
    python_path: str = ""
    """A folder of code below the working directory, such as `src`."""
    postgres_bin: str = ""
    """The programs of a server of this machine, if the embedded one lacks an extension."""
    missing: tuple[str, ...] = ()
    """What was not found, and how to set it."""

    @property
    def table(self) -> dict[str, Any]:
        """The table `[tool.poolkit]`, without targets and without keys that need no value."""
        found: dict[str, Any] = {}
        if not self.is_own_interpreter:
            found["python"] = _relative(self.interpreter.path, self.root)
        if self.folder != self.root:
            found["directory"] = self.folder.relative_to(self.root).as_posix()
        if self.schema.command:
            found["schema"] = list(self.schema.command)
        env = dict(self.variables.env)
        if self.python_path:
            env["PYTHONPATH"] = self.python_path
        if env:
            found["env"] = env
        if self.schema.extensions:
            found["extensions"] = list(self.schema.extensions)
        if self.postgres_bin:
            found["postgres_bin"] = self.postgres_bin
        return found


def find(
    root: Path, *, app: str = "", python: Path | None = None, imports: bool = True
) -> Findings:
    """Return what a folder's project consists of.

    Args:
        root: the project's folder.
        app: `module:attribute` of the application to take; by default the likeliest of each kind.
        python: its interpreter, if that is not to be searched for.
        imports: whether the application may be imported, in its own interpreter, for its paths.

    Raises:
        ConfigurationError: there is no application, or none of that name.
    """
    sources = Sources.read(root)
    every = applications_in(sources)
    chosen = _chosen(every, app, sources)
    first = chosen[0]
    folder, python_path = _working_directory(first, root)
    places = list(dict.fromkeys((folder, root, *root.parents[:1])))
    interpreter = interpreter_at(python) if python is not None else find_interpreter(places)
    own = interpreter is None
    interpreter = interpreter or own_interpreter()
    is_django = first.framework == "django"
    variables = variables_of(sources, folder, None if own else interpreter, is_django=is_django)
    if not any(a.framework == "celery" for a in chosen):
        variables = replace(variables, broker=())
    schema = schema_of(sources, folder, next((a for a in chosen if a.framework in WEB), first))
    found = Findings(
        root=root,
        folder=folder,
        interpreter=interpreter,
        is_own_interpreter=own,
        deployables=(),
        others=tuple(a for a in every if a not in chosen),
        variables=variables,
        schema=schema,
        python_path=python_path,
        postgres_bin=_other_server(lacking) if (lacking := _lacking(schema)) else "",
    )
    deployables = tuple(
        _deployable(application, found, sources, imports=imports) for application in chosen
    )
    found = replace(found, deployables=deployables)
    return replace(found, missing=tuple(_missing(found)))


def _chosen(every: Sequence[Application], app: str, sources: Sources) -> list[Application]:
    """Return the application that was named, or the likeliest of each kind of target."""
    root = sources.root
    if app:
        wanted = app.removesuffix("()")
        for application in every:
            if wanted in (application.name, application.name.replace(":", ".")):
                return [application]
        module_name, _, attribute = wanted.partition(":")
        module = next((m for m in sources.modules if m.name == module_name), None)
        if module is not None and attribute:
            # Made in a way that its source does not show; its import will.
            is_factory = wanted != app
            other = Application(
                framework="other",
                module=module,
                attribute=attribute,
                is_factory=is_factory,
                is_asgi=True,
            )
            return [other]
        raise ConfigurationError(
            f"--app {app}: there is no such application in {root}"
            + (f"; there are: {', '.join(a.name for a in every)}" if every else "")
        )
    chosen: list[Application] = []
    for frameworks in (WEB, ("mangum", "powertools"), ("celery",)):
        of_kind = [a for a in every if a.framework in frameworks]
        if chosen and of_kind:
            # The others belong to the same deployment as the first.
            of_kind = [a for a in of_kind if a.root == chosen[0].root]
        chosen += of_kind[:1]
    if not chosen:
        chosen = [a for a in every if a.framework in FUNCTIONS][:1]
    if not chosen:
        raise ConfigurationError(
            f"found no application in {root}: no FastAPI, Starlette, Flask, Django, Mangum, Powertools "
            "or Celery object, and no function handler(event, context); go to the project's folder, "
            "or name the application: --app package.module:application"
        )
    return chosen


def _working_directory(application: Application, root: Path) -> tuple[Path, str]:
    """Return the working directory, and the folder of the code if that is another.

    A layout with `src` runs from the folder above, where its settings and migrations are.
    """
    import_root = application.root
    if import_root.name in CODE_FOLDERS and import_root != root:
        return import_root.parent, import_root.name
    return import_root, ""


def _deployable(
    application: Application, found: Findings, sources: Sources, *, imports: bool
) -> Deployable:
    if application.framework == "celery":
        return _worker(application, found, sources)
    description = _description(application, found, sources, imports=imports)
    if application.framework in FUNCTIONS:
        return _function(application, description, sources)
    is_factory = description.is_factory or application.is_factory
    is_asgi = application.is_asgi
    if description.kind:
        is_asgi = description.kind == "asgi"
    if is_asgi:
        served = asgi_server(application, sources, is_factory=is_factory)
    else:
        served = wsgi_server(
            application, sources, found.interpreter, found.folder, is_factory=is_factory
        )
    table = {"kind": "web", **served.table}
    paths = {route.path for route in description.routes if route.method == "GET"}
    ready = next((path for path in sorted(paths, key=_readiness) if is_health(path)), "")
    # A path from the source may lack the prefix of its router.
    if ready and description.kind:
        table["ready"] = ready
    return Deployable(
        application=application,
        target="web",
        table=table,
        description=description,
        server=served.name,
    )


def _description(
    application: Application, found: Findings, sources: Sources, *, imports: bool
) -> Description:
    """Return what the application says of itself, or else what its source says."""
    description = Description()
    if imports:
        description = described(
            application.name,
            application.framework,
            interpreter=found.interpreter,
            folder=found.folder,
            env=found.table.get("env", {}),
        )
    if not description.origin:
        static = read_from_source(sources, application)
        return replace(static, failure=description.failure)
    if application.framework in ("flask", "django"):
        # Only its source shows which of its paths want a login.
        return description.with_needs(read_from_source(sources, application))
    return description


def _function(application: Application, description: Description, sources: Sources) -> Deployable:
    handler = application.name.replace(":", ".")
    table: dict[str, Any] = {"kind": "lambda", "handler": handler}
    if application.event != "http":
        table["event"] = application.event
    return Deployable(
        application=application,
        target="function",
        table={**table, **function_numbers(sources, handler)},
        description=description,
        server="the local Lambda fleet",
    )


def _readiness(path: str) -> tuple[int, str]:
    """Return the order of health checks: one that asks the database comes before `/ping`."""
    words = ("ready", "health", "live")
    return next((i for i, word in enumerate(words) if word in path), len(words)), path


def _worker(application: Application, found: Findings, sources: Sources) -> Deployable:
    name = application.name.replace(":", ".") if application.is_factory else application.name
    command = [
        *("{python}", "-m", "celery", "--app", name, "worker"),
        *("--concurrency", "{processes}"),
    ]
    return Deployable(
        application=application,
        target="worker",
        table={"kind": "worker", "command": command, "processes": 4},
        server="Celery",
        tasks=tuple((n, tuple(p)) for n, p in tasks_of(sources, application.root)),
        tables=tuple(tables_of(sources, application.root)),
        broker=next((v.name for v in found.variables.broker), "BROKER_URL"),
    )


def _missing(found: Findings) -> list[str]:
    """Return what a user should look at, one line each."""
    variables, schema = found.variables, found.schema
    lines = list(variables.notes)
    if found.is_own_interpreter:
        lines.append(
            "no .venv, venv or activated environment: targets run in poolkit's own interpreter; "
            "set python"
        )
    if not variables.database and not variables.notes:
        lines.append(
            "no variable that names the database: it must read DATABASE_URL, or what env sets"
        )
    lines += [line for deployable in found.deployables for line in _missing_of(deployable, found)]
    lines += schema.notes
    if not schema.command and not schema.notes:
        lines.append("no migrations (Alembic, Flask-Migrate, manage.py): set schema to the command")
    unset = [v.name for v in variables.required if not v.value]
    if unset:
        lines.append(f"settings without a value in .env: {', '.join(unset)}; set them in env")
    if (lacking := _lacking(schema)) and not found.postgres_bin:
        lines.append(
            f"the embedded PostgreSQL lacks {', '.join(lacking)}: set postgres_bin to a server's "
            "programs, such as /usr/lib/postgresql/15/bin"
        )
    if schema.seeds:
        words = " ".join(schema.seeds[0][1:])
        lines.append(f"{words} looks like a seed; it is in the file as a comment")
    return lines


def _missing_of(deployable: Deployable, found: Findings) -> Iterator[str]:
    """Yield what one deployable needs from its user."""
    application, routes = deployable.application, deployable.description.routes
    is_served = deployable.server.startswith("uvicorn")
    if is_served and not found.interpreter.has("uvicorn") and not found.is_own_interpreter:
        yield f"uvicorn is not in {found.interpreter.origin}: install it there"
    if application.framework == "celery" and application.is_made_by_function:
        yield f"{application.name} is a function: `celery --app` needs the object itself"
    with_login = sum(LOGIN in route.needs for route in routes)
    if routes and not any(not is_health(route.path) for route in plain_routes(routes)):
        yield (
            "no path but health checks answers without parameters and login: complete the locustfile"
        )
    elif with_login > len(routes) / 2:
        yield f"{with_login} of {len(routes)} paths want a login: complete on_start in its locustfile"


def _lacking(schema: Schema) -> list[str]:
    return [name for name in schema.extensions if name in NOT_IN_THE_WHEEL]


def _other_server(extensions: Sequence[str]) -> str:
    """Return the programs of a Debian PostgreSQL with these extensions, the newest, or nothing."""
    for folder in sorted(_DEBIAN_PROGRAMS.glob("[1-9][0-9]"), reverse=True):
        controls = [
            _DEBIAN_FILES / folder.name / f"extension/{name}.control" for name in extensions
        ]
        if (folder / "bin/postgres").is_file() and all(map(Path.is_file, controls)):
            return str(folder / "bin")
    return ""


def _relative(path: Path, root: Path) -> str:
    absolute = path.absolute()
    if absolute.is_relative_to(root):
        return absolute.relative_to(root).as_posix()
    return str(absolute)
