"""`poolkit compare`, `up` and `report`."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from poolkit.cli.distance import distance_of, distance_options, ignore_ssl_variables
from poolkit.cli.extras import require, require_posix
from poolkit.compare.plan.option_types import (
    MAX_CONNECTIONS,
    RATES,
    USERS,
    Connections,
    DeployedTarget,
    Integer,
    Names,
    Number,
    PoolSizes,
)
from poolkit.local.distance import Distance
from poolkit.masking import masked

_repeatable = partial(click.option, multiple=True)
_path = click.Path(path_type=Path)
_targets_option = click.option(
    "--targets", type=Names(), help="names from pyproject.toml, with commas; default: all"
)
_max_connections_option = click.option(
    "--max-connections",
    type=MAX_CONNECTIONS,
    default=100,
    show_default=True,
    help="limit of the embedded PostgreSQL",
)


@click.command()
@_targets_option
@click.option("--app", metavar="MODULE:NAME", help="an application, in place of tables")
@click.option("--python", type=_path, help="the interpreter of --app  [default: its .venv or venv]")
@click.option("--locustfile", type=_path, help="the load, in place of the tables' own")
@click.option(
    "--pool",
    "pools",
    type=Names(),
    help="each target with these pools, such as now,web: now is its own engine, others are presets",
)
@click.option(
    "--pool-sizes",
    type=PoolSizes(),
    help="each target with these pool sizes, such as 2,5,10 or 5,10+5 (with overflow)",
)
@click.option("--users", type=USERS, help="users at once, or levels: 1,5,20  [default: 20]")
@click.option(
    "--rate",
    "rate_per_user",
    type=Number(0.01, 1_000),
    help="tasks per user and second  [default: 2; quick: 4]",
)
@click.option("--rates", type=RATES, help="open loop: tasks per second, or levels: 50,100,200")
@click.option(
    "--arrivals",
    type=click.Choice(["constant", "poisson"]),
    help="open loop: spacing of the tasks  [default: constant]",
)
@click.option(
    "--max-users",
    type=Integer(1, 100_000),
    help="open loop: the most users at once  [default: 2000]",
)
@click.option(
    "--repeat",
    type=Integer(1, 100),
    help="number of measurements per target and level  [default: 1]",
)
@click.option(
    "--duration",
    "duration_s",
    type=Number(1, 86_400),
    metavar="SECONDS",
    help="measured time  [default: 20; quick: 6]",
)
@click.option(
    "--warm-up",
    "warm_up_s",
    type=Number(1, 3_600),
    metavar="SECONDS",
    help="load before the measured time, at least  [default: 4; quick: 3]",
)
@click.option("--quick", is_flag=True, help="short measurements with 10 users")
@click.option("--environment", "-e", default="prod", show_default=True, help="preset numbers")
@_max_connections_option
@distance_options("same-az, with TLS")
@click.option(
    "--database-url",
    envvar="POOLKIT_DATABASE_URL",
    show_envvar=True,
    help="a server of your own in place of the embedded one",
)
@click.option(
    "--prepare-database",
    is_flag=True,
    help="run migrations, schema and seed on the database of --database-url",
)
@_repeatable(
    "--target",
    "deployed",
    type=DeployedTarget(),
    metavar="NAME[@LABEL]=URL",
    help="a deployed target; repeatable",
)
@_repeatable(
    "--connections",
    "marks",
    type=Connections(),
    metavar="NAME[@LABEL]=KIND:VALUE",
    help="what distinguishes the connections of a deployed target: name:APPLICATION_NAME, "
    "user:ROLE or address:IP; repeatable",
)
@click.option("--yes-load-this-host", "agreed", is_flag=True, help="agree to load another machine")
@_repeatable(
    "--threshold",
    "thresholds",
    help="a condition that must hold, such as 'http.p95 < 200'; repeatable",
)
@click.option("--junit", type=_path, help="write the verdicts as JUnit XML")
@click.option("--github", is_flag=True, help="print failures as GitHub annotations")
@click.option("--out", type=_path, help="a new folder for the run")
def compare(*, quick: bool, **given: Any) -> None:
    """Measure targets under the same load, and write a report.

    The report shows the connections that each target opens, beside its latency.

    Exit status: 0, 1 if a threshold does not hold or a target failed, 2 for wrong input or any
    other failure, 130 after Ctrl-C, 143 after SIGTERM.
    """
    require_posix("compare")
    require("loadtest")
    from poolkit.compare.command import compare  # noqa: PLC0415
    from poolkit.compare.plan.options import options_of  # noqa: PLC0415

    rtt, tls = given.pop("rtt"), given.pop("tls")
    own = given["database_url"] is None and not given["deployed"]
    if not own and (rtt is not None or tls is not None):
        raise click.UsageError(
            "--rtt and --tls are for the embedded database, in whose place there is "
            + ("--target" if given["deployed"] else "--database-url or POOLKIT_DATABASE_URL")
        )
    if own:
        ignore_ssl_variables()
    default = Distance.parse("same-az", tls=True) if own else Distance()
    given["distance"] = distance_of(rtt, tls, default)
    # Each by itself: in the whole line a password could not be told from the next argument.
    arguments = [masked(argument) for argument in sys.argv[1:]]
    command = " ".join(shlex.quote(each) if " " in each else each for each in arguments)
    command = f"poolkit {command}".rstrip()
    sys.exit(compare(options_of(given, command=command, quick=quick)))


@click.command()
@_targets_option
@click.option("--environment", "-e", default="dev", show_default=True, help="preset numbers")
@_max_connections_option
@distance_options("loopback, without TLS")
def up(**given: Any) -> None:
    """Run the embedded servers and the targets until Ctrl-C.

    Prints the addresses of the servers and the targets. A project without targets gets the database
    with its schema, for a test suite; the printed file has its variables.
    """
    require_posix("up")
    require("loadtest")
    from poolkit.compare.command import up  # noqa: PLC0415
    from poolkit.compare.plan.options import options_of  # noqa: PLC0415

    ignore_ssl_variables()
    given["distance"] = distance_of(given.pop("rtt"), given.pop("tls"), Distance())
    up(options_of(given, command="poolkit up"))


@click.command()
@click.argument("run", type=_path)
@click.argument("other", type=_path, required=False)
@click.option("--out", type=_path, help="the page's file, if two runs are compared")
def report(*, run: Path, other: Path | None, out: Path | None) -> None:
    """Write the report of a run again, or compare two runs.

    RUN and OTHER are folders that `poolkit compare` wrote.
    """
    require("loadtest")
    from poolkit.compare.report.write import report, report_two  # noqa: PLC0415
    from poolkit.terminal import new_console  # noqa: PLC0415

    if other is not None:
        report_two(run, other, new_console(), out)
    elif out is not None:
        raise click.UsageError("--out is for two runs; the report of one is in its folder")
    else:
        report(run, new_console())
