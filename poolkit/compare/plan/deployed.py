"""Targets that are deployed already: `--target NAME[@LABEL]=URL`, checked before there is load.

They are put under load where they are, and never started or stopped. Their database is only
watched.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from poolkit.compare.plan.targets import choose
from poolkit.compare.results.wording import without_passwords
from poolkit.errors import ConfigurationError
from poolkit.loadtest.host_safety import check_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from urllib.parse import SplitResult

    from poolkit.compare.plan.targets import Target

ANSWER_TIMEOUT_S = 10.0
"""A function may have a cold start first."""
_PORTS = {"redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671}


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A target, where it is deployed, and how many connections its database takes."""

    target: Target
    """As in pyproject.toml, with the name that it has in this run."""
    url: str
    """web, lambda: where its paths begin. worker: its broker."""
    max_connections: int = 0
    usable_connections: int = 0
    """The same less the server's reserve."""


def deployed_of(texts: Iterable[str], tables: Mapping[str, Target]) -> tuple[Deployed, ...]:
    """Return the targets that `--target` names.

    Args:
        texts: each `NAME[@LABEL]=URL`.
        tables: the targets of pyproject.toml; NAME is one of them.

    Raises:
        ConfigurationError: one is no such text, or two have the same name.
    """
    found = [_read(text, tables) for text in texts]
    seen: set[str] = set()
    for each in found:
        name = each.target.name
        if name in seen:
            raise ConfigurationError(
                f"--target has {name} twice; give each a label: --target {name}@LABEL=URL"
            )
        seen.add(name)
    return tuple(found)


def _read(text: str, tables: Mapping[str, Target]) -> Deployed:
    name, is_there, url = text.partition("=")
    table, at, label = name.strip().partition("@")
    if not is_there or not table or not url.strip() or (at and not _is_label(label)):
        raise ConfigurationError(
            "--target must be NAME=URL or NAME@LABEL=URL, such as "
            f"web@staging=https://api.example.com, not {without_passwords(text)!r}"
        )
    (target,) = choose(tables, [table])
    return Deployed(target=replace(target, name=f"{table}{at}{label}"), url=url.strip().rstrip("/"))


def _is_label(text: str) -> bool:
    return bool(text) and all(sign.isalnum() or sign in "._-" for sign in text)


def check_unlike(deployed: Iterable[Deployed], local: Iterable[Target]) -> None:
    """Refuse a deployed target with the name of one that is started here.

    Raises:
        ConfigurationError: there is one; the message says how to name it.
    """
    names = {target.name for target in local}
    for each in deployed:
        name = each.target.name
        if name in names:
            raise ConfigurationError(
                f"{name} is in --targets and in --target; give the deployed one a label: "
                f"--target {name}@LABEL=URL"
            )


def check_answers(each: Deployed, *, agreed: bool) -> None:
    """Look whether a deployed target is there.

    Args:
        each: the target.
        agreed: whether a host that is not this machine may be put under load.

    Raises:
        ConfigurationError: its host may not be put under load, does not resolve, or does not
            answer as it should; one line.
    """
    option = f"--target {each.target.name}"
    if each.target.kind == "worker":
        _check_broker(each.url, option, agreed=agreed)
        return
    parts = _parts(each.url, option)
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(
            f"{option}: wanted an http:// or https:// URL, found {without_passwords(each.url)!r}"
        )
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{option}: the paths of the load come after the URL: no ? or #")
    check_host(each.url, agreed, option=option)
    _check_answer(parts, each.target.ready or "/", option)


def _parts(url: str, option: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}") from None
    return parts


def _check_answer(parts: SplitResult, ready: str, option: str) -> None:
    """Ask once: what no request gets through to would fail every request of the run."""
    path = parts.path + ready
    try:
        status, location = _ask(parts, path)
    except (OSError, http.client.HTTPException) as error:
        raise ConfigurationError(
            f"{option}: {parts.netloc.rpartition('@')[2]} does not answer: {_reason(error)}"
        ) from None
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise ConfigurationError(f"{option}: {path} is answered with status {status}")
    elsewhere = urlsplit(location)
    moved = (elsewhere.scheme, elsewhere.netloc) != (parts.scheme, parts.netloc)
    if elsewhere.netloc and moved and status in range(300, 400):
        raise ConfigurationError(
            f"{option}: it redirects to {elsewhere.scheme}://{elsewhere.netloc}, so every request "
            "would be two; give that URL"
        )


def _ask(parts: SplitResult, path: str) -> tuple[int, str]:
    """Return status and Location; certificates are verified."""
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    connection = kinds[parts.scheme](parts.hostname or "", parts.port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"User-Agent": "poolkit"})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Location", "")
    finally:
        connection.close()


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"nothing came within {ANSWER_TIMEOUT_S:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _check_broker(url: str, option: str, *, agreed: bool) -> None:
    parts = _parts(url, option)
    if not parts.scheme:
        raise ConfigurationError(
            f"{option}: a worker's URL is that of its broker, such as redis://host:6379/0"
        )
    if parts.hostname is None:
        # A queue of a cloud's own has no host in its URL, and is not this machine.
        _check_agreed(option, agreed=agreed)
        return
    check_host(url, agreed, option=option)
    port = parts.port or _PORTS.get(parts.scheme)
    if port is None:
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigurationError(
            f"{option}: {parts.hostname}:{port} does not answer: {_reason(error)}"
        ) from None


def _check_agreed(option: str, *, agreed: bool) -> None:
    if not agreed:
        raise ConfigurationError(
            f"{option}: the broker is not this machine; add --yes-load-this-host if the queue and "
            "its workers are yours to load"
        )
