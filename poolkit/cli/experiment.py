"""`poolkit experiment`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from poolkit.cli.distance import distance_of, distance_options, ignore_ssl_variables
from poolkit.cli.extras import require, require_posix
from poolkit.local.distance import Distance
from poolkit.masking import masked

_path = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("names", metavar="[list | NAME...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="run every experiment")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="change a condition of the experiment, such as pool_size=5; repeatable",
)
@click.option(
    "--database-url", help="run in a schema of this PostgreSQL, which is dropped at the end"
)
@click.option("--mongodb-url", help="the MongoDB of the experiment on MongoDB", default="")
@distance_options("loopback, without TLS")
@click.option(
    "--report",
    is_flag=False,
    flag_value=Path("experiments.html"),
    type=_path,
    metavar="[FILE]",
    help="write an HTML page  [default FILE: experiments.html]",
)
@click.option("--claims", type=_path, metavar="FILE", help="write the page of all claims")
@click.option("--json", "as_json", is_flag=True, help="print the results as JSON")
def experiment(
    *,
    names: tuple[str, ...],
    every: bool,
    changes: tuple[str, ...],
    database_url: str | None,
    mongodb_url: str,
    rtt: Distance | None,
    tls: bool | None,
    report: Path | None,
    claims: Path | None,
    as_json: bool,
) -> None:
    """Check what is said about connection pooling.

    Each experiment runs the bad and the good way of an often-read claim on a private PostgreSQL, and
    computes from the measurement whether the claim is true. `poolkit experiment list` shows them.

    Exit status: 0 if all ran, whatever the verdicts; 1 if one failed; 2 for wrong input; 3 if one
    lacks a program that it needs; 130 after Ctrl-C, 143 after SIGTERM.
    """
    require_posix("experiment")
    require("experiments")
    from poolkit.experiment import command  # noqa: PLC0415
    from poolkit.experiment.run import Options  # noqa: PLC0415

    if names == ("list",):
        command.list_experiments()
        return
    if "list" in names:
        raise click.UsageError("list stands alone: `poolkit experiment list` shows all experiments")
    if every == bool(names):
        raise click.UsageError("name an experiment, or --all; `poolkit experiment list` shows them")
    pairs = [change.partition("=") for change in changes]
    if any(not sign for _, sign, _ in pairs):
        raise click.UsageError("--set takes NAME=VALUE, such as --set pool_size=5")
    if changes and len(names) != 1:
        raise click.UsageError("--set changes the conditions of one experiment: name it alone")
    if claims is not None and not every:
        raise click.UsageError("--claims needs --all: the page has a row for every claim")
    if database_url is None:
        ignore_ssl_variables()
    options = Options(
        # Each by itself: in the whole line a password could not be told from the next argument.
        command=" ".join(["poolkit", *map(masked, sys.argv[1:])]),
        distance=distance_of(rtt, tls, Distance()),
        database_url=database_url,
        mongodb_url=mongodb_url,
        changes={name: value for name, _, value in pairs},
    )
    sys.exit(
        command.experiment(
            names, options, every=every, as_json=as_json, report=report, claims=claims
        )
    )
