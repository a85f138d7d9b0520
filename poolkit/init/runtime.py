"""How a project runs, read without running it: its interpreter, its server, its function.

The interpreter is that of the nearest environment, with the versions of its packages. The server is
the one that the project's own start files call. A function's numbers stand in its SAM or
CloudFormation template.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field, replace
from email.parser import HeaderParser
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.errors import ConfigurationError
from poolkit.init.sources import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.init.applications import Application
    from poolkit.init.sources import Sources

_FOLDERS = (".venv", "venv", "env", ".virtualenv", ".conda", ".pixi/envs/default")
"""Where uv, poetry (in-project), pip's users, conda and pixi put a project's environment."""
DRIVERS = ("psycopg2", "psycopg2-binary", "psycopg", "asyncpg", "pg8000")
FRAMEWORKS = (
    "fastapi",
    "starlette",
    "flask",
    "django",
    "celery",
    "mangum",
    "aws-lambda-powertools",
)

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
_PROPERTIES = {
    "MemorySize": "memory",
    "Timeout": "timeout",
    "ReservedConcurrentExecutions": "reserved_concurrency",
}


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python of a project."""

    path: Path
    version: str = ""
    """Such as 3.12.1; empty if it is not known."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions by normalised name."""
    origin: str = ""
    """Where it was found, for people."""

    def has(self, name: str) -> bool:
        """Return whether a package is installed."""
        return name in self.packages

    def described(self) -> str:
        """Return its version and the packages that matter here, for one line."""
        known = {"sqlalchemy": "SQLAlchemy", "fastapi": "FastAPI", "flask": "Flask"}
        known |= {"django": "Django", "celery": "Celery", "mangum": "Mangum"}
        names = ("sqlalchemy", *FRAMEWORKS, *DRIVERS)
        found = [f"{known.get(n, n)} {self.packages[n]}" for n in names if n in self.packages]
        return ", ".join([f"Python {self.version or '(version unknown)'}", *found])


def find_interpreter(
    folders: Sequence[Path], environ: Mapping[str, str] = os.environ
) -> Interpreter | None:
    """Return the interpreter of the nearest environment, or None.

    Args:
        folders: where to look, the likeliest first.
        environ: `VIRTUAL_ENV` and `CONDA_PREFIX` are read last: an activated environment may be
            poolkit's own.
    """
    for folder in folders:
        for name in _FOLDERS:
            if (path := _python_in(folder / name)) is not None:
                return interpreter_at(path, origin=name)
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = environ.get(variable)
        if not prefix or Path(prefix).resolve() == Path(sys.prefix).resolve():
            continue
        if (path := _python_in(Path(prefix))) is not None:
            return interpreter_at(path, origin=variable)
    return None


def interpreter_at(path: Path, *, origin: str = "") -> Interpreter:
    """Return the interpreter with this path, its version and its packages."""
    prefix = path.parent.parent
    packages: dict[str, str] = {}
    version = ""
    # Reversed: 3.9 sorts after 3.12, and one environment has one.
    for site in sorted(prefix.glob("lib/python3*/site-packages"), reverse=True):
        version = site.parent.name.removeprefix("python")
        for folder in site.glob("*.dist-info"):
            headers = HeaderParser().parsestr(text_of(folder / "METADATA"), headersonly=True)
            if headers["Name"] and headers["Version"]:
                name = re.sub(r"[-_.]+", "-", headers["Name"]).lower()
                packages[name] = headers["Version"]
        break
    config = text_of(prefix / "pyvenv.cfg")
    if match := re.search(r"^version(?:_info)?\s*=\s*([\d.]+)", config, re.MULTILINE):
        version = match[1]
    return Interpreter(path=path, version=version, packages=packages, origin=origin)


def own_interpreter() -> Interpreter:
    """Return poolkit's own interpreter: the default of targets."""
    found = interpreter_at(Path(sys.executable), origin="poolkit's own")
    return replace(found, version=".".join(map(str, sys.version_info[:3])))


def _python_in(prefix: Path) -> Path | None:
    for name in ("bin/python", "bin/python3", "Scripts/python.exe"):
        if (prefix / name).exists():
            # Not resolved: the link decides which environment it is.
            return prefix / name
    return None


# -- servers ---------------------------------------------------------------------------------


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
        options, origin = _server_options(sources, ("gunicorn",))
        processes = _whole(options.pop("--workers", ""))
        words = [word for pair in (options or {"--threads": "8"}).items() for word in pair]
        command = [
            *("{python}", "-m", "gunicorn", "--bind", "127.0.0.1:{port}"),
            *("--workers", "{processes}", *words),
            f"{application.name}()" if is_factory else application.name,
        ]
        workers = {"processes": processes} if processes > 1 else {}
        return Served({"command": command, **workers}, f"gunicorn{origin}")
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
        text = text_of(path).replace("\\\n", " ")
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


# -- functions -------------------------------------------------------------------------------


def function_numbers(sources: Sources, handler: str) -> dict[str, int]:
    """Return the keys of a target with the numbers of the template's function of this handler.

    The template is read as lines: an indented block around `Handler:`. A parser of YAML is not part
    of a plain installation, and a number that is a parameter is not known here either way.

    Args:
        sources: the project's files.
        handler: `module.function`.
    """
    for path in sources.files:
        if path.suffix not in (".yaml", ".yml", ".template"):
            continue
        lines = text_of(path).splitlines()
        for number, line in enumerate(lines):
            name = re.match(r"\s*(?:- )?Handler:\s*['\"]?([\w./]+)", line)
            # A handler may be a path: src/app.lambda_handler.
            if name and name[1].replace("/", ".").endswith(handler):
                return _numbers_beside(lines, number)
    return {}


def _numbers_beside(lines: list[str], number: int) -> dict[str, int]:
    """Return the known numbers among the properties of the same indentation."""
    indentation = len(lines[number]) - len(lines[number].lstrip())
    found = {}
    for direction in (range(number, -1, -1), range(number, len(lines))):
        for line in (lines[i] for i in direction):
            depth = len(line) - len(line.lstrip())
            if line.strip() and depth < indentation:
                break
            value = re.fullmatch(r"(\w+):\s*(\d+)", line.strip())
            if value and depth == indentation and value[1] in _PROPERTIES:
                found[_PROPERTIES[value[1]]] = int(value[2])
    return found
