"""The options of the distance between applications and their database."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from poolkit.local.distance import NAMED_DISTANCES, Distance

if TYPE_CHECKING:
    from collections.abc import Callable

_SSL_VARIABLES = (
    "PGSSLMODE",
    "PGSSLNEGOTIATION",
    "PGSSLROOTCERT",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLCRL",
    "PGREQUIRESSL",
    "PGCHANNELBINDING",
)
_NAMES = ", ".join(name for name in NAMED_DISTANCES if name != "loopback")


class RoundTripTime(click.ParamType):  # type: ignore[type-arg]
    """A round-trip time such as `0.5ms`, or the name of a distance."""

    name = "distance"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Distance:
        """Return the distance without TLS, or fail."""
        if isinstance(value, Distance):
            return value
        try:
            return Distance.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def distance_options(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the options --rtt and --tls for a command.

    Args:
        default: what the help says of a command line without them.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--tls/--no-tls", default=None, help="whether connections use TLS"),
            click.option(
                "--rtt",
                type=RoundTripTime(),
                metavar="DISTANCE",
                help=f"round-trip time to the embedded database, such as 0.5ms, or {_NAMES}, "
                f"loopback  [default: {default}]",
            ),
        ):
            function = option(function)
        return function

    return add


def ignore_ssl_variables() -> None:
    """Remove libpq's variables about TLS from this process, before it starts its own database.

    They are for a server of the user. The embedded one has no TLS, so with `PGSSLMODE=require`
    neither poolkit nor a target could connect to it. Over a distance with TLS the targets get new
    ones.
    """
    for name in _SSL_VARIABLES:
        os.environ.pop(name, None)


def distance_of(rtt: Distance | None, tls: bool | None, default: Distance) -> Distance:  # noqa: FBT001
    """Return the distance of the two options, each with its default."""
    found = default if rtt is None else rtt
    return Distance(rtt_s=found.rtt_s, name=found.name, tls=default.tls if tls is None else tls)
