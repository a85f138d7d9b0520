"""Migrations bring an empty database to the state of models.py, once, however many are started."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from processes import run_python, wait_until
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from articles import migrations
from articles.migrations import LOCK_NAME, current, heads, upgrade, upgrade_sql
from articles.models import Base
from poolkit import tables
from poolkit.local.postgres import APP_ROLE

METADATA = [Base.metadata, tables.metadata]
TABLES = [name for metadata in METADATA for name in metadata.tables]

LOCK = f"pg_advisory_lock(hashtextextended('{LOCK_NAME}', 0))"


def _tables(database):
    rows = database.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
    )
    return [row["tablename"] for row in rows]


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_an_empty_database_is_upgraded_to_the_head(database, driver):
    """Whichever driver the URL names, the upgrade works, and again does nothing."""
    assert current(database.url(driver)) is None
    upgrade(database.url(driver))
    upgrade(database.url(driver))
    assert (current(database.url(driver)),) == heads()
    assert _tables(database) == sorted([*TABLES, "alembic_version"])


def test_an_engine_serves_where_a_url_is_not_enough(database):
    """An engine with its own way of connecting is used as it is, and kept open."""
    engine = create_engine(database.url(), poolclass=NullPool)
    upgrade(engine)
    assert (current(engine),) == heads()


def test_a_url_object_keeps_its_password(database):
    """A URL that SQLAlchemy parsed does as well as its text."""
    upgrade(make_url(database.url()))
    assert (current(make_url(database.url())),) == heads()


def test_the_models_equal_the_migrated_database(migrated_database):
    """Autogenerate finds nothing to add: types, defaults, constraints and indexes agree."""
    engine = create_engine(migrated_database.url(), poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, METADATA) == []


def test_the_models_check_constraints_are_in_the_migrated_database(migrated_database):
    """Autogenerate may not compare CHECK constraints, so their names are compared here."""
    rows = migrated_database.execute(
        "SELECT conname FROM pg_constraint WHERE conname LIKE 'ck\\_%%' AND contype = 'c'"
    )
    constraints = {"ck_articles_version_is_positive", "ck_chunks_position_is_not_negative"}
    assert {row["conname"] for row in rows} == constraints


def test_the_way_back_leads_to_an_empty_database(database):
    """Downgrading undoes everything that upgrading did."""
    upgrade(database.url())
    engine = create_engine(database.url(), poolclass=NullPool)
    with engine.begin() as connection:
        command.downgrade(migrations._config(connection), "base")
    assert _tables(database) == ["alembic_version"]


def test_two_upgrades_at_once_are_one(database):
    """Both one-off jobs succeed; the second finds nothing left to do."""
    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(_upgrade_in_a_process, database.url()) for _ in range(2)]
        assert [job.result(timeout=110) for job in jobs] == [(0, ""), (0, "")]
    assert (current(database.url()),) == heads()


def _upgrade_in_a_process(url):
    # Alembic keeps its context in module globals, so two threads are not two jobs.
    program = "import sys; from articles.migrations import upgrade; upgrade(sys.argv[1])"
    done = run_python("-c", program, url)
    return done.returncode, done.stderr


@contextmanager
def _waiting(database, url_or_engine):
    """Have an upgrade wait for the lock until the block ends; yield the holder's cursor."""
    with database.connect() as connection, ThreadPoolExecutor(1) as thread:
        cursor = connection.cursor()
        cursor.execute(f"SELECT {LOCK}")
        waiting = thread.submit(upgrade, url_or_engine)
        wait_until(
            lambda: any(backend["wait_event"] == "advisory" for backend in database.backends()),
            "a backend that waits for the lock",
        )
        yield cursor
        cursor.execute(f"SELECT {LOCK.replace('lock(', 'unlock(', 1)}")
        waiting.result(timeout=100)


def test_an_upgrade_waits_for_another_one(database):
    """While another session holds the lock, nothing is changed; then it goes on."""
    with _waiting(database, database.url()):
        assert _tables(database) == []
    assert (current(database.url()),) == heads()


@pytest.mark.parametrize("isolation_level", ["AUTOCOMMIT", "REPEATABLE READ"])
def test_an_engine_made_for_requests_does_not_make_an_upgrade_unsafe(database, isolation_level):
    """Its isolation level and statement timeout are set aside while the upgrade runs."""
    engine = create_engine(
        database.url(),
        poolclass=NullPool,
        isolation_level=isolation_level,
        connect_args={"options": "-c statement_timeout=500"},
    )
    with _waiting(database, engine) as cursor:
        cursor.execute("SELECT pg_sleep(0.7)")
        # As another upgrade would have done it while this one waited.
        cursor.execute(upgrade_sql())
        cursor.execute("ALTER TABLE alembic_version OWNER TO " + APP_ROLE)
    assert (current(engine),) == heads()


def test_a_database_from_a_later_version_of_the_program_is_left_alone(migrated_database):
    """An unknown revision stops the upgrade."""
    migrated_database.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CommandError, match="9999"):
        upgrade(migrated_database.url())
    assert current(migrated_database.url()) == "9999"


def test_an_upgrade_that_waits_too_long_gives_up(database, monkeypatch):
    """The wait for another upgrade has an end, which leaves the database as it was."""
    monkeypatch.setattr(migrations, "WAIT_FOR_OTHERS", "50ms")
    with database.connect() as connection:
        connection.cursor().execute(f"SELECT {LOCK}")
        with pytest.raises(OperationalError, match="lock timeout"):
            upgrade(database.url())
    assert _tables(database) == []


def test_a_failing_upgrade_leaves_the_database_as_it_was(database):
    """All steps are one transaction: a table in the way of the last step undoes the first."""
    database.execute("CREATE TABLE chunks (in_the_way int)")
    with pytest.raises(Exception, match="chunks"):
        upgrade(database.url())
    assert _tables(database) == ["chunks"]


def test_the_connection_is_given_back_and_names_itself(database):
    """No backend is left, and while it works its application_name says who it is."""
    with _waiting(database, database.url()):
        assert len(database.backends("script:migrations")) == 1
    database.wait_for_backends(0, "script:migrations")


def test_the_sql_of_an_upgrade_does_what_the_upgrade_does(database):
    """Without a connection the upgrade is written as SQL, for an administrator to run."""
    database.execute(upgrade_sql())
    assert (current(database.admin_url()),) == heads()
    assert _tables(database) == sorted([*TABLES, "alembic_version"])


def test_there_is_one_head():
    """Two migrations that follow the same one would leave the order open."""
    assert len(heads()) == 1


def test_a_new_migration_is_numbered_after_the_last(migrated_database, tmp_path, monkeypatch):
    """Where models and database agree, the new migration does nothing."""
    source = Path(migrations.__file__)
    shutil.copytree(source.parent, tmp_path / "migrations")
    monkeypatch.setattr(migrations, "__file__", str(tmp_path / "migrations" / source.name))
    path = migrations.revise(migrated_database.url(), "Nothing new")
    assert path.name == "v0002_nothing_new.py"
    assert 'down_revision = "0001"' in path.read_text()
    assert path.read_text().count("    pass\n") == 2
