"""The database of a project that has commands of its own for it."""

import subprocess

import psycopg2
import pytest
from click.testing import CliRunner
from compare.end_to_end.conftest import web
from compare.end_to_end.test_up import addresses
from rich.console import Console

from poolkit.cli import main
from poolkit.compare.plan.options import Options
from poolkit.compare.run.preparation import prepare_database
from poolkit.compare.run.progress import Progress
from poolkit.local.processes import Supervisor
from poolkit.local.stack import EmbeddedStack, StackNeeds
from poolkit.project import Project

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

SETTINGS = """
[tool.poolkit]
directory = "backend"
schema = ["{python}", "schema.py"]
seed = ["{python}", "-c", "import schema; schema.run('INSERT INTO notes VALUES (1)')"]
extensions = ["hstore"]
env = { SERVER = "{db_host}", PORT = "{db_port}", LOGIN = "{db_user}", WORD = "{db_password}", NAME = "{db_name}" }
"""
# Reads the database from variables of its own, as a stranger's settings do.
SCHEMA = """
import os, psycopg2

def run(statement):
    e = os.environ
    connection = psycopg2.connect(
        host=e["SERVER"], port=e["PORT"], user=e["LOGIN"], password=e["WORD"], dbname=e["NAME"]
    )
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)

if __name__ == "__main__":
    run("CREATE TABLE notes (id integer, more hstore)")
"""


@pytest.fixture
def project(stranger):
    """Make a project whose folder of code has schema.py."""

    def make(schema=SCHEMA, settings=SETTINGS):
        made = stranger(settings + web("web"))
        (made / "backend").mkdir()
        (made / "backend" / "schema.py").write_text(schema)
        (made / "plain.py").rename(made / "backend" / "plain.py")
        return made

    return make


def test_schema_and_seed_run_before_the_targets(start, project):
    """With the project's variables; a shell gets the same ones from a file."""
    made = project()
    command = start("up", cwd=made)
    with psycopg2.connect(addresses(command)["PostgreSQL"]) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM notes")
            assert cursor.fetchone() == (1,)
        connection.rollback()
    again = ". .poolkit/up/variables.sh && python3 -c \"import os; print(os.environ['SERVER'])\""
    shell = subprocess.run(["sh", "-c", again], cwd=made, capture_output=True, check=True)
    assert shell.stdout == b"127.0.0.1\n"
    command.end(2)
    assert not (made / ".poolkit" / "up" / "variables.sh").exists()
    assert (made / ".poolkit" / ".gitignore").read_text() == "*\n"


def test_a_project_without_targets_gets_its_database(start, stranger):
    """As a test suite needs it: prepared, and with a role that may make databases."""
    command = start("up", cwd=stranger('[tool.poolkit]\nschema = ["true"]\n'))
    shown = addresses(command)
    assert set(shown) == {"PostgreSQL", "monitoring"}
    psycopg2.connect(shown["PostgreSQL"]).close()
    command.ends_with(0, 2)


def test_a_failed_schema_ends_the_run_with_its_last_lines(start, project):
    """The lines of the command, the path of its log, advice, exit status 2."""
    text = SCHEMA.replace("CREATE TABLE notes (id integer, more hstore)", "CREATE EXTENSION vector")
    command = start("compare", "--quick", cwd=project(text))
    assert command.end() == 2
    assert "schema failed with exit status 1; its log " in command.error
    assert "log/schema.log ends:" in command.error
    assert 'permission denied to create extension "vector"' in command.error
    assert 'add extensions = ["vector"]' in command.error
    assert command.left() == []


@pytest.mark.parametrize("agreed", [False, True])
def test_a_database_of_the_user_s_own_is_prepared_on_request_only(
    project, database, tmp_path, capsys, agreed
):
    """Without --prepare-database the run says that it was left alone."""
    needs = StackNeeds(database_url=database.admin_url(""))
    options = Options(database_url=needs.database_url, prepare_database=agreed)
    found = Project.find(project())
    with Supervisor(tmp_path / "log") as supervisor, EmbeddedStack(tmp_path, needs) as stack:
        prepare_database(found, stack, supervisor, options, Progress(Console()))
    left_alone = "is left alone: --prepare-database runs schema and seed there"
    said = capsys.readouterr().out.replace("\n", " ")
    assert (left_alone in said) is not agreed
    with psycopg2.connect(needs.database_url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('notes')")
        assert cursor.fetchone() == ("notes" if agreed else None,)


def test_the_schema_command_upgrades_the_database_of_the_shell(project, database, monkeypatch):
    """`poolkit db upgrade` runs it as a deployment does, with the variables of the project."""
    database.execute("CREATE EXTENSION hstore")
    monkeypatch.chdir(project())
    monkeypatch.setenv("DATABASE_URL", database.url(""))
    runner = CliRunner()
    assert runner.invoke(main, ["db", "upgrade"], catch_exceptions=False).exit_code == 0
    assert database.execute("SELECT * FROM notes") == []
    again = runner.invoke(main, ["db", "upgrade"], catch_exceptions=False)
    assert again.exit_code == 2
    assert "schema failed with exit status 1" in again.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('python = "no/python"', "python: there is no interpreter"),
        ('python = "{bare}"', "has no uvicorn, which starts the target; install it with"),
        ('directory = "no"', "directory: there is no folder"),
    ],
)
def test_what_cannot_start_a_target_is_reported_at_once(
    stranger, monkeypatch, bare_python, settings, message
):
    """One line, before any server starts, with what to do."""
    settings = settings.replace("{bare}", str(bare_python))
    monkeypatch.chdir(stranger(f"[tool.poolkit]\n{settings}\n" + web("web")))
    answer = CliRunner().invoke(main, ["compare"], catch_exceptions=False)
    assert (answer.exit_code, len(answer.stderr.splitlines())) == (2, 1)
    assert message in answer.stderr
