"""All findings about a project, and the `[tool.poolkit]` table that follows from them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from itertools import pairwise
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
from poolkit.init.schema import NOT_IN_THE_WHEEL, Schema, schema_of
from poolkit.init.sources import CODE_FOLDERS, Sources
from poolkit.init.templates import function_numbers
from poolkit.init.variables import Variables, variables_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_UVICORN_FACTORY = (
    "{python}",
    "-m",
    "uvicorn",
    "--factory",
    "--host",
    "127.0.0.1",
    "--port",
    "{port}",
)
_STARTS_SERVERS = re.compile(r"Procfile|Dockerfile[\w.-]*|.*\.sh|(docker-)?compose[\w.-]*\.ya?ml")
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
    env = {**found.table.get("env", {})}
    description = Description()
    if imports:
        description = described(
            application.name,
            application.framework,
            interpreter=found.interpreter,
            folder=found.folder,
            env=env,
        )
    if not description.origin:
        static = read_from_source(sources, application)
        description = replace(static, failure=description.failure)
    elif application.framework in ("flask", "django"):
        # Only its source shows which of its paths want a login.
        description = description.with_needs(read_from_source(sources, application))
    if application.framework in FUNCTIONS:
        table: dict[str, Any] = {
            "kind": "lambda",
            "handler": application.name.replace(":", "."),
        }
        if application.event != "http":
            table["event"] = application.event
        table |= function_numbers(sources, table["handler"])
        return Deployable(
            application=application,
            target="function",
            table=table,
            description=description,
            server="the local Lambda fleet",
        )
    is_asgi = description.kind == "asgi" or (not description.kind and application.is_asgi)
    name = application.name
    is_factory = description.is_factory or application.is_factory
    table, server = (
        _asgi(name, sources, is_factory=is_factory)
        if is_asgi
        else _wsgi(application, found, sources, is_factory=is_factory)
    )
    table = {"kind": "web", **table}
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
        server=server,
    )


def _readiness(path: str) -> tuple[int, str]:
    """Return the order of health checks: one that asks the database comes before `/ping`."""
    words = ("ready", "health", "live")
    return next((i for i, word in enumerate(words) if word in path), len(words)), path


def _asgi(name: str, sources: Sources, *, is_factory: bool) -> tuple[dict[str, Any], str]:
    """Return uvicorn with as many processes as the project's own server has."""
    options, origin = _server_options(sources, ("uvicorn", "gunicorn", "fastapi", "hypercorn"))
    processes = _whole(options.get("--workers", ""))
    workers = ("--workers", "{processes}") if processes > 1 else ()
    table: dict[str, Any] = {"app": name}
    if is_factory:
        table = {"command": [*_UVICORN_FACTORY, *workers, name]}
    if processes > 1:
        table["processes"] = processes
    return table, f"uvicorn{origin if processes > 1 else ''}"


def _whole(text: str) -> int:
    return int(text) if text.isdigit() and 1 <= int(text) <= 64 else 1


def _wsgi(
    application: Application, found: Findings, sources: Sources, *, is_factory: bool
) -> tuple[dict[str, Any], str]:
    """Return the server of a WSGI application: the project's own, or a development server."""
    name = f"{application.name}()" if is_factory else application.name
    if found.interpreter.has("gunicorn"):
        options, origin = _server_options(sources, ("gunicorn",))
        processes = _whole(options.pop("--workers", ""))
        if not options:
            options = {"--threads": "8"}
        words = [word for pair in options.items() for word in pair]
        command = [
            *("{python}", "-m", "gunicorn", "--bind", "127.0.0.1:{port}"),
            *("--workers", "{processes}", *words, name),
        ]
        table: dict[str, Any] = {"command": command}
        if processes > 1:
            table["processes"] = processes
        return table, f"gunicorn{origin}"
    if found.interpreter.has("waitress"):
        call = ["--call"] if is_factory else []
        target = application.name
        command = ["{python}", "-m", "waitress", "--listen", "127.0.0.1:{port}", *call, target]
        return {"command": command}, "waitress"
    if application.framework == "django":
        manage = next((p for p in sources.files if p.name == "manage.py"), None)
        script = os.path.relpath(manage, found.folder) if manage else "manage.py"
        command = ["{python}", script, "runserver", "--noreload", "127.0.0.1:{port}"]
        return {
            "command": command
        }, "Django's development server: install gunicorn to measure a real one"
    if application.framework != "flask":
        raise ConfigurationError(
            f"{application.name} is a WSGI application, and its environment has no server for it: "
            f"install gunicorn there ({found.interpreter.path})"
        )
    command = [
        *("{python}", "-m", "flask", "--app", application.name, "run"),
        *("--no-reload", "--no-debugger", "--port", "{port}"),
    ]
    return {
        "command": command
    }, "Flask's development server: install gunicorn to measure a real one"


def _server_options(sources: Sources, programs: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """Return the options of workers and threads with which the project itself starts a server.

    Args:
        sources: the project's files.
        programs: the servers that count.
    """
    wanted = {"-w": "--workers", "-k": "--worker-class"}
    for path in sources.files:
        if not _STARTS_SERVERS.fullmatch(path.name):
            continue
        text = path.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
        for line in text.splitlines():
            if line.lstrip().startswith(("#", "RUN")):
                continue
            # As a list, a command or an assignment: the words are the same.
            words = re.sub(r"[\[\],=\"']", " ", line).split()
            if not any(word.rpartition("/")[2] in programs for word in words):
                continue
            found = {}
            for option, value in pairwise(words):
                name = wanted.get(option, option)
                if name in ("--workers", "--threads", "--worker-class") and "$" not in value:
                    found[name] = value
            if found:
                return found, f" as in {path.relative_to(sources.root)}"
    return {}, ""


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
