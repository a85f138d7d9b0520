"""The command line, as a user sees it."""

import pytest
from poolkit_command import ROOT, run_process
from poolkit_command import run_here as run


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


def test_db_upgrade_without_a_database_is_one_line():
    """A server that is not there is named, with exit status 2."""
    # Port 1 is reserved (tcpmux) and nobody listens there.
    answer = run_process("db", "upgrade", DATABASE_URL="postgresql://u:p@127.0.0.1:1/d")
    assert answer.returncode == 2
    assert "database is not available" in answer.stderr
    assert "Traceback" not in answer.stderr


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
