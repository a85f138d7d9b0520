"""The command line, as a user sees it."""

import os
import shutil
import tomllib

import click
import pytest
from click.testing import CliRunner
from poolkit_command import ROOT, refused, run_process, succeeded
from poolkit_command import run_here as run
from processes import run_python

from poolkit.cli import FAULT, main
from poolkit.errors import ConfigurationError
from poolkit.output_file import check_output_file

NOTES = ROOT / "tests/notes_project"
"""A project with one migration."""


@pytest.mark.process
def test_preset_prints_code():
    """`poolkit preset TARGET` prints code that starts with what the preset is for."""
    out = succeeded(run_process("preset", "web", "--environment", "prod"), "pool_size=20")
    assert out.startswith("# web in prod.")


def test_preset_all_prints_the_table():
    """`poolkit preset --all` prints a heading and a line for each preset."""
    succeeded(run("preset", "--all"), "high_traffic")


def test_preset_copy_writes_the_file_once(tmp_path):
    """The copy equals the module; a second copy is refused and changes nothing."""
    file = tmp_path / "presets.py"
    assert run("preset", "--copy", str(file)).returncode == 0
    assert file.read_bytes() == (ROOT / "poolkit/config/presets.py").read_bytes()
    file.write_text("mine")
    refused(run("preset", "--copy", str(file)), "exists already")
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
    """The message has what was wrong and what to write instead, without a traceback."""
    assert "Traceback" not in refused(run(*arguments), message)


@pytest.mark.process
@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [
        ("psutil", "compare --quick", "loadtest"),
        ("altair", "compare --quick", "loadtest"),
        ("psutil", "up", "loadtest"),
        ("altair", "report a-run", "loadtest"),
        ("yaml", "budget infra", "infra"),
        ("yaml", "deploy all -e dev", "infra"),
        ("boto3", "destroy all -e dev", "infra"),
        ("yaml", "status", "infra"),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(missing, command, extra):
    """One line, before anything else; `compare` also asks for what only its report needs."""
    # As Python marks a module that cannot be imported.
    code = f"""import sys
sys.modules[{missing!r}] = None
sys.argv = ["poolkit", *{command!r}.split()]
from poolkit.cli import main
main()
"""
    done = run_python("-c", code)
    message = f"poolkit: {missing} is missing; install it with: pip install '.[{extra}]'"
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"{message} in a checkout of poolkit"]


@pytest.mark.parametrize("command", ["compare", "up", "watch", "holders"])
def test_windows_is_refused_in_one_line(monkeypatch, command):
    """What cannot work there says so, and where it works."""
    monkeypatch.setattr("sys.platform", "win32")
    refused(run(command), f"poolkit {command} does not run on Windows")


def test_db_upgrade_brings_an_empty_database_up_to_date(database):
    """The first run upgrades, the second finds nothing to do, and `current` agrees."""
    url = database.url(driver="psycopg2")
    before = run("db", "current", cwd=NOTES, DATABASE_URL=url)
    assert before.stdout.startswith("empty (behind")
    assert "run `poolkit db upgrade` first" in refusal("db", "check", cwd=NOTES, DATABASE_URL=url)
    first = run_process("db", "upgrade", cwd=NOTES, DATABASE_URL=url)
    assert (first.returncode, first.stdout[:19]) == (0, "upgraded from empty"), first.stderr
    second = run("db", "upgrade", cwd=NOTES, DATABASE_URL=url)
    assert (second.returncode, second.stdout[:10]) == (0, "already at")
    assert "behind" not in run("db", "current", cwd=NOTES, DATABASE_URL=url).stdout


@pytest.mark.sample
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
    url = "postgresql://u:p@127.0.0.1:1/d"
    answer = run_process("db", "upgrade", cwd=NOTES, DATABASE_URL=url)
    assert "Traceback" not in refused(answer, "database is not available")


def refusal(*arguments, **options):
    """Return the one line that a command ends with, and status 2."""
    answer = run(*arguments, **options)
    assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (2, "", 1), answer
    return answer.stderr


def test_db_upgrade_says_what_the_role_lacks(database):
    """The message for a role that may not create in the schema has what to grant."""
    line = refusal("db", "upgrade", cwd=NOTES, DATABASE_URL=database.monitor_url())
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


def test_a_database_ahead_of_the_program_is_distinguished_from_one_behind(database):
    """After a rollback of the program: what to deploy, and no "behind" that invites an upgrade."""
    url = database.url()
    run("db", "upgrade", cwd=NOTES, DATABASE_URL=url)
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    line = refusal("db", "upgrade", cwd=NOTES, DATABASE_URL=url)
    assert "at 9999, which this version of the program does not know" in line
    answer = run("db", "current", cwd=NOTES, DATABASE_URL=url)
    assert answer.stdout.startswith("9999 (unknown to this version: the latest is ")
    assert run("db", "check", cwd=NOTES, DATABASE_URL=url).stdout == "9999\n"


def test_db_upgrade_names_migrations_that_do_not_import(database):
    """A module that is not there is named."""
    url = database.url(driver="psycopg2")
    answer = run("db", "upgrade", "--migrations", "no.such.module", DATABASE_URL=url)
    refused(answer, "no.such.module")


def test_db_upgrade_outside_a_project_says_what_to_name(tmp_path, database):
    """Without a pyproject.toml the message lists the three places for the name."""
    answer = run("db", "upgrade", cwd=tmp_path, DATABASE_URL=database.url(driver="psycopg2"))
    refused(answer, "POOLKIT_MIGRATIONS")


def test_a_broken_pyproject_is_named(tmp_path, database):
    """A pyproject.toml that is no TOML is reported with its path and line."""
    (tmp_path / "pyproject.toml").write_text("[tool.poolkit\n")
    answer = run("db", "upgrade", cwd=tmp_path, DATABASE_URL=database.url(driver="psycopg2"))
    refused(answer, "pyproject.toml")


# -- files of results -----------------------------------------------------------------------


def test_a_file_in_missing_folders_is_fine_and_nothing_is_created(tmp_path):
    """Missing folders are an error only for a writer that does not create them."""
    check_output_file("--html", tmp_path / "out/of/it.html")
    (tmp_path / "old.html").write_text("old")
    check_output_file("--html", tmp_path / "old.html")
    check_output_file("--html", tmp_path / "old.html", makes_folders=False)
    assert [one.name for one in tmp_path.iterdir()] == ["old.html"]
    with pytest.raises(ConfigurationError, match=r"--out: .* there is no folder .*/none$"):
        check_output_file("--out", tmp_path / "none/x.html", makes_folders=False)


def test_a_folder_and_a_file_in_place_of_a_folder_are_refused(tmp_path):
    """The line names the option, the file and the obstacle."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"--html: .* is a folder; wanted the name of a"):
        check_output_file("--html", tmp_path)
    for makes_folders in (True, False):
        with pytest.raises(ConfigurationError, match=r"--junit: .*/file is not a folder"):
            check_output_file("--junit", tmp_path / "file/run.xml", makes_folders=makes_folders)
    with pytest.raises(ConfigurationError, match=r"--junit: .*/file is not a folder"):
        check_output_file("--junit", tmp_path / "file/x/run.xml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match=r"no permission for"):
        check_output_file("--html", tmp_path / "run.html")


def test_an_unexpected_exception_is_no_result():
    """It ends with the exit status of a program's own fault, and shows the traceback."""
    group = type(main)("poolkit")
    group.add_command(click.Command("broken", callback=lambda: {}["gone"]))
    found = CliRunner().invoke(group, ["broken"])
    assert found.exit_code == FAULT
    assert "KeyError: 'gone'" in found.stderr
    assert found.stderr.splitlines()[-1].startswith("poolkit: ")
