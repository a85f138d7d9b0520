"""`poolkit drill`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from poolkit.cli.extras import require, require_posix
from poolkit.compare.plan.option_types import Integer, Names, Number
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
@click.option("--all", "every", is_flag=True, help="every fault that is possible here")
@click.option(
    "--fault", "faults", multiple=True, metavar="NAME", help="a fault of --list; repeatable"
)
@click.option("--list", "lists", is_flag=True, help="print the faults, and end")
@click.option(
    "--targets", type=Names(), help="names from pyproject.toml, and bare, with commas; default: all"
)
@click.option(
    "--seconds",
    type=Seconds(0.5, 600),
    metavar="SECONDS",
    help="length of a fault that does not end by itself  [default: 4]",
)
@click.option(
    "--rate",
    type=Number(1, 1_000),
    metavar="NUMBER",
    help="requests/s of each target [default: 20]",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=Seconds(1, 300),
    metavar="SECONDS",
    help="a request without an answer for so long has failed  [default: 8]",
)
@click.option(
    "--recovery-limit",
    "recovery_limit_s",
    type=Seconds(0.1, 300),
    metavar="SECONDS",
    help="the most time to work again after a fault  [default: 1]",
)
@click.option("--environment", "-e", help="preset numbers  [default: prod]")
@click.option("--url", help="an application that runs already, in place of targets")
@click.option(
    "--request",
    "requests",
    multiple=True,
    metavar="'GET /PATH'",
    help="a request to --url; repeatable  [default: [tool.poolkit.drill], else GET /]",
)
@click.option("--locustfile", type=_path, help="the load of --url, in place of requests")
@click.option(
    "--database-url",
    help="the database of --url, with a role that may end its sessions  [default with --url: the "
    "variable POOLKIT_DATABASE_URL]",
)
@click.option("--role", help="the role of --url in its database  [default: that of --database-url]")
@click.option("--table", help="a table of --url, which lock_table locks")
@click.option(
    "--proxy-port",
    type=Integer(1, 65_535),
    metavar="PORT",
    help="listen here before --database-url; --url is connected through it",
)
@click.option("--yes-load-this-host", "agreed", is_flag=True, help="agree to load another machine")
@click.option(
    "--yes-break-this-database",
    "agreed_to_break",
    is_flag=True,
    help="agree to break a database on another machine",
)
@click.option("--out", type=_path, help="a folder for drill.json and drill.md")
@click.option("--json", "as_json", is_flag=True, help="print the results as JSON")
def drill(*, every: bool, faults: tuple[str, ...], lists: bool, **given: Any) -> None:
    """Make failures under load, and report how soon the targets work again.

    The targets of pyproject.toml and a bare FastAPI application run side by side on a PostgreSQL of
    the drill's own. Locust loads all of them while one fault follows the other. With --url an
    application that runs already is loaded, and the faults are those that its database allows.

    Exit status: 0, 1 if a rule is broken (a write lost or doubled, a connection leaked, a 500, a
    late recovery), 2 for wrong input or any other failure, 130 after Ctrl-C, 143 after SIGTERM.
    """
    require_posix("drill")
    require("loadtest")
    from poolkit.drill.command import drill, fault_list  # noqa: PLC0415
    from poolkit.drill.options import drill_options  # noqa: PLC0415

    # Of no use without --url, so it is no option's `envvar`: the variable may be there for others.
    if given["url"] and not given["database_url"]:
        given["database_url"] = os.environ.get("POOLKIT_DATABASE_URL")
    if lists:
        click.echo(fault_list())
        return
    # Each by itself: in the whole line a password could not be told from the next argument.
    command = " ".join(["poolkit", *map(masked, sys.argv[1:])])
    sys.exit(drill(drill_options(given, every=every, faults=faults, command=command)))
