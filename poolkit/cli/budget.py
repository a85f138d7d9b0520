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
@click.option(
    "--environment",
    "-e",
    metavar="NAME",
    default="",
    help="read parameters from environments/NAME.toml beside the templates; "
    "choose the overlay and the chart's values of this name",
)
@_repeatable(
    "--parameters",
    metavar="KEY=VALUE|FILE",
    help="set a template parameter or compose variable, or read a JSON file of them; repeatable",
)
@_repeatable(
    "--service",
    "services",
    metavar="NAME=POOL+OVERFLOW[xPROCESSES][@INSTANCES]",
    help="declare a service's pool, processes and instances, which wins over the files; repeatable",
)
@_repeatable(
    "--ignore", "ignored", metavar="NAME", help="leave out a service or database; repeatable"
)
@click.option(
    "--database",
    metavar="NAME",
    default="",
    help="check this database only, if the files have several",
)
@click.option(
    "--database-url",
    metavar="URL",
    envvar="POOLKIT_DATABASE_URL",
    show_envvar=True,
    default="",
    help="read max_connections and the reserve from this PostgreSQL server",
)
@click.option("--max-connections", type=int, help="set the server's limit")
@click.option(
    "--instance-class",
    metavar="CLASS",
    default="",
    help="use the limit of RDS for PostgreSQL on this class, such as db.m7g.large",
)
@click.option(
    "--migrations",
    type=int,
    default=1,
    show_default=True,
    help="add this number of connections for migrations",
)
@click.option(
    "--operators",
    type=int,
    default=3,
    show_default=True,
    help="add this number of connections for psql and monitoring",
)
@click.option("--reserve", type=int, help="set the number of connections that the server reserves")
@click.option(
    "--pgbouncer-pools",
    type=int,
    help="set the number of PgBouncer's pools: the pairs of database and user",
)
@click.option(
    "--allow-unknown",
    is_flag=True,
    help="exit with 0 even if some numbers are unknown, as long as the known part fits",
)
@click.option(
    "--report-class",
    is_flag=True,
    help="print max_connections of the server at --database-url as an entry for its instance class, "
    "and exit",
)
@click.option(
    "--check-run",
    type=_path,
    help="compare the ceilings with the peaks in a run folder of `poolkit compare`",
)
@click.option(
    "--live",
    is_flag=True,
    help="compare the ceilings with the open connections of the server at --database-url",
)
@click.option(
    "--answer",
    is_flag=True,
    help="write the answers of this command line, and a question mark for each unknown number, to "
    "pyproject.toml or poolkit.toml",
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

    PATHS are files or folders: CloudFormation or SAM templates, CDK output, Terraform plans or
    states as JSON, Kubernetes manifests, kustomizations, Helm charts and compose files. The default
    is infra/, or the current folder if there is no infra/.

    Exit status: 0 if the deployment fits; 1 if it does not; 2 if an option or a named file is
    wrong; 3 if it cannot be shown to fit, or if there is nothing to count.
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
