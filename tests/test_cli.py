"""The command line, as a user sees it."""

import shutil
import tomllib

import pytest
from poolkit_command import ROOT, run_process
from poolkit_command import run_here as run
from processes import run_python


@pytest.mark.process
def test_preset_prints_code():
    """`poolkit preset TARGET` prints code that starts with what the preset is for."""
    answer = run_process("preset", "web", "--environment", "prod")
    assert answer.returncode == 0
    assert answer.stdout.startswith("# web in prod.")
    assert "pool_size=20" in answer.stdout


def test_preset_all_prints_the_table():
    """`poolkit preset --all` prints a heading and a line for each preset."""
    answer = run("preset", "--all")
    assert answer.returncode == 0
    assert "high_traffic" in answer.stdout


def test_preset_copy_writes_the_file_once(tmp_path):
    """The copy equals the module; a second copy is refused and changes nothing."""
    file = tmp_path / "presets.py"
    assert run("preset", "--copy", str(file)).returncode == 0
    assert file.read_bytes() == (ROOT / "poolkit/config/presets.py").read_bytes()
    file.write_text("mine")
    again = run("preset", "--copy", str(file))
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("preset", "wbe"), "did you mean 'web'?"),
        (("preset", "web", "--environment", "production"), "did you mean 'prod'?"),
        (("preset", "web", "--driver", "oracle"), "driver"),
        (("preset",), "name a target"),
        (("preset", "--copy", "/proc/presets.py"), "/proc/presets.py"),
        (("db", "upgrade"), "DATABASE_URL"),
    ],
)
def test_a_mistake_is_one_clear_message_and_exit_status_2(arguments, message):
    """No traceback: what was wrong, and what to write instead."""
    answer = run(*arguments)
    assert answer.returncode == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_db_upgrade_brings_an_empty_database_up_to_date(database):
    """The first run upgrades, the second finds nothing to do, and `current` agrees."""
    url = database.url(driver="psycopg2")
    before = run("db", "current", DATABASE_URL=url)
    assert before.stdout.startswith("empty (behind")
    first = run_process("db", "upgrade", DATABASE_URL=url)
    assert (first.returncode, first.stdout[:19]) == (0, "upgraded from empty"), first.stderr
    second = run("db", "upgrade", DATABASE_URL=url)
    assert (second.returncode, second.stdout[:10]) == (0, "already at")
    assert "behind" not in run("db", "current", DATABASE_URL=url).stdout


@pytest.mark.parametrize("image", ["web", "worker"])
def test_db_upgrade_works_in_a_service_s_image(image, migrated_database, tmp_path):
    """An image leaves most of the library out, and migrates the database all the same."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["poolkit"]["package"]
    for name in ("poolkit", "articles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in table[image]["exclude"]:
        shutil.rmtree(tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    variables = {"DATABASE_URL": migrated_database.url(driver="")}
    words = ("-m", "poolkit", "db", "upgrade")
    answer = run_python(*words, cwd=tmp_path, environ=variables, clean=True)
    assert answer.stdout.startswith("already at"), answer.stderr


@pytest.mark.process
def test_db_upgrade_without_a_database_is_one_line():
    """A server that is not there is named, with exit status 2."""
    # Port 1 is reserved (tcpmux), and no program listens there.
    answer = run_process("db", "upgrade", DATABASE_URL="postgresql://u:p@127.0.0.1:1/d")
    assert answer.returncode == 2
    assert "database is not available" in answer.stderr
    assert "Traceback" not in answer.stderr


def refusal(*arguments, **options):
    """Return the one line that a command ends with, and status 2."""
    answer = run(*arguments, **options)
    assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (2, "", 1), answer
    return answer.stderr


def test_db_upgrade_says_what_the_role_lacks(database):
    """A role that may not create in the schema is told so, and what to grant."""
    line = refusal("db", "upgrade", DATABASE_URL=database.monitor_url())
    assert "permission denied for schema public; grant poolkit_monitor what is missing" in line


MIGRATIONS_THAT_LOCK = """
from sqlalchemy import text
def upgrade(engine):
    with engine.connect() as connection:
        connection.execute(text("LOCK TABLE held NOWAIT"))
def current(engine): return None
def heads(): return ("1",)
"""


def test_db_upgrade_that_meets_a_lock_says_so(database, tmp_path):
    """A table that another session holds is no reason for a traceback: later, it will work."""
    (tmp_path / "locking.py").write_text(MIGRATIONS_THAT_LOCK)
    (tmp_path / "pyproject.toml").write_text('[tool.poolkit]\nmigrations = "locking"\n')
    database.execute("CREATE TABLE held ()")
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE held")
        line = refusal("db", "upgrade", cwd=tmp_path, DATABASE_URL=database.admin_url())
    assert 'could not obtain lock on relation "held"; another session holds a lock' in line


def test_a_database_that_is_ahead_of_the_program_is_told_from_one_that_is_behind(
    migrated_database,
):
    """After a rollback of the program: what to deploy, and no "behind" that invites an upgrade."""
    migrated_database.execute("UPDATE alembic_version SET version_num = '9999'")
    url = migrated_database.url()
    line = refusal("db", "upgrade", DATABASE_URL=url)
    assert "at 9999, which this version of the program does not know" in line
    answer = run("db", "current", DATABASE_URL=url)
    assert answer.stdout.startswith("9999 (unknown to this version: the latest is ")


def test_db_upgrade_of_another_kind_of_database_is_refused():
    """The sample's migrations are PostgreSQL's, and say so."""
    line = refusal("db", "upgrade", DATABASE_URL="sqlite://")
    assert "PostgreSQL" in line
    assert "sqlite" in line


def test_db_upgrade_names_migrations_that_do_not_import(database):
    """A module that is not there is named."""
    url = database.url(driver="psycopg2")
    answer = run("db", "upgrade", "--migrations", "no.such.module", DATABASE_URL=url)
    assert answer.returncode == 2
    assert "no.such.module" in answer.stderr


def test_db_upgrade_outside_a_project_says_what_to_name(tmp_path, database):
    """Without a pyproject.toml the message lists the three places for the name."""
    answer = run("db", "upgrade", cwd=tmp_path, DATABASE_URL=database.url(driver="psycopg2"))
    assert answer.returncode == 2
    assert "POOLKIT_MIGRATIONS" in answer.stderr


def test_a_broken_pyproject_is_named(tmp_path, database):
    """A pyproject.toml that is no TOML is reported with its path and line."""
    (tmp_path / "pyproject.toml").write_text("[tool.poolkit\n")
    answer = run("db", "upgrade", cwd=tmp_path, DATABASE_URL=database.url(driver="psycopg2"))
    assert answer.returncode == 2
    assert "pyproject.toml" in answer.stderr
