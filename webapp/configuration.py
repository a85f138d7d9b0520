"""The web server's own settings; `poolkit.config.settings` has those of the database.

| variable | meaning | default |
|---|---|---|
| `WEBAPP_HOST` | the address to listen on; `0.0.0.0` in a container | `127.0.0.1` |
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
    """The values of the table above; timeouts are in seconds."""

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
            ConfigurationError: a value is wrong, or a name is misspelt.
        """
        known = [f"{_PREFIX}{field.name.upper()}" for field in fields(cls)]
        refuse_misspelt(environ, known, prefix=_PREFIX)

        def number(name: str, low: int, high: int) -> int:
            variable = f"{_PREFIX}{name.upper()}"
            try:
                return whole_number(environ.get(variable) or str(getattr(cls, name)), low, high)
            except ValueError as error:
                raise ConfigurationError(f"{variable} {error}") from None

        access_log = (environ.get("WEBAPP_ACCESS_LOG") or "false").strip().lower()
        if access_log not in {"true", "false", "1", "0"}:
            raise ConfigurationError(f"WEBAPP_ACCESS_LOG must be true or false, not {access_log!r}")
        return cls(
            host=environ.get("WEBAPP_HOST") or cls.host,
            port=number("port", 0, HIGHEST_PORT),
            max_body_bytes=number("max_body_bytes", 1, MAX_BODY_BYTES),
            keep_alive_timeout=number("keep_alive_timeout", 1, 4_000),
            graceful_timeout=number("graceful_timeout", 0, 3_600),
            access_log=access_log in {"true", "1"},
        )


def whole_number(text: str, low: int, high: int) -> int:
    """Read a whole number.

    Raises:
        ValueError: the text is none, or it is out of range; the message begins with "must be".
    """
    text = text.strip()
    # isdecimal alone is true of digits of other scripts, too.
    if not (text.isascii() and text.isdecimal()) or not low <= int(text) <= high:
        raise ValueError(f"must be a whole number from {low} to {high}, not {text!r}")
    return int(text)
