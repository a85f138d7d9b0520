"""The web server's own settings; those of the database are `poolkit.config.settings`.

| variable | meaning | default |
|---|---|---|
| `WEBAPP_HOST` | the address to listen on; a container wants `0.0.0.0` | `127.0.0.1` |
| `WEBAPP_PORT` | the port; 0: any free one, printed at start | `8000` |
| `WEBAPP_MAX_BODY_BYTES` | a longer request body is answered with 413 | 1 MiB |
| `WEBAPP_KEEP_ALIVE_TIMEOUT` | seconds an idle client connection stays open | 75 |
| `WEBAPP_GRACEFUL_TIMEOUT` | seconds that requests in flight get at shutdown | 25 |
| `WEBAPP_ACCESS_LOG` | `true`: one line per request | `false` |
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

from articles.validation import MAX_BODY_BYTES
from poolkit.config.variables import refuse_misspelt
from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

HIGHEST_PORT = 65_535
_PREFIX = "WEBAPP_"


@dataclass(frozen=True, kw_only=True)
class WebSettings:
    """What the table above says; timeouts are in seconds."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_body_bytes: int = MAX_BODY_BYTES
    # Longer than a load balancer keeps an idle connection (ALB: 60 s), or it would send a
    # request into a connection that is just being closed, and answer 502.
    keep_alive_timeout: int = 75
    # Less than what the platform waits between SIGTERM and SIGKILL (ECS: 30 s).
    graceful_timeout: int = 25
    access_log: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables above.

        Raises:
            ConfigurationError: a value is not what the variable wants, or a name is misspelt.
        """
        known = [f"{_PREFIX}{field.name.upper()}" for field in fields(cls)]
        refuse_misspelt(environ, known, prefix=_PREFIX)
        return cls(
            host=environ.get("WEBAPP_HOST") or cls.host,
            port=_number(environ, "WEBAPP_PORT", cls.port, 0, HIGHEST_PORT),
            max_body_bytes=_number(
                environ, "WEBAPP_MAX_BODY_BYTES", cls.max_body_bytes, 1, MAX_BODY_BYTES
            ),
            keep_alive_timeout=_number(
                environ, "WEBAPP_KEEP_ALIVE_TIMEOUT", cls.keep_alive_timeout, 1, 4_000
            ),
            graceful_timeout=_number(
                environ, "WEBAPP_GRACEFUL_TIMEOUT", cls.graceful_timeout, 0, 3_600
            ),
            access_log=_flag(environ, "WEBAPP_ACCESS_LOG"),
        )


def _number(environ: Mapping[str, str], variable: str, default: int, low: int, high: int) -> int:
    try:
        return whole_number(environ.get(variable) or str(default), low, high)
    except ValueError as error:
        raise ConfigurationError(f"{variable} {error}") from None


def whole_number(text: str, low: int, high: int) -> int:
    """Read a number.

    Raises:
        ValueError: it is none, or out of its range; the message begins with "must be".
    """
    text = text.strip()
    # isdecimal alone is true of digits of other scripts, too.
    if not (text.isascii() and text.isdecimal()) or not low <= int(text) <= high:
        raise ValueError(f"must be a whole number from {low} to {high}, not {text!r}")
    return int(text)


def _flag(environ: Mapping[str, str], variable: str) -> bool:
    text = (environ.get(variable) or "false").strip().lower()
    if text not in {"true", "false", "1", "0"}:
        raise ConfigurationError(f"{variable} must be true or false, not {text!r}")
    return text in {"true", "1"}
