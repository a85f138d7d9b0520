"""Alembic migrations for a database that is in use: `env.py` in three lines.

    from myapp.models import Base
    from poolkit import alembic

    alembic.run(Base.metadata)

`alembic upgrade head`, `poolkit db upgrade` and `Scripts(...).upgrade(engine)` all run this file,
and with it the rules of an upgrade:

- One at a time: a second upgrade waits on an advisory lock, and then finds nothing to do.
- One transaction: a failing step leaves the database as it was.
- A step waits 5 s for a table, because all later queries on the table queue behind it. Then the
  upgrade is rolled back and tried again after a pause, six times in all.
- `statement_timeout` does not apply: a step takes longer the bigger its table is.

All of them hold for one transaction only, so PgBouncer may stand in between in transaction mode.
Databases other than PostgreSQL get Alembic's own behaviour.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from logging.config import fileConfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from alembic import command, context
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import URL, Engine, event, exc, make_url, text

from poolkit.config.engine import make_async_engine, make_engine
from poolkit.config.session import sqlstate
from poolkit.config.settings import Settings, names_database, with_url
from poolkit.errors import ConfigurationError, MigrationError
from poolkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection, MetaData

__all__ = ("LOCK_NAME", "Database", "Scripts", "run")

Database: TypeAlias = str | URL | Engine
"""A database's URL, or an engine where a URL is not enough to connect."""

LOCK_NAME: Final = "poolkit.alembic"
"""The name behind the advisory lock, one for each database: `hashtextextended(name, 0)`."""
WAIT_FOR_OTHERS: Final = "10min"
"""The longest wait for another upgrade of the same database."""
WAIT_FOR_TABLES: Final = "5s"
"""The longest wait of a step for a table."""
ATTEMPTS: Final = 6
"""Attempts at an upgrade that does not get its tables: a minute and a half in all."""
LONGEST_PAUSE_S: Final = 30.0

# By SQLSTATE (PostgreSQL, Appendix A): lock_not_available, deadlock_detected.
_TABLE_IS_HELD = ("55P03", "40P01")
# The module behind each synchronous driver, for the URL of an asynchronous application.
_SYNC_DRIVERS = {
    "postgresql": {"psycopg2": "psycopg2", "psycopg": "psycopg"},
    "mysql": {"pymysql": "pymysql", "mysqldb": "MySQLdb"},
    "mariadb": {"pymysql": "pymysql", "mysqldb": "MySQLdb"},
    "sqlite": {"pysqlite": "sqlite3"},
}

_log = logging.getLogger(__name__)


# -- env.py ---------------------------------------------------------------------------------


def run(*metadata: MetaData, url: str | URL | None = None, **configure: Any) -> None:
    """Run the current Alembic command; called by `env.py`.

        alembic.run(Base.metadata, include_schemas=True)

    The database is the first of these: the connection in `config.attributes["connection"]`
    (which `Scripts` and most test suites set), `url`, the DATABASE_* variables, `sqlalchemy.url`.
    The URL may name an asynchronous driver.

    Args:
        metadata: the application's tables, for `alembic revision --autogenerate` and `alembic check`.
        url: the database, for an application that does not use the DATABASE_* variables.
        configure: options of Alembic's `context.configure`, which win over poolkit's.

    Raises:
        ConfigurationError: no database is named, or a DATABASE_* variable is wrong.
        DatabaseUnavailable: the database cannot be reached.
        sqlalchemy.exc.OperationalError: another upgrade, or a table, was locked for too long;
            nothing has changed then.
    """
    options = {
        "target_metadata": metadata[0] if len(metadata) == 1 else list(metadata) or None,
        "compare_server_default": True,
        **configure,
    }
    config = context.config
    if config.cmd_opts is not None and config.config_file_name is not None:
        _log_as_configured(config)
    if context.is_offline_mode():
        _write_sql(_environ(url, config), options)
    elif (connection := config.attributes.get("connection")) is not None:
        _migrate(connection, options)
    else:
        _connect_and_migrate(_environ(url, config), options)


def _log_as_configured(config: Config) -> None:
    """Set up logging as `alembic.ini` has it: only for the command, which owns its process."""
    if config.file_config.has_section("loggers"):
        fileConfig(str(config.config_file_name), disable_existing_loggers=False)


def _write_sql(environ: Mapping[str, str], options: dict[str, Any]) -> None:
    """Write the upgrade as SQL (`--sql`), with the lock and the limits in it."""
    backend = "postgresql"
    if names_database(environ):
        backend = _settings(environ).url.get_backend_name()
    context.configure(**{"dialect_name": backend, "literal_binds": True, **options})
    with context.begin_transaction():
        if backend == "postgresql":
            for statement in _first_statements():
                context.execute(statement)
        context.run_migrations()


def _connect_and_migrate(environ: Mapping[str, str], options: dict[str, Any]) -> None:
    if not names_database(environ):
        raise ConfigurationError(
            "no database is named; set DATABASE_URL (or DATABASE_SECRET_ARN, DATABASE_IAM_AUTH), "
            "sqlalchemy.url in alembic.ini, or the argument url of alembic.run in env.py"
        )
    settings = _settings(environ)
    if not settings.preset.is_async:
        engine = make_engine(settings)
        try:
            with engine.connect() as connection:
                _migrate(connection, options)
        finally:
            engine.dispose()
        return

    async def migrate() -> None:
        engine = make_async_engine(settings)
        try:
            async with engine.connect() as connection:
                await connection.run_sync(_migrate, options)
        finally:
            await engine.dispose()

    # In a thread, because the caller may have an event loop: an application that upgrades at start.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, migrate()).result()


def _migrate(connection: Connection, options: dict[str, Any]) -> None:
    """Run the command over a connection, again if a table was locked for too long."""
    limits = _Limits() if connection.dialect.name == "postgresql" and _changes_schema() else None
    if limits is None or connection.in_transaction():
        # In a transaction of the caller's, which cannot be begun again.
        if limits is not None:
            limits(connection)
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
        return
    # In autocommit the lock would not last. At a higher level the changes of the upgrade that
    # this one waited for would not be visible.
    connection = connection.execution_options(isolation_level="READ COMMITTED")
    # At every begin: Alembic's autocommit_block ends the transaction and begins another.
    event.listen(connection, "begin", limits)
    try:
        for attempt in range(1, ATTEMPTS + 1):
            context.configure(connection=connection, **options)
            try:
                with context.begin_transaction():
                    context.run_migrations()
            except exc.DBAPIError as error:
                if (
                    limits.waits
                    or sqlstate(error.orig) not in _TABLE_IS_HELD
                    or attempt == ATTEMPTS
                ):
                    raise
                pause = min(LONGEST_PAUSE_S, 2.0**attempt) * random.uniform(0.5, 1)
                reason = str(error.orig).partition("\n")[0]
                _log.warning(
                    "attempt %d of %d: %s; rolled back, the next attempt is in %.0f s",
                    *(attempt, ATTEMPTS, reason, pause),
                )
            else:
                return
            time.sleep(pause)
    finally:
        event.remove(connection, "begin", limits)


def _changes_schema() -> bool:
    """Return whether this is an upgrade, a downgrade or a stamp: commands that have a target."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


class _Limits:
    """A `begin` listener that takes the lock and sets the limits, both until the transaction ends.

    `waits` is true while the upgrade waits for another one: that wait is not tried again.
    """

    waits = False

    def __call__(self, connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return
        self.waits = True
        for statement in _first_statements():
            connection.execute(text(statement))
        self.waits = False


def _first_statements() -> tuple[str, ...]:
    return (
        "SET LOCAL statement_timeout = 0",
        "SET LOCAL idle_in_transaction_session_timeout = 0",
        f"SET LOCAL lock_timeout = '{WAIT_FOR_OTHERS}'",
        f"SELECT pg_advisory_xact_lock(hashtextextended('{LOCK_NAME}', 0))",
        f"SET LOCAL lock_timeout = '{WAIT_FOR_TABLES}'",
    )


# -- the database of env.py -----------------------------------------------------------------


def _environ(url: str | URL | None, config: Config) -> dict[str, str]:
    """Return the variables that name the database, from wherever it is named."""
    environ = dict(os.environ)
    if url is None and not names_database(environ):
        url = config.get_main_option("sqlalchemy.url") or None
    return environ if url is None else with_url(environ, url)


def _settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings of a migration: the deployable's database and none of its limits.

    A migration takes a synchronous driver if there is one. Only without one it takes the
    asynchronous driver of the URL.
    """
    # The variables may be those of a web service.
    environ = {**environ, "POOLKIT_TARGET": "script"}
    environ.pop("POOLKIT_DRIVER", None)
    if text_ := environ.get("DATABASE_URL"):
        url = _with_sync_driver(text_)
        if url is None:
            environ["POOLKIT_TARGET"] = "web_async"
        else:
            environ["DATABASE_URL"] = url.render_as_string(hide_password=False)
    found = Settings.from_environ(environ)
    preset = found.preset.replace(
        statement_timeout=0,
        idle_in_transaction_session_timeout=0,
        echo=False,
        # A pooler may stand in between, and a migration gains nothing from prepared statements.
        transaction_pooling=True,
    )
    return replace(found, preset=preset, instance=found.instance or "migrations")


def _with_sync_driver(url: str) -> URL | None:
    """Return the URL with a synchronous driver that is installed; None if there is none."""
    try:
        parsed = make_url(url.strip().replace("postgres://", "postgresql://", 1))
    except (exc.ArgumentError, ValueError):
        raise ConfigurationError(
            "not a database URL; wanted driver://user:password@host:port/database"
        ) from None
    backend, _, named = parsed.drivername.partition("+")
    drivers = _SYNC_DRIVERS.get(backend, {})
    installed = [driver for driver, module in drivers.items() if find_spec(module)]
    if named in installed:
        return parsed
    return parsed.set(drivername=f"{backend}+{installed[0]}") if installed else None


# -- migrations run by code -----------------------------------------------------------------


class Scripts:
    """The migrations of a project, run by code instead of by the command `alembic`.

        scripts = Scripts("articles/migrations")
        scripts.upgrade(engine)

    Args:
        location: the folder of an `env.py`, or an `alembic.ini`.

    Raises:
        ConfigurationError: there is no such folder or file.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = Path(location).absolute()
        if not self.location.is_file() and not (self.location / "env.py").is_file():
            raise ConfigurationError(
                f"no migrations in {location}; wanted a folder with an env.py, or an alembic.ini"
            )

    def upgrade(self, database: Database, revision: str = "head") -> None:
        """Bring a database from any revision up to `revision`.

        Raises:
            MigrationError: `env.py` connects to another database.
            sqlalchemy.exc.OperationalError: the database cannot be reached, or a lock took too
                long; nothing has changed then.
            alembic.util.CommandError: there is no such revision, or the database has one that
                this version of the program lacks.
        """
        with self._connected(database) as config:
            self._current(config)
            command.upgrade(config, revision)

    def current(self, database: Database) -> str | None:
        """Return the revision that a database has, None if it has never been upgraded.

        Raises:
            MigrationError: `env.py` connects to another database.
        """
        with self._connected(database) as config:
            return self._current(config)

    def heads(self) -> tuple[str, ...]:
        """Return the latest revisions of this version of the program: by rule, one."""
        return tuple(self._directory().get_heads())

    def knows(self, revision: str) -> bool:
        """Return whether this version of the program has that revision."""
        scripts = self._directory().walk_revisions()
        return any(script.revision == revision for script in scripts)

    def leads_to(self, earlier: str, later: str) -> bool:
        """Return whether a revision is another one, or among those before it."""
        if not (self.knows(earlier) and self.knows(later)):
            return False
        before = self._directory().iterate_revisions(later, "base")
        return any(script.revision == earlier for script in before)

    def upgrade_sql(self, revisions: str = "head") -> str:
        """Return the SQL of an upgrade, for a database that only its administrator may change.

        `revisions` is the last one, or `first:last` where the database has `first` already.
        """
        output = StringIO()
        command.upgrade(self._config(output=output), revisions, sql=True)
        return output.getvalue()

    def revise(self, database: Database, message: str) -> Path:
        """Write the next migration: the difference between the models and an upgraded database.

        If the migrations are numbered, so is the next one: two that are made at the same time
        meet as a merge conflict.
        """
        known = [script.revision for script in self._directory().walk_revisions()]
        numbered = all(revision.isdigit() for revision in known)
        with self._connected(database) as config:
            script = command.revision(
                config,
                message,
                autogenerate=True,
                rev_id=f"{len(known) + 1:04d}" if numbered else None,
            )
        if not isinstance(script, Script):
            raise TypeError(f"Alembic was to write one migration and wrote {script!r}")
        return Path(script.path)

    def _current(self, config: Config) -> str | None:
        """Return the database's revision, read through `env.py` with the options that it sets."""
        ours: Connection = config.attributes["connection"]
        found: list[str | None] = []

        def read(heads: Any, reading: MigrationContext) -> list[Any]:
            theirs = reading.connection
            if theirs is not ours and theirs is not None and _identity(theirs) != _identity(ours):
                raise MigrationError(
                    f"env.py in {self.location} connects to "
                    f"{masked(theirs.engine.url.render_as_string())}, not to "
                    f"{masked(ours.engine.url.render_as_string())}; let it call poolkit.alembic.run, or use "
                    'config.attributes["connection"]'
                )
            found.append(reading.get_current_revision())
            return []

        directory = self._directory(config)
        with EnvironmentContext(config, directory, fn=read, dont_mutate=True):
            directory.run_env()
        if ours.in_transaction():
            ours.rollback()
        return found[-1]

    def _directory(self, config: Config | None = None) -> ScriptDirectory:
        return ScriptDirectory.from_config(config or self._config())

    def _config(
        self, connection: Connection | None = None, output: StringIO | None = None
    ) -> Config:
        file = self.location if self.location.is_file() else None
        config = Config(file, output_buffer=output, attributes={"connection": connection})
        # Alembic reads a % in an option as the start of a substitution.
        if file is None:
            config.set_main_option("script_location", str(self.location).replace("%", "%%"))
            # A module's name does not begin with a digit.
            config.set_main_option("file_template", "v%%(rev)s_%%(slug)s")
        if connection is not None:
            # For an env.py that makes an engine of its own, with the driver that it expects.
            url = connection.engine.url
            written = (config.get_main_option("sqlalchemy.url") or "").partition("://")[0]
            if written.partition("+")[0] == url.get_backend_name():
                url = url.set(drivername=written)
            escaped = url.render_as_string(hide_password=False).replace("%", "%%")
            config.set_main_option("sqlalchemy.url", escaped)
        return config

    @contextmanager
    def _connected(self, database: Database) -> Iterator[Config]:
        if isinstance(database, Engine):
            with database.connect() as connection:
                yield self._config(connection)
            return
        engine = make_engine(_settings(with_url({}, database)))
        try:
            with engine.connect() as connection:
                yield self._config(connection)
        finally:
            engine.dispose()


def _identity(connection: Connection) -> tuple[Any, ...]:
    """Return what distinguishes a database from all others."""
    if connection.dialect.name != "postgresql":
        return (connection.engine.url.set(drivername=connection.dialect.name),)
    query = "SELECT current_database(), pg_postmaster_start_time()"
    return tuple(connection.execute(text(query)).one())
