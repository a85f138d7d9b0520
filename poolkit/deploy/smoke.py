"""`poolkit smoke`: a few requests to a deployed service, before it counts as released.

A deployment is complete when the load balancer's own probe is answered. That says little about
the way from outside: the name, the certificate, the listener, the database behind a real request.

Each path must be answered with a status of 200 to 299 several times in a row, because a service
of several tasks can have a bad one. What fails is asked again until the time is over: a new name
spreads slowly, and a database that was restarted needs a moment. A certificate that is not valid
does not become valid, so it ends the test at once.
"""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from poolkit.errors import ConfigurationError
from poolkit.masking import masked, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

PROBES: Final = ("/healthz", "/readyz")
"""What poolkit's web services answer; see `poolkit.fastapi.operations`."""

_LIMIT_OF_ONE_S: Final = 10.0
_PAUSE_S: Final = 1.0
_BODY_SHOWN: Final = 200
"""Characters of a failed response's body in the output."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects are results: behind one may be another host, which says nothing about this one."""

    def redirect_request(self, *_: object) -> None:
        """Follow none."""


@dataclass(frozen=True)
class _Outcome:
    ok: bool
    text: str
    final: bool = False
    """Whether another try cannot change it."""


def smoke(
    url: str,
    paths: Sequence[str],
    *,
    times: int,
    timeout_s: float,
    authorization: str | None = None,
) -> bool:
    """Request each path of a service, print one line each, and return whether all were answered.

    Args:
        url: of the service: scheme, host and optionally port.
        paths: what to request with GET.
        times: successful responses in a row that each path needs.
        timeout_s: seconds for the whole test; each path is requested at least once.
        authorization: value of the header Authorization; never printed.

    Raises:
        ConfigurationError: the URL or a path is none.
    """
    base = _base(url)
    for path in paths:
        if not path.startswith("/") or any(letter.isspace() for letter in path):
            raise ConfigurationError(
                f"{path!r} is not a path; wanted one that begins with a slash, such as /articles?limit=1"
            )
    headers = {"User-Agent": "poolkit-smoke", "Connection": "close"}
    if authorization:
        headers["Authorization"] = authorization
    deadline = time.monotonic() + timeout_s
    # Each path is requested, even if one before it failed.
    answered = [_answers(f"{base}{path}", headers, times, deadline) for path in paths]
    return all(answered)


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ConfigurationError(
            "the URL has a user name or a password, which logs would show; set "
            "POOLKIT_SMOKE_AUTHORIZATION to the value of the header Authorization"
        )
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{url!r} is not the URL of a service; wanted one such as https://dev.example.org"
        )
    return url.rstrip("/")


def _answers(url: str, headers: dict[str, str], times: int, deadline: float) -> bool:
    """Request a URL until it was answered `times` times in a row, or the time is over."""
    started, tries, in_a_row = time.monotonic(), 0, 0
    opener = urllib.request.build_opener(_NoRedirects)
    while True:
        tries += 1
        outcome = _request(opener, urllib.request.Request(url, headers=headers))  # noqa: S310
        in_a_row = in_a_row + 1 if outcome.ok else 0
        took = time.monotonic() - started
        if in_a_row == times:
            click.echo(f"ok    {url}  {outcome.text}, {tries} requests in {took:.1f} s")
            return True
        over = time.monotonic() + (0 if outcome.ok else _PAUSE_S) >= deadline
        if not outcome.ok and (outcome.final or over):
            said = printable(masked(outcome.text))
            click.echo(f"FAIL  {url}  {said} ({tries} requests in {took:.1f} s)")
            return False
        if not outcome.ok:
            time.sleep(_PAUSE_S)


def _request(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> _Outcome:
    try:
        with opener.open(request, timeout=_LIMIT_OF_ONE_S) as response:
            response.read()
            return _Outcome(ok=200 <= response.status < 300, text=str(response.status))
    except urllib.error.HTTPError as error:
        with error:
            if location := error.headers.get("Location"):
                return _Outcome(ok=False, text=f"{error.code}, which leads to {location}")
            body = error.read(4096).decode(errors="replace").strip()[:_BODY_SHOWN]
        return _Outcome(ok=False, text=f"{error.code} {body}".strip())
    except urllib.error.URLError as error:
        invalid = isinstance(error.reason, ssl.SSLCertVerificationError)
        return _Outcome(ok=False, text=str(error.reason), final=invalid)
    except (OSError, http.client.HTTPException) as error:
        return _Outcome(ok=False, text=str(error) or type(error).__name__)
