"""`poolkit budget --live`: the connections of a real server against the ceilings."""

import contextlib

import psycopg2
import pytest
from poolkit_command import refused
from programs import needs_pgbouncer

from poolkit.local.pgbouncer import EmbeddedPgBouncer

pytestmark = pytest.mark.process

COMPOSE = """
    services:
      web:
        image: example.org/web
        environment: {DATABASE_URL: "postgresql://WEB:secret@db/NAME"}
      mail:
        image: example.org/mail
        environment: {PGHOST: db, PGUSER: MAIL, PGDATABASE: NAME}
"""
ROLES = ("live_web", "live_mail")


@pytest.fixture
def live(folder, database):
    """A function that runs the command while some clients are connected."""
    for role in ROLES:
        database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    text = COMPOSE.replace("WEB", ROLES[0]).replace("MAIL", ROLES[1])
    folder.write("compose.yaml", text.replace("NAME", database.name))

    def run(clients, *options, url=None):
        with contextlib.ExitStack() as held:
            for role, name in clients:
                login = {"user": role, "password": "x"} if role else {}
                client = psycopg2.connect(database.admin_url(""), application_name=name, **login)
                held.enter_context(contextlib.closing(client))
            url = url or database.monitor_url("")
            command = ("compose.yaml", "--live", "--database-url", url, *options)
            return folder.run(*command, columns="200")

    yield run
    database.terminate_backends()
    for role in ROLES:
        database.execute(f"DROP ROLE {role}")


KNOWN = ("--service", "web=2+0x1@1", "--service", "mail=1+0x1@1")


def test_a_client_belongs_to_the_service_that_its_name_says(live):
    """The target before the colon is the service's; two of at most two are within."""
    answer = live([("live_mail", "web:1"), ("live_mail", "web:2")], *KNOWN)
    assert answer.returncode == 0, answer.stdout
    assert "web: 2 open, within the ceiling of 2" in answer.stdout


def test_a_service_above_its_ceiling_is_named(live):
    """The budget fits, and the status is 1."""
    answer = live([("live_mail", "web:1")] * 3, *KNOWN)
    assert answer.returncode == 1
    assert "Fits" in answer.stdout
    assert "web: 3 open, ABOVE the ceiling of 2" in answer.stdout


def test_without_a_name_user_and_database_decide(live):
    """They stand in a URL, or in variables of their own."""
    answer = live([("live_web", ""), ("live_mail", "psql")], *KNOWN)
    assert "web: 1 open, within" in answer.stdout
    assert "mail: 1 open, within" in answer.stdout


def test_a_client_that_no_file_has_is_named(live):
    """With its name, user and database; a few are covered by --operators."""
    answer = live([(None, "dbeaver")], *KNOWN)
    assert answer.returncode == 0
    assert "not in the files: dbeaver (user " in answer.stdout


def test_clients_that_no_file_has_may_break_the_budget(live, database):
    """Every connection that is left over is spoken for."""
    (row,) = database.execute("SHOW max_connections")
    room = int(row["max_connections"]) - 3
    full = ("--service", f"web={room - 1}+0x1@1", *KNOWN[2:], "--operators=0", "--migrations=0")
    answer = live([(None, "dbeaver")], *full)
    assert answer.returncode == 1
    assert "Fits" in answer.stdout


def test_clients_of_a_pooler_use_its_ceiling(folder, live, database):
    """PgBouncer's server connections have the names and users of its clients."""
    pooler = '{image: edoburu/pgbouncer, environment: {DB_HOST: db, DEFAULT_POOL_SIZE: "2"}}'
    text = (folder.path / "compose.yaml").read_text().replace("@db/", "@pgbouncer/")
    (folder.path / "compose.yaml").write_text(f"{text}  pgbouncer: {pooler}\n")
    answer = live([("live_web", "")] * 3, "--pgbouncer-pools", "1", *KNOWN)
    assert "pgbouncer: 3 open, ABOVE the ceiling of 2" in answer.stdout


def test_a_role_without_pg_monitor_sees_who_is_connected(live, database):
    """What it cannot see is said, with the statement that changes it."""
    answer = live([("live_web", "web:1")], *KNOWN, url=database.url(""))
    assert answer.returncode == 0, answer.stderr
    assert "web: 1 open, within" in answer.stdout
    assert "GRANT pg_monitor TO" in answer.stdout


@needs_pgbouncer
def test_a_url_of_a_pooler_is_named_as_such(live, postgres, tmp_path):
    """The server shows the pooler's connections, not its clients."""
    with EmbeddedPgBouncer(postgres, tmp_path / "pooler") as pooler:
        answer = live([("live_web", "web:1")], *KNOWN, url=pooler.url(driver=""))
    assert answer.returncode == 0, answer.stderr
    assert "pooler" in answer.stdout.partition("Measured")[2]


def test_the_server_has_to_be_postgresql(folder):
    """Another server, or none, is refused before anything is printed."""
    folder.write("compose.yaml", COMPOSE)
    refused(folder.run("compose.yaml", "--live"), "--database-url")
    mysql = "mysql://u:p@localhost/app"
    refused(folder.run("compose.yaml", "--live", "--database-url", mysql), "mysql")
