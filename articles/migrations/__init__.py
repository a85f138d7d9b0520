"""The schema's history, and how to bring a database up to it.

`upgrade` is safe to start twice: the second waits for the first on an advisory lock and
then finds nothing to do. All steps run in one transaction, so a failing one leaves the
database as it was. Alembic and the driver are imported when a function needs them, because
code that serves requests needs neither.
"""

from __future__ import annotations

from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from sqlalchemy import URL, Engine, create_engine, func, make_url, select, text
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.config import Config
    from sqlalchemy import Connection

Database: TypeAlias = str | URL | Engine
"""A PostgreSQL URL, or an engine where a URL is not enough to connect."""

LOCK_NAME: Final = "articles.migrations"
WAIT_FOR_OTHERS: Final = "10min"
"""The longest wait for another upgrade of the same database."""
WAIT_FOR_TABLES: Final = "5s"
"""The longest wait of a step for a table: all later queries on that table queue behind it."""


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring a database from any revision up to `revision`.

    Raises:
        ValueError: the database is not PostgreSQL.
        sqlalchemy.exc.OperationalError: the database cannot be reached, or a lock took
            longer than WAIT_FOR_OTHERS or WAIT_FOR_TABLES; nothing has changed then.
        alembic.util.CommandError: there is no such revision, or the database has one that this
        version of the program lacks.
    """
    from alembic import command  # noqa: PLC0415 - see the module's docstring

    with _connected(database) as connection, connection.begin():
        # Until the transaction ends, so also through a pooler in transaction mode. A step takes
        # longer the bigger its table is, so an engine's limit for requests does not apply.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_FOR_OTHERS}'"))
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(LOCK_NAME, 0))))
        connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_FOR_TABLES}'"))
        command.upgrade(_config(connection), revision)


def current(database: Database) -> str | None:
    """Return the revision that a database has, None if it has never been upgraded."""
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415 - as above

    with _connected(database) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def heads() -> tuple[str, ...]:
    """Return the latest revisions of this version of the program: by rule, one."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - as above

    return tuple(ScriptDirectory.from_config(_config()).get_heads())


def knows(revision: str) -> bool:
    """Return whether this version of the program has that revision."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - as above

    scripts = ScriptDirectory.from_config(_config())
    return any(script.revision == revision for script in scripts.walk_revisions())


def upgrade_sql(revisions: str = "head") -> str:
    """Return the SQL of an upgrade, for a database that only its administrator may change.

    `revisions` is the last one, or `first:last` where the database has `first` already.
    """
    from alembic import command  # noqa: PLC0415 - as above

    output = StringIO()
    command.upgrade(_config(output=output), revisions, sql=True)
    return output.getvalue()


def revise(database: Database, message: str) -> Path:
    """Write the next migration: the difference between `models.py` and an upgraded database.

    Migrations are numbered, so that two made at the same time meet as a merge conflict.
    """
    from alembic import command  # noqa: PLC0415 - as above
    from alembic.script import Script, ScriptDirectory  # noqa: PLC0415 - as above

    with _connected(database) as connection:
        config = _config(connection)
        number = f"{len(list(ScriptDirectory.from_config(config).walk_revisions())) + 1:04d}"
        script = command.revision(config, message, autogenerate=True, rev_id=number)
    if not isinstance(script, Script):
        raise TypeError(f"Alembic was to write one migration and wrote {script!r}")
    return Path(script.path)


def _config(connection: Connection | None = None, output: StringIO | None = None) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config(output_buffer=output, attributes={"connection": connection})
    # Alembic reads a % in an option as the start of a substitution.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    # A module's name does not begin with a digit.
    config.set_main_option("file_template", "v%%(rev)s_%%(slug)s")
    return config


@contextmanager
def _connected(database: Database) -> Iterator[Connection]:
    if isinstance(database, Engine):
        engine = database
    else:
        engine = create_engine(
            make_url(database).set(drivername="postgresql+psycopg2"),
            poolclass=NullPool,
            connect_args={"application_name": "script:migrations", "connect_timeout": 10},
        )
    if engine.dialect.name != "postgresql":
        raise ValueError(
            f"wanted a PostgreSQL database, found {engine.dialect.name}: "
            "the articles' migrations are for PostgreSQL alone"
        )
    with engine.connect() as connection:
        # In autocommit the lock would not last. At a higher level the changes of the upgrade that
        # this one waited for would not be visible.
        yield connection.execution_options(isolation_level="READ COMMITTED")
