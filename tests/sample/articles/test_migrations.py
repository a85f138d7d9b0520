"""Migrations bring an empty database to the state of models.py, and back."""

import shutil

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from processes import ROOT
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from articles.models import Base
from poolkit import tables
from poolkit.alembic import Scripts

MIGRATIONS = Scripts(ROOT / "articles/migrations")
METADATA = [Base.metadata, tables.metadata]
TABLES = [name for metadata in METADATA for name in metadata.tables]


def _tables(database):
    rows = database.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
    )
    return [row["tablename"] for row in rows]


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
    MIGRATIONS.upgrade(database.url())
    engine = create_engine(database.url(), poolclass=NullPool)
    with engine.begin() as connection:
        config = Config(ROOT / "alembic.ini", attributes={"connection": connection})
        command.downgrade(config, "base")
    assert _tables(database) == ["alembic_version"]


def test_the_sql_of_an_upgrade_does_what_the_upgrade_does(database):
    """Without a connection the upgrade is written as SQL, for an administrator to run."""
    database.execute(MIGRATIONS.upgrade_sql())
    assert (MIGRATIONS.current(database.admin_url()),) == MIGRATIONS.heads()
    assert _tables(database) == sorted([*TABLES, "alembic_version"])


def test_there_is_one_head():
    """Two migrations that follow the same one would leave the order open."""
    assert len(MIGRATIONS.heads()) == 1


def test_a_new_migration_is_numbered_after_the_last(migrated_database, tmp_path):
    """Where models and database agree, the new migration does nothing."""
    folder = shutil.copytree(MIGRATIONS.location, tmp_path / "migrations")
    path = Scripts(folder).revise(migrated_database.url(), "Nothing new")
    assert path.name == "v0002_nothing_new.py"
    assert 'down_revision = "0001"' in path.read_text()
    assert path.read_text().count("    pass\n") == 2
