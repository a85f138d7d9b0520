"""`poolkit drill`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from poolkit.cli.distance import distance_of, distance_options, ignore_ssl_variables
from poolkit.cli.extras import require, require_posix
from poolkit.compare.plan.option_types import Integer, Names, Number
from poolkit.local.distance import Distance
from poolkit.masking import masked

_path = click.Path(path_type=Path)


class Seconds(Number):
    """A number of seconds, such as `1`, `1.5s` or `500ms`."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number of seconds, or fail."""
        if not isinstance(value, str):
            return super().convert(value, param, ctx)
        text, share = value.strip(), 1.0
        if text.endswith("ms"):
            text, share = text[:-2], 0.001
        elif text.endswith("s"):
            text = text[:-1]
        try:
            number: Any = float(text) * share
        except ValueError:
            number = value
        return super().convert(number, param, ctx)


@click.command()
@click.option("--all", "every", is_flag=True, help="make every fault that is possible here")
@click.option(
    "--fault", "faults", multiple=True, metavar="NAME", help="a fault from --list; repeatable"
)
@click.option("--list", "lists", is_flag=True, help="print the faults and exit")
@click.option(
    "--targets",
    type=Names(),
    help="target names from pyproject.toml, and bare, separated by commas; default: all",
)
@click.option(
    "--seconds",
    type=Seconds(0.5, 600),
    metavar="SECONDS",
    help="duration of a fault, except of a restart or a failover  [default: 4]",
)
@click.option(
    "--rate",
    type=Number(1, 1_000),
    metavar="NUMBER",
    help="requests/s to each target  [default: 20]",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=Seconds(1, 300),
    metavar="SECONDS",
    help="time after which a request without an answer counts as failed  [default: 8]",
)
@click.option(
    "--recovery-limit",
    "recovery_limit_s",
    type=Seconds(0.1, 300),
    metavar="SECONDS",
    help="longest allowed recovery after a fault  [default: 1]",
)
@click.option(
    "--environment", "-e", help="environment whose preset numbers are used  [default: prod]"
)
@click.option("--url", help="an application that is already running, in place of targets")
@click.option(
    "--request",
    "requests",
    multiple=True,
    metavar="'GET /PATH'",
    help="a request to --url; repeatable  [default: [tool.poolkit.drill], else GET /]",
)
@click.option(
    "--locustfile", type=_path, help="a locustfile that loads --url, in place of --request"
)
@click.option(
    "--database-url",
    help="the database of --url; its role must be allowed to end the application's sessions  "
    "[default with --url: the variable POOLKIT_DATABASE_URL]",
)
@click.option("--role", help="the database role of --url  [default: the role in --database-url]")
@click.option(
    "--table", help="a table of --url for the fault lock_table  [default: [tool.poolkit.drill]]"
)
@click.option(
    "--proxy-port",
    type=Integer(1, 65_535),
    metavar="PORT",
    help="port of a proxy to --database-url, for network faults; --url must connect to it",
)
@distance_options("loopback, without TLS")
@click.option("--yes-load-this-host", "agreed", is_flag=True, help="allow load on another machine")
@click.option(
    "--yes-break-this-database",
    "agreed_to_break",
    is_flag=True,
    help="allow faults in a database on another machine",
)
@click.option("--out", type=_path, help="a folder for drill.json and drill.md")
@click.option("--json", "as_json", is_flag=True, help="print the results as JSON")
def drill(*, every: bool, faults: tuple[str, ...], lists: bool, **given: Any) -> None:
    """Cause failures under load, and report how soon the targets recover.

    The drill starts its own PostgreSQL, the targets of pyproject.toml, and a bare FastAPI application
    for comparison. Locust loads all of them while the faults follow each other. With --url, the
    drill loads an application that is already running, and makes the faults that its database allows.

    Exit status: 0 if all rules hold; 1 if one is broken (a write lost or doubled, a connection
    leaked, a 500, a late recovery); 2 for wrong input or any other failure; 130 after Ctrl-C; 143
    after SIGTERM.
    """
    require_posix("drill")
    require("loadtest")
    from poolkit.drill.command import drill, fault_list  # noqa: PLC0415
    from poolkit.drill.options import drill_options  # noqa: PLC0415

    rtt, tls = given.pop("rtt"), given.pop("tls")
    if given["url"] and (rtt is not None or tls is not None):
        raise click.UsageError("--rtt and --tls are for the drill's own database, not for --url")
    if not given["url"]:
        ignore_ssl_variables()
    given["distance"] = distance_of(rtt, tls, Distance())
    # Of no use without --url, so it is no option's `envvar`: the variable may be there for others.
    if given["url"] and not given["database_url"]:
        given["database_url"] = os.environ.get("POOLKIT_DATABASE_URL")
    if lists:
        click.echo(fault_list())
        return
    # Each by itself: in the whole line a password could not be told from the next argument.
    command = " ".join(["poolkit", *map(masked, sys.argv[1:])])
    sys.exit(drill(drill_options(given, every=every, faults=faults, command=command)))
