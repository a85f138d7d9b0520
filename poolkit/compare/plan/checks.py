"""Checks before the run: deployed hosts, locustfiles and migrations, each a single error line."""

from __future__ import annotations

import http.client
import importlib.util
import platform
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from poolkit.errors import ConfigurationError
from poolkit.loadtest.host_safety import OPTION, check_host
from poolkit.masking import masked
from poolkit.migrations import find_scripts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from urllib.parse import SplitResult

    from poolkit.compare.plan.targets import Deployed, Target
    from poolkit.project import Project

ANSWER_TIMEOUT_S = 10.0
"""A function may have a cold start first."""
_LIST_TIMEOUT_S = 60
_PORTS = {"redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671}


def check_migrations(project: Project) -> None:
    """Find the project's migrations, which the run will apply to the embedded database.

    Raises:
        ConfigurationError: there are none of that name, or they do not import.
    """
    if name := project.table.get("migrations"):
        find_scripts(name, project)


def check_interpreters(project: Project, targets: Iterable[Target]) -> None:
    """Check that the interpreters of targets and commands exist, and have what starts the targets.

    Raises:
        ConfigurationError: one is missing, or lacks a package; the message names the command
            that installs it.
    """
    if project.commands:
        _check_program(project.python, f"{project.section()} python")
        _check_folder(project.directory, f"{project.section()} directory")
    for target in targets:
        where = project.section(f"targets.{target.name}")
        if target.lacks:
            raise ConfigurationError(
                f"{where} needs {target.lacks}; if it is deployed, give its URL: "
                f"--target {target.name}=URL"
            )
        _check_program(target.python, f"{where} python")
        folder = target.directory or project.root
        _check_folder(folder, f"{where} directory")
        needed = "uvicorn" if target.app and not target.command else ""
        if target.kind == "lambda" and importlib.util.find_spec("awslambdaric") is None:
            # The fleet lends its own to an interpreter without one.
            needed = "awslambdaric"
        if needed and not _has_module(target.python, needed, folder):
            raise ConfigurationError(
                f"{where}: {target.python} has no {needed}, which starts the target; install it "
                f"with: {target.python} -m pip install {needed}"
            )


def missing_runtime(target: Target) -> str:
    """Return why a function cannot run on this system; empty if it can.

    `awslambdaric` has wheels for Linux only. One that was built elsewhere works with the client in
    pure Python.
    """
    if platform.system() == "Linux" or importlib.util.find_spec("awslambdaric") is not None:
        return ""
    if _has_module(target.python, "awslambdaric", target.directory):
        return ""
    return "AWS's runtime client awslambdaric has packages for Linux only; run functions there"


def _check_program(python: Path, where: str) -> None:
    if not python.is_file():
        raise ConfigurationError(
            f"{where}: there is no interpreter {python}; make the environment there, or name "
            "another one"
        )


def _check_folder(folder: Path, where: str) -> None:
    if not folder.is_dir():
        raise ConfigurationError(f"{where}: there is no folder {folder}")


def _has_module(python: Path, name: str, folder: Path | None) -> bool:
    """Return whether an interpreter could import a module, without the cost of its import."""
    looks = "import sys, importlib.util; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    done = subprocess.run(
        [str(python), "-c", looks, name], cwd=folder, capture_output=True, check=False, timeout=60
    )
    return done.returncode == 0


def check_locustfiles(files: Iterable[Path], root: Path) -> None:
    """Import each locustfile once in a Locust of its own.

    Raises:
        ConfigurationError: one does not import, or has no user class; the message quotes
            Python's last line.
    """
    with ExitStack() as ending:
        processes = {}
        for file in sorted(set(files)):
            process = ending.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "locust", "-f", str(file), "--list"],
                    cwd=root,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            # After a mistake in another file, or Ctrl-C, its output is of no use.
            ending.callback(process.kill)
            processes[file] = process
        for file, process in processes.items():
            try:
                listed, errors = process.communicate(timeout=_LIST_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise ConfigurationError(
                    f"locustfile {file} cannot be used: it did not import within "
                    f"{_LIST_TIMEOUT_S} s"
                ) from None
            if process.returncode:
                lines = (errors or listed).strip().splitlines()
                last = lines[-1] if lines else f"exit status {process.returncode}"
                raise ConfigurationError(f"locustfile {file} cannot be used: {last}")
            if not listed.partition("Available Users:")[2].strip():
                raise ConfigurationError(f"locustfile {file} cannot be used: no user class in it")


def check_answers(deployed: Deployed, *, agreed: bool) -> None:
    """Check that a deployed target answers.

    Args:
        deployed: the target.
        agreed: whether a host that is not this machine may be put under load.

    Raises:
        ConfigurationError: its host may not be put under load, does not resolve, or does not
            answer as it should; one line.
    """
    option = f"--target {deployed.target.name}"
    try:
        parts = urlsplit(deployed.url)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}") from None
    if deployed.target.kind != "worker":
        if parts.scheme not in ("http", "https"):
            raise ConfigurationError(
                f"{option}: wanted an http:// or https:// URL, found {masked(deployed.url)!r}"
            )
        if parts.query or parts.fragment:
            raise ConfigurationError(f"{option}: the load adds its paths to the URL: no ? or #")
        check_host(deployed.url, agreed, option=option)
        _check_http(parts, deployed.target.ready or "/", option)
        return
    if not parts.scheme:
        raise ConfigurationError(
            f"{option}: a worker's URL is that of its broker, such as redis://host:6379/0"
        )
    if parts.hostname is None:
        # A cloud's own queue has no host in its URL, and is not this machine.
        if not agreed:
            raise ConfigurationError(
                f"{option}: the broker is not this machine; add --yes-load-this-host if the "
                "queue and its workers are yours to load"
            )
        return
    check_host(deployed.url, agreed, option=option)
    port = port or _PORTS.get(parts.scheme)
    if port is None:
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigurationError(
            f"{option}: {parts.hostname}:{port} does not answer: {_reason(error)}"
        ) from None


def check_database_host(database_url: str, *, agreed: bool, agreement: str = OPTION) -> None:
    """Check that the database of --database-url may be loaded by targets that the run starts.

    Args:
        database_url: the URL, with or without a host.
        agreed: whether the option of the agreement was given.
        agreement: that option, for the message.

    Raises:
        ConfigurationError: it is on another machine, and the user has not agreed.
    """
    url = make_url(database_url)
    host = url.host or url.query.get("host", "")
    # Without a host, or with a folder, it is reached over a Unix socket.
    if isinstance(host, str) and host and not host.startswith("/"):
        shown = f"[{host}]" if ":" in host else host
        check_host(f"postgresql://{shown}", agreed, option="--database-url", agreement=agreement)


def _check_http(parts: SplitResult, ready: str, option: str) -> None:
    """Send one request: an obstacle for it would fail every request of the run."""
    path = parts.path + ready
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    connection = kinds[parts.scheme](parts.hostname or "", parts.port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"User-Agent": "poolkit"})
        answer = connection.getresponse()
        status, location = answer.status, urlsplit(answer.headers.get("Location", ""))
    except (OSError, http.client.HTTPException) as error:
        raise ConfigurationError(
            f"{option}: {parts.netloc.rpartition('@')[2]} does not answer: {_reason(error)}"
        ) from None
    finally:
        connection.close()
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise ConfigurationError(f"{option}: {path} is answered with status {status}")
    moved = (location.scheme, location.netloc) != (parts.scheme, parts.netloc)
    if location.netloc and moved and status in range(300, 400):
        raise ConfigurationError(
            f"{option}: it redirects to {location.scheme}://{location.netloc}, so every request "
            "would be two; give that URL"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"no answer within {ANSWER_TIMEOUT_S:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
