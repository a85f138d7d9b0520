"""The database of a run before its first target: extensions, migrations, `schema` and `seed`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import sql

from poolkit.commands import ProjectCommand, extension_hint, quoted
from poolkit.compare.run.hosts import inherited_variables
from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError, PreparationFailed
from poolkit.local.readiness import exit_text
from poolkit.migrations import Migrations
from poolkit.project import with_interpreter

if TYPE_CHECKING:
    from poolkit.compare.plan.options import Options
    from poolkit.compare.run.progress import Progress
    from poolkit.local.processes import Supervisor
    from poolkit.local.stack import EmbeddedStack
    from poolkit.project import Project

_POLL_S = 0.05


def prepare_database(
    project: Project,
    stack: EmbeddedStack,
    supervisor: Supervisor,
    options: Options,
    progress: Progress,
) -> None:
    """Bring the database of a run to the project's schema, with its first rows.

    A database of the user's own is changed only with `--prepare-database`.

    Raises:
        ConfigurationError: a database of the user's own does not have the latest migrations.
        PreparationFailed: a command failed, or an extension cannot be created.
    """
    may_change = stack.postgres is not None or options.prepare_database
    if may_change:
        admin_url = (
            stack.database_url if stack.postgres is None else stack.postgres.admin_url(driver="")
        )
        create_extensions(admin_url, project.table.get("extensions", ()))
    if name := project.table.get("migrations"):
        progress.stage("preparing the schema")
        environ = {"DATABASE_URL": stack.database_url}
        migrations = Migrations.find(name, Settings.from_environ(environ, default_target="script"))
        if may_change:
            migrations.upgrade()
        elif migrations.current() not in migrations.heads():
            raise ConfigurationError(
                "the database of --database-url does not have the latest schema; "
                "run `poolkit db upgrade` there first, or add --prepare-database"
            )
    if project.commands and not may_change:
        names = " and ".join(project.commands)
        progress.stage(
            f"the database of --database-url is left alone: --prepare-database runs {names} there"
        )
        return
    for name in project.commands:
        command = ProjectCommand.of(
            project,
            name,
            database_url=stack.database_url,
            environment=options.environment,
            broker_url=stack.broker.url if stack.broker is not None else "",
        )
        progress.stage(f"running {name}: {' '.join(command.words)}")
        _run(command, supervisor)


def create_extensions(admin_url: str, names: list[str]) -> None:
    """Create extensions that only a superuser may create.

    Raises:
        PreparationFailed: the server does not have one, or the role may not create it.
    """
    if not names:
        return
    connection = psycopg2.connect(admin_url, connect_timeout=10)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for name in names:
                create = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} CASCADE")
                cursor.execute(create.format(sql.Identifier(name)))
    except psycopg2.Error as error:
        reason = str(error).partition("\n")[0]
        raise PreparationFailed(f"extensions: {reason}{extension_hint(reason)}") from None
    finally:
        connection.close()


def _run(command: ProjectCommand, supervisor: Supervisor) -> None:
    """Run a command to its end, under the supervisor, so that it ends with the run."""
    started = supervisor.start(
        command.name,
        command.words,
        environ=command.environ,
        inherited=with_interpreter(inherited_variables(), command.python),
        cwd=command.directory,
    )
    try:
        while (status := started.process.exit_status) is None:
            time.sleep(_POLL_S)
    finally:
        supervisor.stop(command.name)
    if status:
        output = started.log.read_text(errors="replace")
        raise PreparationFailed(
            f"{command.name} failed with {exit_text(status)}; its log {started.log} ends:"
            f"{quoted(output.splitlines())}{extension_hint(output)}"
        )
