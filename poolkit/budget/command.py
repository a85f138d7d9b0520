"""`poolkit budget`: from options to an exit status."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from poolkit.budget.files import of_environment, read_files
from poolkit.budget.instance_classes import (
    RDS_RESERVED,
    SUPERUSER_RESERVED,
    class_formula,
    memory_gib,
    nominal_connections,
    planned_connections,
)
from poolkit.budget.inventory import take_inventory
from poolkit.budget.model import Database, Options, known, unknown
from poolkit.budget.read.parameters import Environment, find_environment
from poolkit.budget.report.formats import as_annotations, as_json, as_markdown, as_sarif
from poolkit.budget.verdict import Budget
from poolkit.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Sequence

FITS, DOES_NOT_FIT = 0, 1


def compute_budget(options: Options) -> Budget:
    """Read the files and return their budget.

    Raises:
        BudgetError: something that was named does not exist, or there is no database.
        TemplateError: a file is wrong; the message names file and line.
        DatabaseUnavailable: the server of --database-url cannot be asked.
    """
    paths = options.paths or (Path("infra") if Path("infra").is_dir() else Path(),)
    names_files = options.parameters or options.ignored or options.database
    files = read_files(paths, may_be_none=bool(options.services) and not names_files)
    not_read = files.not_read
    environment = Environment(name=options.environment)
    folders = [path if path.is_dir() else path.parent for path in paths]
    folders += [document.path.parent for document in files.templates]
    has_file = any(
        (folder / "environments" / f"{options.environment}.toml").is_file() for folder in folders
    )
    # Overlays of Kustomize need no file.
    has_overlays = any(document.path.stem == "kustomization" for document in files.kubernetes)
    if options.environment and (has_file or not has_overlays):
        environment = find_environment(options.environment, dict.fromkeys(folders))
        environment = environment.overridden(options.overrides)
    files, left_out = of_environment(files, environment, paths)
    inventory = take_inventory(files, environment, options)
    database = _database(inventory.databases, options)
    if options.reserve is not None:
        database = dataclasses.replace(database, reserved=known(options.reserve, "--reserve"))
    return Budget(
        database=database,
        services=inventory.services,
        poolers=inventory.poolers,
        migrations=options.migrations,
        operators=options.operators,
        not_counted=(*inventory.not_counted, *left_out, *not_read),
        unread=inventory.unread,
        environment=options.environment,
    )


def _database(found: Sequence[Database], options: Options) -> Database:
    """Return the database that the options give, or the only one of the files."""
    superuser = f"{SUPERUSER_RESERVED} superuser_reserved_connections"
    given = Database(
        name="as given",
        kind="PostgreSQL",
        where=None,
        max_connections=unknown("the server did not report it"),
        reserved=known(SUPERUSER_RESERVED, superuser),
    )
    if options.database_url:
        from poolkit.activity.server import ActivityConnection  # noqa: PLC0415  (needs psycopg2)

        with ActivityConnection(options.database_url) as connection:
            limits = connection.limits
        given = dataclasses.replace(given, name="at --database-url")
        if limits is None:
            return given
        return dataclasses.replace(
            given,
            kind=f"PostgreSQL {limits.version}".strip(),
            max_connections=known(limits.max_connections, "SHOW max_connections"),
            reserved=known(
                limits.superuser_reserved + limits.reserved,
                f"{limits.superuser_reserved} superuser_reserved_connections + "
                f"{limits.reserved} reserved_connections",
            ),
        )
    if options.max_connections is not None:
        limit = known(options.max_connections, "--max-connections")
        return dataclasses.replace(given, max_connections=limit)
    if instance_class := options.instance_class:
        gib = memory_gib(instance_class)
        return dataclasses.replace(
            given,
            max_connections=known(planned_connections(gib), f"--instance-class {instance_class}"),
            formula=class_formula(instance_class, gib),
            instance_class=instance_class,
            highest=nominal_connections(gib),
            reserved=known(
                SUPERUSER_RESERVED + RDS_RESERVED,
                f"{superuser} + {RDS_RESERVED} rds.rds_superuser_reserved_connections",
            ),
        )
    if len(found) == 1:
        return found[0]
    if not found:
        raise BudgetError(
            "there is no database in the templates; give --max-connections N, "
            "--instance-class db.CLASS.SIZE or --database-url URL"
        )
    names = ", ".join(f"{each.name} ({each.where})" for each in found)
    raise BudgetError(f"there are several databases: {names}; name one with --database")


# -- output ---------------------------------------------------------------------------------


def exit_status(budget: Budget, *, allow_unknown: bool) -> int:
    """Return 0 if the deployment fits; with `allow_unknown` also if only its known part does."""
    if budget.verdict == "fits":
        return FITS
    if allow_unknown and budget.verdict == "cannot be shown to fit":
        return FITS
    return DOES_NOT_FIT


def budget_text(budget: Budget, form: str, *, status: int) -> str:
    """Return the budget as `json`, `markdown`, `github` or `sarif`."""
    if form == "json":
        return json.dumps(as_json(budget, status=status), indent=2, ensure_ascii=False) + "\n"
    if form == "markdown":
        return as_markdown(budget)
    if form == "github":
        return as_annotations(budget)
    from importlib.metadata import version  # noqa: PLC0415  (for SARIF only)

    return json.dumps(as_sarif(budget, version("poolkit")), indent=2, ensure_ascii=False) + "\n"


def run(options: Options, form: str, check: Path | None) -> int:
    """Print the budget in one of the forms and return the exit status."""
    budget = compute_budget(options)
    status = exit_status(budget, allow_unknown=options.allow_unknown)
    peaks: tuple[str, ...] = ()
    if check is not None:
        from poolkit.budget.run_check import check_run  # noqa: PLC0415  (reads compare's files)

        found = check_run(budget, check)
        peaks = tuple(str(each) for each in found)
        status = status if all(each.is_within for each in found) else DOES_NOT_FIT
    from poolkit.terminal import new_console  # noqa: PLC0415  (its import takes time)

    console = new_console()
    if form == "table":
        from poolkit.budget.report.terminal import print_budget  # noqa: PLC0415  (the same)

        print_budget(budget, console)
    else:
        console.file.write(budget_text(budget, form, status=status))
        console = new_console(stderr=True)
    for line in peaks:
        console.print(line, soft_wrap=True)
    return status
