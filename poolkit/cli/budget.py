"""`poolkit budget`."""

from __future__ import annotations

import gc
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from poolkit.cli.extras import require
from poolkit.errors import PoolkitError

_repeatable = partial(click.option, multiple=True)
_path = click.Path(path_type=Path)


@click.command()
@click.argument("paths", nargs=-1, type=_path)
@click.option("--environment", "-e", default="", help="environments/NAME.toml beside the templates")
@_repeatable(
    "--parameters", metavar="KEY=VALUE|FILE", help="a template parameter, or a file; repeatable"
)
@_repeatable(
    "--service",
    "services",
    metavar="NAME=POOL+OVERFLOW[xPROCESSES][@INSTANCES]",
    help="a service's pool and instances, where the templates do not have them; repeatable",
)
@_repeatable("--ignore", "ignored", metavar="NAME", help="do not count a service; repeatable")
@click.option("--database", default="", help="the database to check, if there are several")
@click.option(
    "--database-url",
    envvar="POOLKIT_DATABASE_URL",
    show_envvar=True,
    default="",
    help="read max_connections from this server",
)
@click.option("--max-connections", type=int, help="the server's limit, if no template has it")
@click.option("--instance-class", default="", help="the same, from a class such as db.m7g.large")
@click.option(
    "--migrations", type=int, default=1, show_default=True, help="connections of migrations"
)
@click.option(
    "--operators", type=int, default=3, show_default=True, help="connections of psql and monitoring"
)
@click.option(
    "--reserve", type=int, help="connections that the server reserves, if not the default"
)
@click.option(
    "--pgbouncer-pools", type=int, help="number of PgBouncer's pools, one per database and user"
)
@click.option(
    "--allow-unknown",
    is_flag=True,
    help="exit with 0 even if some numbers are unknown, as long as the known part fits",
)
@click.option(
    "--report-class",
    is_flag=True,
    help="print the entry for the instance class of the server at --database-url, and end",
)
@click.option("--check-run", type=_path, help="compare with a run of `poolkit compare`")
@click.option(
    "--live", is_flag=True, help="compare with the open connections of the server of --database-url"
)
@click.option(
    "--answer",
    is_flag=True,
    help="write these answers, and a question mark for each unknown number, to pyproject.toml",
)
@click.option("--json", "form", flag_value="json", help="print JSON")
@click.option("--markdown", "form", flag_value="markdown", help="print a pull request comment")
@click.option("--github", "form", flag_value="github", help="print workflow annotations")
@click.option("--sarif", "form", flag_value="sarif", help="print SARIF 2.1.0")
def budget(
    *, form: str | None, check_run: Path | None, live: bool, answer: bool, **values: Any
) -> None:
    """Check whether a deployment fits its database.

    Adds up the connections that the services can open at most, and compares the sum with the limit
    of the database.

    PATHS are CloudFormation or SAM templates, Kubernetes manifests, compose files, or folders of
    them; by default infra/. Exit status: 0 if it fits, 1 if it does not, 2 if an option or a named
    file is wrong, 3 if numbers are unknown or no service was found.
    """
    require("infra")
    from poolkit.budget.command import run  # noqa: PLC0415
    from poolkit.budget.model import Options  # noqa: PLC0415

    options = Options(**values)
    # Documents have no cycles. A search for them takes two thirds of the time for 300,000 keys.
    gc.disable()
    try:
        status = run(options, form or "table", check_run, live=live, answer=answer)
    except ValueError as error:
        if isinstance(error, PoolkitError):
            raise
        raise RuntimeError("the budget cannot be computed") from error  # no fault of the input
    finally:
        gc.enable()
    sys.exit(status)
