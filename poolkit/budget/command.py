"""`poolkit budget`: from options to an exit status."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from poolkit.budget.answers import read_answers, write_answers
from poolkit.budget.files import of_environment, read_files
from poolkit.budget.inventory import take_inventory
from poolkit.budget.kubernetes.renderers import CHART_FILE, KUSTOMIZATION_FILES
from poolkit.budget.limits import class_limit, reserve
from poolkit.budget.measured import check_live, check_run, knee_of_run
from poolkit.budget.model import Database, Limit, NotCounted, Options, known, unknown
from poolkit.budget.read.parameters import Environment, find_environment
from poolkit.budget.report.formats import as_annotations, as_json, as_markdown, as_sarif
from poolkit.budget.tables import table
from poolkit.budget.verdict import EXIT_STATUS, Budget, Budgets
from poolkit.errors import BudgetError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolkit.budget.files import Files
    from poolkit.budget.model import Answers


_Limited = TypeVar("_Limited", bound=Limit)


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
    environment = _environment(files, options)
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
    not_counted = (*inventory.not_counted, *of_others, *left_out, *files.not_read)
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
            not_counted=not_counted,
            unread=inventory.unread,
        )
        if budget.verdict == "does not fit":
            # That may not follow from a client which perhaps connects to another database.
            budget = dataclasses.replace(
                budget,
                services=tuple(each.unless_certain(database.name) for each in clients),
                poolers=tuple(each.unless_certain(database.name) for each in poolers),
            )
        budgets.append(budget)
    return Budgets(
        each=tuple(budgets),
        not_counted=not_counted,
        unread=inventory.unread,
        environment=options.environment,
    )


def _environment(files: Files, options: Options) -> Environment:
    """Return the environment's file, or its name alone where overlays need no file."""
    folders = [path if path.is_dir() else path.parent for path in options.paths]
    folders += [document.path.parent for document in files.templates]
    names = {document.path.name for document in files.kubernetes}
    # Overlays of Kustomize and values of Helm need no file.
    has_overlays = not names.isdisjoint((*KUSTOMIZATION_FILES, CHART_FILE))
    named = [folder / "environments" / f"{options.environment}.toml" for folder in folders]
    if options.environment and (not has_overlays or any(map(Path.is_file, named))):
        environment = find_environment(options.environment, dict.fromkeys(folders))
        return environment.overridden(options.overrides)
    return Environment(name=options.environment)


def _databases(found: Sequence[Database], options: Options) -> list[Database]:
    """Return the databases to check, with the limits that answers and options give.

    Raises:
        BudgetError: the named database does not exist, or a limit is given for one of several.
    """
    ignored = {*options.ignored, *options.answers.ignore}
    databases = [
        _answered(each, options.answers, each.name)
        for each in found
        if options.database in ("", each.name) and each.name not in ignored
    ]
    if options.database and not databases:
        listed = ", ".join(each.name for each in found) or "none"
        raise BudgetError(f"there is no such database: {options.database}; there are: {listed}")
    if not databases:
        return [_as_given(_NOTHING, options)]
    first = _as_given(databases[0], options)
    if first != databases[0] and len(databases) > 1:
        names = ", ".join(f"{each.name} ({each.where})" for each in databases)
        raise BudgetError(f"there are several databases: {names}; name one with --database")
    return [first, *databases[1:]]


_NOTHING = Database(
    name="as given",
    kind="PostgreSQL",
    where=None,
    max_connections=unknown("there is no database in the files"),
    reserved=reserve("postgres"),
)
"""The database of files that have none."""


def _answered(found: _Limited, answers: Answers, name: str = "") -> _Limited:
    """Return a limit, or that of a number which the project has for the database or its class."""
    for kind, key in (("databases", name), ("classes", found.instance_class)):
        if number := getattr(answers, kind).get(key):
            return found.exact(known(number, f"{answers.origin} {kind}.{key}"))
    return found


def _as_given(database: Database, options: Options) -> Database:
    """Return a database with the limits that the options give."""
    if options.database_url:
        from poolkit.activity.server import ActivityConnection  # noqa: PLC0415  (needs psycopg2)

        with ActivityConnection(options.database_url, needs_all=False) as connection:
            limits = connection.limits
        database = database.exact(unknown("the server did not report it"))
        if limits is not None:
            reserves = (limits.superuser_reserved, limits.reserved)
            names = ("superuser_reserved_connections", "reserved_connections")
            shown = {name: known(value, "") for name, value in zip(names, reserves, strict=True)}
            database = database.exact(
                known(limits.max_connections, "SHOW max_connections"),
                kind=f"PostgreSQL {limits.version}".strip(),
                reserved=reserve("postgres", shown),
            )
    elif options.max_connections is not None:
        database = database.exact(known(options.max_connections, "--max-connections"))
    elif options.instance_class:
        limit = _answered(class_limit("postgres", options.instance_class), options.answers)
        database = dataclasses.replace(database, **vars(limit))
    if options.reserve is not None:
        database = dataclasses.replace(database, reserved=known(options.reserve, "--reserve"))
    return database


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
    database = _as_given(_NOTHING, options)
    if database.max_connections.value is None:
        raise BudgetError("--report-class needs a server that reports it: give --database-url")
    version = database.kind.removeprefix("PostgreSQL").strip()
    number, today = database.max_connections.value, dt.datetime.now(tz=dt.UTC).date()
    line: str = table("instance_classes")["line"]
    return line.format(named, "postgres", version, number, today)


# -- output ---------------------------------------------------------------------------------


def budget_text(budgets: Budgets, form: str, *, status: int) -> str:
    """Return the budgets as `json`, `markdown`, `github` or `sarif`."""
    if form == "markdown":
        return as_markdown(budgets)
    if form == "github":
        return as_annotations(budgets)
    found = as_json(budgets, status=status) if form == "json" else as_sarif(budgets)
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


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
