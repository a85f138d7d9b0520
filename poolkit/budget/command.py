"""`poolkit budget`: from options to an exit status."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import gc
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.answers import read_answers, write_answers
from poolkit.budget.concurrency import knee_of_run
from poolkit.budget.files import of_environment, read_files
from poolkit.budget.inventory import take_inventory
from poolkit.budget.kubernetes.renderers import CHART_FILE, KUSTOMIZATION_FILES
from poolkit.budget.limits import class_limit, class_line, reserve, with_classes
from poolkit.budget.measured import check_live, check_run
from poolkit.budget.model import Database, NotCounted, Options, known, unknown
from poolkit.budget.read.parameters import Environment, find_environment
from poolkit.budget.report.formats import as_annotations, as_json, as_markdown, as_sarif
from poolkit.budget.verdict import EXIT_STATUS, Budget, Budgets
from poolkit.errors import BudgetError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.budget.model import Pooler, Service


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Pause the collector of cycles: it would go through all documents again and again.

    It takes two thirds of the time for a file of 300,000 keys, and documents have no cycles.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_collector()
def compute_budget(options: Options) -> Budgets:
    """Read the files and return the budget of each database.

    Raises:
        BudgetError: something that was named does not exist, or an option is about one database
            and there are several.
        TemplateError: a file that was named is wrong; the message names file and line.
        DatabaseUnavailable: the server of --database-url cannot be asked.
    """
    paths = options.paths or (Path("infra") if Path("infra").is_dir() else Path(),)
    options = dataclasses.replace(options, paths=paths)
    names_files = options.parameters or options.ignored or options.database
    files = read_files(paths, may_be_none=bool(options.services) and not names_files)
    environment = Environment(name=options.environment)
    folders = [path if path.is_dir() else path.parent for path in paths]
    folders += [document.path.parent for document in files.templates]
    # Overlays of Kustomize and values of Helm need no file.
    rendered = {*KUSTOMIZATION_FILES, CHART_FILE}
    has_overlays = any(document.path.name in rendered for document in files.kubernetes)
    named = [folder / "environments" / f"{options.environment}.toml" for folder in folders]
    if options.environment and (not has_overlays or any(map(Path.is_file, named))):
        environment = find_environment(options.environment, dict.fromkeys(folders))
        environment = environment.overridden(options.overrides)
    files, left_out = of_environment(files, environment, paths)
    inventory = take_inventory(files, environment, options)
    databases = _databases(inventory.databases, options)
    names = {each.name for each in databases}
    # Without a database of the files, every client counts for the one that the options give.
    is_given = names.isdisjoint(each.name for each in inventory.databases)
    of_others = [
        NotCounted.of(each.part, "it connects to another database")
        for each in inventory.clients
        if not is_given and not each.may_use(names)
    ]
    common: dict[str, Any] = {
        "not_counted": (*inventory.not_counted, *of_others, *left_out, *files.not_read),
        "unread": inventory.unread,
        "environment": options.environment,
    }
    budgets = []
    for database in databases:
        own = {database.name}
        clients = [each for each in inventory.clients if is_given or each.may_use(own)]
        poolers = [each for each in inventory.poolers if is_given or each.may_use(own)]
        budget = Budget(
            database=database,
            services=tuple(each.part for each in clients),
            poolers=tuple(each.part for each in poolers),
            migrations=options.migrations,
            operators=options.operators,
            **common,
        )
        if budget.verdict == "does not fit":
            # That may not follow from a client which perhaps connects to another database.
            parts: list[Service | Pooler] = []
            parts += [each.unless_certain(database.name) for each in clients]
            parts += [each.unless_certain(database.name) for each in poolers]
            for part in parts:
                budget = budget.with_part(part)
        budgets.append(budget)
    return Budgets(each=tuple(budgets), **common)


_EXACT: dict[str, Any] = {"formula": "", "lowest": None, "highest": None, "carried": None}
"""The fields of a database whose limit is a number that was given."""


def _databases(found: Sequence[Database], options: Options) -> list[Database]:
    """Return the databases to check, with the limits that answers and options give.

    Raises:
        BudgetError: the named database does not exist, or a limit is given for one of several.
    """
    databases = []
    ignored = {*options.ignored, *options.answers.ignore}
    for each in found:
        if options.database in ("", each.name) and each.name not in ignored:
            database = with_classes(each, options.answers.classes)
            if each.name in options.answers.databases:
                origin = f"{options.answers.origin} databases.{each.name}"
                limit = known(options.answers.databases[each.name], origin)
                database = dataclasses.replace(database, **{**_EXACT, "max_connections": limit})
            databases.append(database)
    if options.database and not databases:
        listed = ", ".join(each.name for each in found) or "none"
        raise BudgetError(
            f"--database {options.database}: there is no such database; there are: {listed}"
        )
    given = _given_limit(options)
    if not databases:
        nothing = unknown(
            "there is no database in the files; give --max-connections N, --instance-class "
            "db.CLASS.SIZE or --database-url URL"
        )
        kept = {"kind": "PostgreSQL", "max_connections": nothing, "reserved": reserve("postgres")}
        return [Database(**{"name": "as given", "where": None, **kept, **given})]
    if not given:
        return databases
    if len(databases) > 1:
        names = ", ".join(f"{each.name} ({each.where})" for each in databases)
        raise BudgetError(
            f"there are several databases: {names}; name the one that the limit is about with "
            "--database"
        )
    return [dataclasses.replace(databases[0], **given)]


def _given_limit(options: Options) -> dict[str, Any]:
    """Return the fields of a database that the options give."""
    given: dict[str, Any] = {}
    if options.database_url:
        from poolkit.activity.server import ActivityConnection  # noqa: PLC0415  (needs psycopg2)

        with ActivityConnection(options.database_url, needs_all=False) as connection:
            limits = connection.limits
        given = {**_EXACT, "max_connections": unknown("the server did not report it")}
        if limits is not None:
            both = limits.superuser_reserved + limits.reserved
            origin = (
                f"{limits.superuser_reserved} superuser_reserved_connections + "
                f"{limits.reserved} reserved_connections"
            )
            given["kind"] = f"PostgreSQL {limits.version}".strip()
            given["max_connections"] = known(limits.max_connections, "SHOW max_connections")
            given["reserved"] = known(both, origin)
    elif options.max_connections is not None:
        limit = known(options.max_connections, "--max-connections")
        given = {**_EXACT, "max_connections": limit}
    elif options.instance_class:
        given = vars(class_limit("postgres", options.instance_class))
        if options.instance_class in options.answers.classes:
            origin = f"{options.answers.origin} classes"
            limit = known(options.answers.classes[options.instance_class], origin)
            given = {**given, **_EXACT, "max_connections": limit}
    if options.reserve is not None:
        given = {**given, "reserved": known(options.reserve, "--reserve")}
    return given


def measured_class(options: Options) -> str:
    """Return max_connections of a server as entries for pyproject.toml and for the tables.

    Raises:
        BudgetError: neither an option nor the files name one instance class.
        DatabaseUnavailable: the server cannot be asked.
    """
    named = options.instance_class
    if not named:
        files = dataclasses.replace(options, database_url="", report_class=False)
        budgets = compute_budget(files).each
        named, *others = sorted({each.database.instance_class for each in budgets})
        if others or not named:
            raise BudgetError("the files do not name one instance class; give --instance-class")
    given = _given_limit(options)
    if given["max_connections"].value is None:
        raise BudgetError("the server did not report max_connections")
    version = given["kind"].removeprefix("PostgreSQL").strip()
    today = dt.datetime.now(tz=dt.UTC).date()
    return class_line(named, "postgres", version, given["max_connections"].value, today)


# -- output ---------------------------------------------------------------------------------


def budget_text(budgets: Budgets, form: str, *, status: int) -> str:
    """Return the budgets as `json`, `markdown`, `github` or `sarif`."""
    if form == "json":
        return json.dumps(as_json(budgets, status=status), indent=2, ensure_ascii=False) + "\n"
    if form == "markdown":
        return as_markdown(budgets)
    if form == "github":
        return as_annotations(budgets)
    from importlib.metadata import version  # noqa: PLC0415  (for SARIF only)

    return json.dumps(as_sarif(budgets, version("poolkit")), indent=2, ensure_ascii=False) + "\n"


def run(options: Options, form: str, check: Path | None, *, live: bool, answer: bool) -> int:
    """Print the budget in one of the forms and return the exit status."""
    project = Project.find()
    options = dataclasses.replace(options, answers=read_answers(project))
    if options.report_class:
        sys.stdout.write(measured_class(options))
        return EXIT_STATUS["fits"]
    budgets = compute_budget(options)
    if check is not None:
        found, knee = check_run(budgets, check), knee_of_run(check)
        budgets = dataclasses.replace(budgets, knee=knee, checks=tuple(found))
    if live:
        found = check_live(budgets, options.database_url)
        budgets = dataclasses.replace(budgets, checks=(*budgets.checks, *found))
    status = budgets.exit_status(allow_unknown=options.allow_unknown)
    from poolkit.terminal import new_console  # noqa: PLC0415  (its import takes time)

    console = new_console()
    if form == "table":
        from poolkit.budget.report.terminal import print_budgets  # noqa: PLC0415  (the same)

        print_budgets(budgets, console)
    else:
        console.file.write(budget_text(budgets, form, status=status))
        console = new_console(stderr=True)
    for line in write_answers(project, options, budgets) if answer else ():
        console.print(line, soft_wrap=True)
    return status
