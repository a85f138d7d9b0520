"""The server of a web application: the project's own, as its start files call it."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.init.applications import Application
    from poolkit.init.interpreter import Interpreter
    from poolkit.init.sources import Sources

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
_DEVELOPMENT = "development server: install gunicorn to measure a real one"


class Served(NamedTuple):
    """The keys of a target that start its server, and the server's name for people."""

    table: dict[str, Any]
    name: str


def asgi_server(application: Application, sources: Sources, *, is_factory: bool) -> Served:
    """Return uvicorn with as many processes as the project's own server has."""
    options, origin = _server_options(sources, ("uvicorn", "gunicorn", "fastapi", "hypercorn"))
    processes = _whole(options.get("--workers", ""))
    workers = ("--workers", "{processes}") if processes > 1 else ()
    table: dict[str, Any] = {"app": application.name}
    if is_factory:
        table = {"command": [*_UVICORN_FACTORY, *workers, application.name]}
    if processes > 1:
        table["processes"] = processes
    return Served(table, f"uvicorn{origin if processes > 1 else ''}")


def _whole(text: str) -> int:
    return int(text) if text.isdigit() and 1 <= int(text) <= 64 else 1


def wsgi_server(
    application: Application,
    sources: Sources,
    interpreter: Interpreter,
    folder: Path,
    *,
    is_factory: bool,
) -> Served:
    """Return the server of a WSGI application: the project's own, or a development server."""
    if interpreter.has("gunicorn"):
        name = f"{application.name}()" if is_factory else application.name
        return _gunicorn(name, sources)
    if interpreter.has("waitress"):
        call = ["--call"] if is_factory else []
        words = ["{python}", "-m", "waitress", "--listen", "127.0.0.1:{port}"]
        return Served({"command": [*words, *call, application.name]}, "waitress")
    if application.framework == "django":
        manage = next((p for p in sources.files if p.name == "manage.py"), folder / "manage.py")
        words = ["{python}", os.path.relpath(manage, folder), "runserver", "--noreload"]
        return Served({"command": [*words, "127.0.0.1:{port}"]}, f"Django's {_DEVELOPMENT}")
    if application.framework == "flask":
        words = ["{python}", "-m", "flask", "--app", application.name, "run"]
        command = [*words, "--no-reload", "--no-debugger", "--port", "{port}"]
        return Served({"command": command}, f"Flask's {_DEVELOPMENT}")
    raise ConfigurationError(
        f"{application.name} is a WSGI application, and its environment has no server for it: "
        f"install gunicorn there ({interpreter.path})"
    )


def _gunicorn(name: str, sources: Sources) -> Served:
    options, origin = _server_options(sources, ("gunicorn",))
    processes = _whole(options.pop("--workers", ""))
    words = [word for pair in (options or {"--threads": "8"}).items() for word in pair]
    command = [
        *("{python}", "-m", "gunicorn", "--bind", "127.0.0.1:{port}"),
        *("--workers", "{processes}", *words, name),
    ]
    table: dict[str, Any] = {"command": command}
    if processes > 1:
        table["processes"] = processes
    return Served(table, f"gunicorn{origin}")


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
