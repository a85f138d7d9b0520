"""How many processes a command line starts: gunicorn, uvicorn, Celery and their like.

Sources: gunicorn, "Settings" (workers: WEB_CONCURRENCY, else 1); uvicorn, "Settings"
(--workers: WEB_CONCURRENCY, else 1); Celery, "Workers Guide" (--concurrency: else the number
of processors; --autoscale); uWSGI, "Options"; granian and hypercorn, `--help`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from poolkit.budget.quantity import Quantity, known, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.budget.model import Workload


@dataclass(frozen=True)
class Server:
    """A program that starts processes: by which options, by which variables."""

    name: str
    options: tuple[str, ...]
    variables: tuple[str, ...]
    default: int | None
    why: str


_SERVERS = (
    Server("gunicorn", ("--workers", "-w"), ("WEB_CONCURRENCY",), 1, "gunicorn's default"),
    Server("uvicorn", ("--workers",), ("WEB_CONCURRENCY",), 1, "uvicorn's default"),
    Server("fastapi", ("--workers",), ("WEB_CONCURRENCY",), 1, "uvicorn's default"),
    Server("hypercorn", ("--workers", "-w"), (), 1, "hypercorn's default"),
    Server("granian", ("--workers",), ("GRANIAN_WORKERS",), 1, "granian's default"),
    Server(
        "uwsgi",
        ("--processes", "--workers", "-p"),
        ("UWSGI_PROCESSES", "UWSGI_WORKERS"),
        1,
        "uWSGI's default",
    ),
    Server(
        "celery",
        ("--concurrency", "-c"),
        (),
        None,
        "Celery starts one for each processor: give --concurrency",
    ),
    Server("webapp", ("--processes",), (), 1, "one process, the default of python -m webapp"),
)
_BY_NAME = {server.name: server for server in _SERVERS}
_ONE_PROCESS = frozenset({"threads", "gevent", "eventlet", "solo"})
_SHELLS = frozenset({"sh", "bash", "ash", "dash"})
_SHELL_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))")


def processes(workload: Workload) -> Quantity:
    """Return how many processes one instance runs, as far as its command line tells."""
    words = _words(workload)
    if words is None:
        return _without_command(workload)
    server, arguments = _server(words)
    if server is None:
        origin = workload.command_origin
        return (
            known(1, f"{origin}: one process, as {words[0]} names no number")
            if words
            else (unknown(f"{workload.name}: the command is empty"))
        )
    if server.name == "celery":
        return _celery(arguments, server, workload)
    return _counted(server, arguments, workload)


def _without_command(workload: Workload) -> Quantity:
    if number := workload.text("WEB_CONCURRENCY"):
        return _number(
            number, "WEB_CONCURRENCY", workload.variables["WEB_CONCURRENCY"].origin, workload
        )
    return unknown(
        "the image decides which command runs; name the processes with "
        f"--service {workload.name}=POOL+OVERFLOWxPROCESSES",
        workload.where,
    )


def _words(workload: Workload) -> list[str] | None:
    """Split the command as a shell would, with the workload's own variables in it."""
    if workload.command is None:
        return None
    words = list(workload.command)
    if len(words) > 2 and PurePosixPath(words[0]).name in _SHELLS and "c" in words[1]:
        words = [words[2]]
    if len(words) == 1:
        try:
            words = shlex.split(words[0], comments=True)
        except ValueError:
            words = words[0].split()
    return [_expanded(word, workload) for word in words]


def _expanded(word: str, workload: Workload) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        return workload.text(name) or match[2] or match[0]

    return _SHELL_VARIABLE.sub(value, word)


def _server(words: Sequence[str]) -> tuple[Server | None, Sequence[str]]:
    """Find the program among `exec`, `python -m`, `poetry run` and the like before it."""
    for number, word in enumerate(words):
        found = _BY_NAME.get(PurePosixPath(word).name)
        if found is not None:
            return found, words[number + 1 :]
    return None, words


def _counted(server: Server, arguments: Sequence[str], workload: Workload) -> Quantity:
    given = _option(arguments, server.options)
    if given is not None:
        return _number(given, server.options[0], workload.command_origin, workload)
    if (found := _by_variable(server, workload)) is not None:
        return found
    from_file = _option(arguments, ("--config", "-c", "--ini")) is not None
    if from_file and server.name in ("gunicorn", "uwsgi"):
        return unknown(f"{server.name} reads its number of workers from a file", workload.where)
    if server.default is None:
        return unknown(server.why, workload.where)
    return known(server.default, f"{workload.command_origin}: {server.why}", workload.where)


def _by_variable(server: Server, workload: Workload) -> Quantity | None:
    extra = workload.text("GUNICORN_CMD_ARGS") if server.name == "gunicorn" else ""
    if (given := _option(shlex.split(extra), server.options)) is not None:
        origin = workload.variables["GUNICORN_CMD_ARGS"].origin
        return _number(given, "GUNICORN_CMD_ARGS", origin, workload)
    for name in server.variables:
        found = workload.variables.get(name)
        if found is None:
            continue
        if found.text is None:
            return unknown(f"{name}: {found.reason}", workload.where)
        return _number(found.text, name, found.origin, workload)
    return None


def _celery(arguments: Sequence[str], server: Server, workload: Workload) -> Quantity:
    if "beat" in arguments and "worker" not in arguments:
        return known(1, f"{workload.command_origin}: celery beat is one process")
    if _option(arguments, ("--pool", "-P")) in _ONE_PROCESS:
        return known(1, f"{workload.command_origin}: this Celery pool is one process")
    if (scale := _option(arguments, ("--autoscale",))) is not None:
        return _number(scale.split(",")[0], "--autoscale", workload.command_origin, workload)
    return _counted(server, arguments, workload)


def _option(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """Return an option's value: `--name value`, `--name=value`, `-nvalue`; the last one wins."""
    found = None
    for number, word in enumerate(arguments):
        name, separator, value = word.partition("=")
        if name in names and separator:
            found = value
        elif word in names and number + 1 < len(arguments):
            found = arguments[number + 1]
        elif len(word) > 2 and word[:2] in names and not word.startswith("--"):
            found = word[2:]
    return found


def _number(text: str, name: str, origin: str, workload: Workload) -> Quantity:
    if text.strip().isdecimal() and int(text) > 0:
        return known(int(text), f"{origin} ({name})", workload.where)
    return unknown(f"{name} is {text!r}, which is no number here", workload.where)


def names_program(workload: Workload, programs: Mapping[str, object] | frozenset[str]) -> bool:
    """Tell whether the command line names one of the programs."""
    return any(PurePosixPath(word).name in programs for word in _words(workload) or ())
