"""Alembic's env.py with poolkit: one upgrade at a time, in one transaction, over any URL."""

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from alembic.util import CommandError
from processes import run_python, wait_until
from programs import needs_pgbouncer
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from poolkit import alembic
from poolkit.alembic import LOCK_NAME, Scripts
from poolkit.errors import ConfigurationError, MigrationError
from poolkit.local.pgbouncer import EmbeddedPgBouncer
from poolkit.local.postgres import APP_ROLE

pytestmark = pytest.mark.process

LOCK = f"pg_advisory_lock(hashtextextended('{LOCK_NAME}', 0))"
ENV = """
from sqlalchemy import Column, Integer, MetaData, Table
from poolkit import alembic

metadata = MetaData()
Table("notes", metadata, Column("id", Integer, primary_key=True))
Table("tags", metadata, Column("id", Integer, primary_key=True))
alembic.run(metadata)
"""
MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {before!r}

def upgrade():
    {upgrade}

def downgrade():
    {downgrade}
"""
INI = """
[alembic]
script_location = %(here)s/migrations
prepend_sys_path = %(here)s
path_separator = os
"""


def write_migration(folder, revision, before, upgrade, downgrade="pass"):
    written = MIGRATION.format(
        revision=revision, before=before, upgrade=upgrade, downgrade=downgrade
    )
    (folder / "versions" / f"v{revision}.py").write_text(written)


@pytest.fixture
def folder(tmp_path):
    """A project with an alembic.ini and two migrations, one table each."""
    (tmp_path / "alembic.ini").write_text(INI)
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(ENV)
    create = "op.create_table({!r}, sa.Column('id', sa.Integer, primary_key=True))"
    drop = "op.drop_table({!r})"
    write_migration(folder, "0001", None, create.format("notes"), drop.format("notes"))
    write_migration(folder, "0002", "0001", create.format("tags"), drop.format("tags"))
    return folder


@pytest.fixture
def scripts(folder):
    return Scripts(folder)


def tables(database):
    rows = database.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
    )
    return [row["tablename"] for row in rows]


ALL = ["alembic_version", "notes", "tags"]


# -- what an upgrade does -------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_an_empty_database_is_upgraded_to_the_head(database, scripts, driver):
    """Whichever driver the URL names, the upgrade works, and again does nothing."""
    assert scripts.current(database.url(driver)) is None
    scripts.upgrade(database.url(driver))
    scripts.upgrade(database.url(driver))
    assert scripts.current(database.url(driver)) == "0002"
    assert tables(database) == ALL


def test_an_engine_serves_where_a_url_is_not_enough(database, scripts):
    """An engine with its own way of connecting is used as it is, and kept open."""
    engine = create_engine(database.url(), poolclass=NullPool)
    scripts.upgrade(engine)
    assert scripts.current(engine) == "0002"


def test_a_url_object_keeps_its_password(database, scripts):
    """A URL that SQLAlchemy parsed does as well as its text."""
    scripts.upgrade(make_url(database.url()))
    assert scripts.current(make_url(database.url())) == "0002"


def test_two_upgrades_at_once_are_one(database, folder):
    """Both one-off jobs succeed; the second finds nothing left to do."""

    def upgrade():
        # Alembic keeps its context in module globals, so two threads are not two jobs.
        program = "import sys; from poolkit.alembic import Scripts; Scripts(sys.argv[1]).upgrade(sys.argv[2])"
        return run_python("-c", program, folder, database.url()).returncode

    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(upgrade) for _ in range(2)]
        assert [job.result(timeout=110) for job in jobs] == [0, 0]
    assert tables(database) == ALL


@contextmanager
def waiting(scripts, database, url_or_engine):
    """Have an upgrade wait for the lock until the block ends; yield the holder's cursor."""
    with database.connect() as connection, ThreadPoolExecutor(1) as thread:
        cursor = connection.cursor()
        cursor.execute(f"SELECT {LOCK}")
        upgrade = thread.submit(scripts.upgrade, url_or_engine)
        wait_until(
            lambda: any(backend["wait_event"] == "advisory" for backend in database.backends()),
            "a backend that waits for the lock",
        )
        yield cursor
        cursor.execute(f"SELECT {LOCK.replace('lock(', 'unlock(', 1)}")
        upgrade.result(timeout=100)


def test_an_upgrade_waits_for_another_one(database, scripts):
    """While another session holds the lock, nothing is changed; then it goes on."""
    with waiting(scripts, database, database.url()):
        assert tables(database) == []
    assert tables(database) == ALL


@pytest.mark.parametrize("isolation_level", ["AUTOCOMMIT", "REPEATABLE READ"])
def test_an_engine_made_for_requests_does_not_make_an_upgrade_unsafe(
    database, scripts, isolation_level
):
    """Its isolation level and statement timeout are set aside while the upgrade runs."""
    engine = create_engine(
        database.url(),
        poolclass=NullPool,
        isolation_level=isolation_level,
        connect_args={"options": "-c statement_timeout=2500"},
    )
    with waiting(scripts, database, engine) as cursor:
        cursor.execute("SELECT pg_sleep(2.7)")  # longer than any of its statements may take
        # As another upgrade would have done it while this one waited.
        cursor.execute("CREATE TABLE alembic_version (version_num text); CREATE TABLE notes ()")
        cursor.execute("INSERT INTO alembic_version VALUES ('0001')")
        cursor.execute(f"ALTER TABLE alembic_version OWNER TO {APP_ROLE}")
    assert scripts.current(engine) == "0002"


def test_an_upgrade_that_waits_too_long_for_another_gives_up(database, scripts, monkeypatch):
    """That wait has an end, is not tried again, and leaves the database as it was."""
    monkeypatch.setattr(alembic, "WAIT_FOR_OTHERS", "50ms")
    with database.connect() as connection:
        connection.cursor().execute(f"SELECT {LOCK}")
        with pytest.raises(OperationalError, match="lock timeout"):
            scripts.upgrade(database.url())
    assert tables(database) == []


def test_a_failing_upgrade_leaves_the_database_as_it_was(database, scripts):
    """All steps are one transaction: a table in the way of the last step undoes the first."""
    database.execute("CREATE TABLE tags (in_the_way int)")
    with pytest.raises(Exception, match="tags"):
        scripts.upgrade(database.url())
    assert tables(database) == ["tags"]


def test_a_database_from_a_later_version_of_the_program_is_left_alone(database, scripts):
    """An unknown revision stops the upgrade."""
    scripts.upgrade(database.url())
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    assert not scripts.knows("9999")
    with pytest.raises(CommandError, match="9999"):
        scripts.upgrade(database.url())


def test_the_connection_is_given_back_and_names_itself(database, scripts):
    """No backend is left, and while it works its application_name says who it is."""
    with waiting(scripts, database, database.url()):
        assert len(database.backends("script:migrations")) == 1
    database.wait_for_backends(0, "script:migrations")


# -- tables in use --------------------------------------------------------------------------


@pytest.fixture
def held(database, folder, scripts, monkeypatch):
    """A session that reads `notes`, which the next migration wants to change."""
    scripts.upgrade(database.url())
    write_migration(folder, "0003", "0002", "op.add_column('notes', sa.Column('tag', sa.Text))")
    monkeypatch.setattr(alembic, "WAIT_FOR_TABLES", "50ms")
    monkeypatch.setattr(alembic, "LONGEST_PAUSE_S", 0.05)
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE notes OWNER TO {APP_ROLE}; BEGIN; SELECT * FROM notes")
        yield cursor


def test_a_step_that_does_not_get_its_table_is_tried_again(
    database, scripts, held, caplog, monkeypatch
):
    """The upgrade is rolled back, so that queries on the table go on, and succeeds later."""
    caplog.set_level(logging.WARNING, "poolkit.alembic")
    # As many as it takes until this thread, on a busy machine, lets go of the table.
    monkeypatch.setattr(alembic, "ATTEMPTS", 10_000)
    with ThreadPoolExecutor(1) as thread:
        upgrade = thread.submit(scripts.upgrade, database.url())
        wait_until(lambda: caplog.records, "a first attempt that failed")
        held.execute("COMMIT")
        upgrade.result(timeout=100)
    assert scripts.current(database.url()) == "0003"


def test_the_attempts_have_an_end(database, scripts, held, caplog):
    """A table that is never free ends the upgrade with the database's own error."""
    with pytest.raises(OperationalError, match="lock timeout"):
        scripts.upgrade(database.url())
    attempts = [record for record in caplog.records if record.name == "poolkit.alembic"]
    assert len(attempts) == alembic.ATTEMPTS - 1
    assert scripts.current(database.url()) == "0002"


def test_a_step_outside_a_transaction_keeps_its_limits_and_the_lock_afterwards(
    database, folder, scripts
):
    """Alembic's autocommit_block ends the transaction; the next one has lock and limits again."""
    write_migration(
        folder,
        "0003",
        "0002",
        "with op.get_context().autocommit_block():\n"
        "        op.execute('CREATE INDEX CONCURRENTLY IF NOT EXISTS quick ON notes (id)')\n"
        "    op.execute('CREATE TABLE seen AS SELECT count(*) AS locks,'\n"
        "        ' current_setting(''lock_timeout'') AS wait FROM pg_locks'\n"
        "        ' WHERE locktype = ''advisory''')".replace("''", "\\'"),
    )
    scripts.upgrade(database.url())
    assert database.execute("SELECT * FROM seen") == [{"locks": 1, "wait": "5s"}]
    assert database.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = 'quick'::regclass")


# -- the command ----------------------------------------------------------------------------


def run_alembic(folder, *arguments, **variables):
    return run_python("-m", "alembic", *arguments, cwd=folder.parent, environ=variables, clean=True)


@pytest.mark.parametrize("driver", ["", "psycopg", "asyncpg"])
def test_the_command_takes_its_database_from_the_variable(database, folder, driver):
    """`alembic upgrade head` with DATABASE_URL as the web service has it."""
    answer = run_alembic(folder, "upgrade", "head", DATABASE_URL=database.url(driver))
    assert answer.returncode == 0, answer.stderr
    assert tables(database) == ALL


ONLY_ASYNCPG = (
    "import sys, importlib.util as util\n"
    "for name in ('psycopg2', 'psycopg'): sys.modules[name] = None\n"
    "find_spec = util.find_spec\n"
    "util.find_spec = lambda name: None if name.startswith('psycopg') else find_spec(name)\n"
)


def test_the_command_works_through_an_asynchronous_driver_alone(database, folder):
    """Without psycopg2 and psycopg the migrations run over asyncpg."""
    program = f"{ONLY_ASYNCPG}from alembic.config import main; main(['upgrade', 'head'])"
    answer = run_python(
        "-c", program, cwd=folder.parent, environ={"DATABASE_URL": database.url("asyncpg")}
    )
    assert answer.returncode == 0, answer.stderr
    assert tables(database) == ALL


def test_the_command_takes_its_database_from_the_ini_file(database, folder):
    """Without a variable sqlalchemy.url names the database."""
    ini = folder.parent / "alembic.ini"
    ini.write_text(f"{ini.read_text()}sqlalchemy.url = {database.url('asyncpg')}\n")
    answer = run_alembic(folder, "upgrade", "head")
    assert answer.returncode == 0, answer.stderr
    assert tables(database) == ALL


def test_the_command_without_a_database_says_what_to_set(folder):
    """The last line names the variables, the option and the argument."""
    answer = run_alembic(folder, "upgrade", "head")
    assert answer.returncode != 0
    last = answer.stderr.splitlines()[-1]
    assert "DATABASE_URL" in last
    assert "sqlalchemy.url" in last


def test_commands_that_change_nothing_do_not_wait_for_an_upgrade(database, folder, scripts):
    """`alembic current` and `alembic check` answer while another session holds the lock."""
    scripts.upgrade(database.url())
    with database.connect() as connection:
        connection.cursor().execute(f"SELECT {LOCK}")
        for command in ("current", "check"):
            answer = run_alembic(folder, command, DATABASE_URL=database.url())
            assert answer.returncode == 0, answer.stderr


def test_the_sql_of_an_upgrade_needs_no_database_and_takes_the_lock(database, folder):
    """`alembic upgrade head --sql` writes PostgreSQL's SQL, in one transaction."""
    answer = run_alembic(folder, "upgrade", "head", "--sql")
    assert answer.returncode == 0, answer.stderr
    database.execute(answer.stdout)
    assert tables(database) == ALL
    assert LOCK_NAME in answer.stdout


# -- through PgBouncer ----------------------------------------------------------------------


@pytest.fixture
def bouncer(postgres, tmp_path):
    with EmbeddedPgBouncer(postgres, tmp_path, pool_size=1) as bouncer:
        yield bouncer


@needs_pgbouncer
@pytest.mark.parametrize(
    "driver", ["psycopg2", "psycopg", pytest.param(ONLY_ASYNCPG, id="asyncpg")]
)
def test_an_upgrade_works_through_pgbouncer_in_transaction_mode(database, folder, bouncer, driver):
    """It sends no startup options, and leaves no limit, lock or statement to the next client."""
    program = "from alembic.config import main; main(['upgrade', 'head'])"
    if driver is ONLY_ASYNCPG:
        program, driver = f"{ONLY_ASYNCPG}{program}", "asyncpg"
    url = bouncer.url(database.name, driver)
    answer = run_python("-c", program, cwd=folder.parent, environ={"DATABASE_URL": url})
    assert answer.returncode == 0, answer.stderr
    assert tables(database) == ALL
    # The pool has one server connection: what the upgrade had is what this client gets.
    with create_engine(bouncer.url(database.name), poolclass=NullPool).connect() as connection:
        (row,) = connection.execute(
            text(
                "SELECT current_setting('lock_timeout'), (SELECT count(*) FROM"
                " pg_prepared_statements), (SELECT count(*) FROM pg_locks"
                " WHERE locktype = 'advisory')"
            )
        )
    assert tuple(row) == ("0", 0, 0)


# -- env.py ---------------------------------------------------------------------------------


def test_several_metadata_and_options_of_configure(database, folder, scripts):
    """Tables of both metadata are compared, and a version table of the project's own is used."""
    both = (
        "first, second = MetaData(), MetaData()\n"
        "Table('notes', first, Column('id', Integer, primary_key=True))\n"
        "Table('tags', second, Column('id', Integer, primary_key=True))\n"
        "alembic.run(first, second, version_table='history')\n"
    )
    (folder / "env.py").write_text(ENV.partition("metadata =")[0] + both)
    scripts.upgrade(database.url())
    assert scripts.current(database.url()) == "0002"
    assert "history" in tables(database)
    assert run_alembic(folder, "check", DATABASE_URL=database.url()).returncode == 0


def test_another_database_than_postgresql_gets_alembics_own_behaviour(folder, scripts, tmp_path):
    """SQLite has neither advisory locks nor a statement timeout."""
    url = f"sqlite:///{tmp_path / 'notes.db'}"
    scripts.upgrade(url)
    assert scripts.current(url) == "0002"


OTHER_ENV = """
import os
from alembic import context
from sqlalchemy import create_engine

with create_engine(OTHER).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""


def test_an_env_file_that_reads_the_configured_url_works(database, folder, scripts):
    """Alembic's own template connects to sqlalchemy.url, which poolkit sets."""
    url = "context.config.get_main_option('sqlalchemy.url')"
    (folder / "env.py").write_text(OTHER_ENV.replace("OTHER", url))
    scripts.upgrade(database.url())
    assert scripts.current(database.url()) == "0002"


def test_an_env_file_that_connects_elsewhere_is_refused(
    database, migrated_database, folder, scripts
):
    """The other database is not changed, and the message names both without a password."""
    other = migrated_database.url()
    (folder / "env.py").write_text(OTHER_ENV.replace("OTHER", repr(other)))
    before = tables(migrated_database)
    with pytest.raises(MigrationError, match=migrated_database.name) as refusal:
        scripts.upgrade(database.url())
    assert str(make_url(other).password) not in str(refusal.value)
    assert tables(migrated_database) == before
    assert tables(database) == []


def test_a_place_without_migrations_is_named(tmp_path):
    """The message says what was wanted."""
    with pytest.raises(ConfigurationError, match=r"wanted a folder with an env\.py"):
        Scripts(tmp_path / "migrations")


# -- poolkit db upgrade ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["migrations", "alembic.ini"])
def test_poolkit_upgrades_from_a_folder_or_an_ini_file(database, folder, name):
    """`[tool.poolkit] migrations` names either."""
    file = folder.parent / "pyproject.toml"
    file.write_text(f'[tool.poolkit]\nmigrations = "{name}"\n')
    for expected in ("upgraded from empty to 0002", "already at 0002"):
        answer = run_python(
            "-m",
            "poolkit",
            "db",
            "upgrade",
            cwd=folder.parent,
            environ={"DATABASE_URL": database.url()},
            clean=True,
        )
        assert (answer.returncode, answer.stdout.strip()) == (0, expected), answer.stderr


def test_a_caller_in_a_transaction_keeps_it(database, folder, scripts):
    """The caller's own transaction is used, with lock and limits, and not committed."""
    engine = create_engine(database.url(), poolclass=NullPool)
    with engine.connect() as connection:
        connection.begin()
        from alembic import command

        command.upgrade(scripts._config(connection), "head")
        locks = connection.execute(
            text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        )
        assert locks.scalar_one() == 1
        connection.rollback()
    assert tables(database) == []


def test_an_env_file_that_lacks_a_dependency_is_no_fault_of_poolkit(database, folder):
    """An image without a dependency of the models: one line that names it, and exit status 2."""
    (folder / "env.py").write_text("import of_the_models\n")
    answer = run_python(
        *("-m", "poolkit", "db", "upgrade", "--migrations", folder),
        environ={"DATABASE_URL": database.url()},
    )
    assert answer.returncode == 2
    assert "of_the_models" in answer.stderr
    assert "Traceback" not in answer.stderr
