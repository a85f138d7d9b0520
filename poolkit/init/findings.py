"""All findings about a project, and the `[tool.poolkit]` table that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from poolkit.errors import ConfigurationError
from poolkit.init.applications import FUNCTIONS, WEB, Application, applications_in
from poolkit.init.routes import (
    LOGIN,
    Description,
    described,
    is_health,
    plain_routes,
    read_from_source,
    tasks_of,
)
from poolkit.init.runtime import (
    Interpreter,
    asgi_server,
    find_interpreter,
    function_numbers,
    interpreter_at,
    own_interpreter,
    wsgi_server,
)
from poolkit.init.schema import Schema, schema_of, server_with, tables_of
from poolkit.init.sources import CODE_FOLDERS, Sources
from poolkit.init.variables import Variables, variables_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


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

    def missing(self, found: Findings) -> Iterator[str]:
        """Yield what it needs from its user, one line each."""
        application, routes = self.application, self.description.routes
        is_served = self.server.startswith("uvicorn")
        if is_served and not found.interpreter.has("uvicorn") and not found.is_own_interpreter:
            yield f"uvicorn is not in {found.interpreter.origin}: install it there"
        if application.framework == "celery" and application.is_made_by_function:
            yield f"{application.name} is a function: `celery --app` needs the object itself"
        signup = self.description.signup
        with_login = sum(LOGIN in route.needs for route in routes)
        if routes and not any(not is_health(route.path) for route in plain_routes(routes, signup)):
            yield (
                "no path but health checks answers without parameters and login: "
                "complete the locustfile"
            )
        elif with_login > len(routes) / 2 and signup is None:
            yield (
                f"{with_login} of {len(routes)} paths want a login: "
                "complete on_start in its locustfile"
            )


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

    @property
    def table(self) -> dict[str, Any]:
        """The table `[tool.poolkit]`, without targets and without keys that need no value."""
        found: dict[str, Any] = {}
        if not self.is_own_interpreter:
            path = self.interpreter.path.absolute()
            inside = path.is_relative_to(self.root)
            found["python"] = (path.relative_to(self.root) if inside else path).as_posix()
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

    @property
    def missing(self) -> list[str]:
        """What was not found or is not clear, and what to set, one line each."""
        variables, schema = self.variables, self.schema
        lines = list(variables.notes)
        if self.is_own_interpreter:
            lines.append(
                "no .venv, venv or activated environment: targets run in poolkit's own "
                "interpreter; set python"
            )
        if not variables.database and not variables.notes:
            lines.append(
                "no variable that names the database: it must read DATABASE_URL, or what env sets"
            )
        for deployable in self.deployables:
            lines += deployable.missing(self)
        lines += schema.notes
        if not schema.command and not schema.notes:
            lines.append(
                "no migrations (Alembic, Flask-Migrate, manage.py): set schema to the command"
            )
        unset = [v.name for v in variables.required if not v.value]
        if unset:
            lines.append(f"settings without a value in .env: {', '.join(unset)}; set them in env")
        if schema.lacking and not self.postgres_bin:
            lines.append(
                f"the embedded PostgreSQL lacks {', '.join(schema.lacking)}: set postgres_bin to a "
                "server's programs, such as /usr/lib/postgresql/15/bin"
            )
        if schema.seeds:
            words = " ".join(schema.seeds[0][1:])
            lines.append(f"{words} looks like a seed; it is in the file as a comment")
        return lines


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
    folder, python_path = first.root, ""
    if folder.name in CODE_FOLDERS and folder != root:
        # A layout with `src` runs from the folder above, where its settings and migrations are.
        folder, python_path = folder.parent, folder.name
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
        postgres_bin=server_with(schema.lacking) if schema.lacking else "",
    )
    deployables = [_deployable(each, found, sources, imports=imports) for each in chosen]
    return replace(found, deployables=tuple(deployables))


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


def _deployable(
    application: Application, found: Findings, sources: Sources, *, imports: bool
) -> Deployable:
    """Return an application as a target: a worker, a function or a web service."""
    if application.framework == "celery":
        name = application.name.replace(":", ".") if application.is_factory else application.name
        command = ["{python}", "-m", "celery", "--app", name, "worker"]
        command += ["--concurrency", "{processes}"]
        return Deployable(
            application=application,
            target="worker",
            table={"kind": "worker", "command": command, "processes": 4},
            server="Celery",
            tasks=tuple((n, tuple(p)) for n, p in tasks_of(sources, application.root)),
            tables=tuple(tables_of(sources, application.root)),
            broker=next((v.name for v in found.variables.broker), "BROKER_URL"),
        )
    description = _description(application, found, sources, imports=imports)
    if application.framework in FUNCTIONS:
        handler = application.name.replace(":", ".")
        event = {"event": application.event} if application.event != "http" else {}
        numbers = function_numbers(sources, handler)
        return Deployable(
            application=application,
            target="function",
            table={"kind": "lambda", "handler": handler, **event, **numbers},
            description=description,
            server="the local Lambda fleet",
        )
    is_factory = description.is_factory or application.is_factory
    is_asgi = description.kind == "asgi" if description.kind else application.is_asgi
    if is_asgi:
        served = asgi_server(application, sources, is_factory=is_factory)
    else:
        served = wsgi_server(
            application, sources, found.interpreter, found.folder, is_factory=is_factory
        )
    table = {"kind": "web", **served.table}
    checks = [r.path for r in description.routes if r.method == "GET" and is_health(r.path)]
    # A path from the source may lack the prefix of its router.
    if checks and description.kind:
        # `/ready` asks the database more often than `/health`, and that more often than `/ping`.
        table["ready"] = min(
            checks,
            key=lambda path: ([w not in path for w in ("ready", "health", "live")], path),
        )
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
        description = replace(static, failure=description.failure)
    elif application.framework in ("flask", "django"):
        # Only its source shows which of its paths want a login.
        description = description.with_needs(read_from_source(sources, application))
    return description.with_forms() if application.framework in ("flask", "django") else description
