"""`poolkit db role` against a real PostgreSQL, run as an owner who is no superuser, as on RDS."""

import base64
import json
import re
import secrets

import boto3
import psycopg2
import pytest
from poolkit_command import refused, run_here, succeeded
from psycopg2 import errors
from sqlalchemy import make_url

from poolkit.database_role import scram_verifier


@pytest.fixture
def names():
    """Names of this test's own: roles belong to the whole server."""
    suffix = secrets.token_hex(4)
    return {"owner": f"owner_{suffix}", "app": f"app_{suffix}", "database": f"shop_{suffix}"}


@pytest.fixture
def server(postgres, names):
    """Give a database whose owner may create roles, and remove it and its roles afterwards."""
    admin = psycopg2.connect(
        make_url(postgres.admin_url())
        .set(drivername="postgresql")
        .render_as_string(hide_password=False)
    )
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {names['owner']} LOGIN CREATEROLE PASSWORD 'owner-login-1'")
        cursor.execute(f"CREATE DATABASE {names['database']} OWNER {names['owner']}")
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = 'rds_iam'")
        if cursor.fetchone() is None:
            cursor.execute("CREATE ROLE rds_iam NOLOGIN")
        cursor.execute(f"GRANT rds_iam TO {names['owner']} WITH ADMIN OPTION")
        yield Server(postgres, names, cursor)
        cursor.execute(f"DROP DATABASE {names['database']} WITH (FORCE)")
        for role in (names["app"], names["owner"]):
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
            if cursor.fetchone():
                cursor.execute(f"DROP OWNED BY {role} CASCADE")
                cursor.execute(f"DROP ROLE {role}")
    admin.close()


class Server:
    def __init__(self, postgres, names, admin):
        self.names, self.admin = names, admin
        self.port = make_url(postgres.admin_url()).port
        self.admin_url = make_url(postgres.admin_url(names["database"])).set(
            drivername="postgresql"
        )
        self.password = "app-login-" + secrets.token_hex(8)

    @property
    def owner_url(self):
        url = self.admin_url.set(username=self.names["owner"], password="owner-login-1")
        return url.render_as_string(hide_password=False)

    def variables(self, **more):
        return {
            "DATABASE_URL": self.owner_url,
            "APPLICATION_USER": self.names["app"],
            "APPLICATION_PASSWORD": self.password,
        } | more

    def role(self, *words, **more):
        return run_here("db", "role", *words, **self.variables(**more))

    def execute(self, role, statement):
        """Run a statement in a session of its own; give the rows, if there are any."""
        password = {"owner": "owner-login-1", "app": self.password, "admin": None}[role]
        url = self.admin_url
        if password:
            url = url.set(username=self.names[role], password=password)
        connection = psycopg2.connect(url.render_as_string(hide_password=False))
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else None
        finally:
            connection.close()


def test_the_role_uses_rows_and_cannot_change_the_schema(server):
    """Rows of existing and of later tables and sequences; no table is created, changed or dropped."""
    server.execute("owner", "CREATE TABLE first (id serial PRIMARY KEY, title text)")
    succeeded(server.role(), "created the role")
    server.execute("owner", "CREATE TABLE later (id serial PRIMARY KEY, title text)")
    for table in ("first", "later"):
        server.execute("app", f"INSERT INTO {table} (title) VALUES ('a'), ('b')")
        server.execute("app", f"UPDATE {table} SET title = 'c' WHERE title = 'b'")
        server.execute("app", f"DELETE FROM {table} WHERE title = 'a'")
        assert server.execute("app", f"SELECT id, title FROM {table}") == [(2, "c")]
    for statement in (
        "CREATE TABLE mine (id int)",
        "DROP TABLE first",
        "ALTER TABLE first ADD COLUMN more text",
        "TRUNCATE first",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "SELECT pg_read_file('/etc/passwd')",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            server.execute("app", statement)


def test_a_second_run_changes_nothing(server):
    """The role, its privileges and its limits are the same, and it still logs in."""
    server.execute("owner", "CREATE TABLE first (id serial PRIMARY KEY)")
    succeeded(server.role(), "created the role")
    state = (
        "SELECT (SELECT array_agg(relname || coalesce(relacl::text, '') ORDER BY relname) FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace), (SELECT array_agg(defaclacl::text) FROM "
        "pg_default_acl), (SELECT rolconfig FROM pg_roles WHERE rolname = current_user)"
    )
    before = server.execute("app", state)
    again = succeeded(server.role())
    assert "created" not in again
    assert server.execute("app", state) == before


def test_sessions_that_set_no_limits_have_the_roles(server):
    """As behind a pooler, where a client cannot set any."""
    succeeded(server.role(APPLICATION_STATEMENT_TIMEOUT="12000"))
    limits = (
        "SELECT current_setting('statement_timeout'), "
        "current_setting('idle_in_transaction_session_timeout')"
    )
    assert server.execute("app", limits) == [("12s", "12s")]


def test_the_password_is_in_no_log(postgres, server):
    """Not with log_statement=all: only its verifier is sent."""
    server.admin.execute("ALTER SYSTEM SET log_statement = 'all'")
    server.admin.execute("SELECT pg_reload_conf()")
    try:
        answer = server.role()
    finally:
        server.admin.execute("ALTER SYSTEM RESET log_statement")
        server.admin.execute("SELECT pg_reload_conf()")
    log = postgres.log.read_text()
    assert "ALTER ROLE" in log
    assert "SCRAM-SHA-256$4096:" in log
    assert server.password not in log
    assert server.password not in succeeded(answer) + answer.stderr


def test_the_verifier_is_the_servers_own(server):
    """PostgreSQL computes the same from the password and the salt."""
    server.admin.execute(f"CREATE ROLE {server.names['app']} PASSWORD 'some pass-word'")
    server.admin.execute(
        f"SELECT rolpassword FROM pg_authid WHERE rolname = '{server.names['app']}'"
    )
    (stored,) = server.admin.fetchone()
    salt = re.search(r":(.*?)\$", stored)[1]
    assert scram_verifier("some pass-word", base64.b64decode(salt)) == stored


@pytest.mark.parametrize("is_owned", [True, False])
def test_on_postgresql_14_no_one_creates_tables_in_public(server, is_owned):
    """There every role may; the owner of the schema revokes it, another one refuses."""
    if is_owned:
        server.execute("admin", f"ALTER SCHEMA public OWNER TO {server.names['owner']}")
    else:
        server.execute("admin", "ALTER SCHEMA public OWNER TO CURRENT_USER")
        server.execute("admin", f"GRANT USAGE ON SCHEMA public TO {server.names['owner']}")
    server.execute("admin", "GRANT CREATE ON SCHEMA public TO PUBLIC")
    answer = server.role()
    if is_owned:
        assert "only its owner may create tables in public" in succeeded(answer)
        with pytest.raises(errors.InsufficientPrivilege):
            server.execute("app", "CREATE TABLE mine (id int)")
    else:
        refused(answer, "can create tables in public", "run as the schema's owner", lines=1)


def test_it_takes_none_of_the_reserved_connections(new_postgres):
    """When the role has used up all others, an operator still connects."""
    settings = {"max_connections": "12", "superuser_reserved_connections": "3"}
    with new_postgres(settings=settings) as small:
        url = make_url(small.admin_url()).set(drivername="postgresql")
        variables = {
            "DATABASE_URL": url.render_as_string(hide_password=False),
            "APPLICATION_USER": "app",
            "APPLICATION_PASSWORD": "app-login-1",
        }
        succeeded(run_here("db", "role", **variables))
        mine = url.set(username="app", password="app-login-1").render_as_string(hide_password=False)
        opened = []
        try:
            with pytest.raises(psycopg2.OperationalError, match="reserved"):
                opened.extend(psycopg2.connect(mine) for _ in range(12))
            psycopg2.connect(variables["DATABASE_URL"]).close()
        finally:
            for each in opened:
                each.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ALTER ROLE {app} CREATEDB", "has createdb"),
        ("ALTER ROLE {app} SUPERUSER", "has super"),
        ("GRANT {owner} TO {app}", "is a member of owner_"),
        ("GRANT pg_execute_server_program TO {app}", "is a member of pg_execute_server_program"),
    ],
)
def test_a_role_with_more_rights_is_refused(server, statement, message):
    """And left as it was."""
    server.admin.execute(f"CREATE ROLE {server.names['app']} LOGIN")
    server.admin.execute(statement.format(**server.names))
    refused(server.role(), message, lines=1)


def test_a_role_that_owns_tables_is_refused(server):
    """It could drop them: an application that ran its own migrations before."""
    server.execute("owner", f"CREATE ROLE {server.names['app']} LOGIN")
    server.execute("admin", "CREATE TABLE first (id int)")
    server.execute("admin", f"ALTER TABLE first OWNER TO {server.names['app']}")
    refused(server.role(), "owns 1 relations in public (first", "REASSIGN OWNED BY", lines=1)


def test_the_owner_itself_is_refused(server):
    """An application that logs in as the owner could change the schema."""
    refused(
        server.role(APPLICATION_USER=server.names["owner"]), "the application's must be another"
    )


def test_tables_of_another_role_are_named(server):
    """They would be left out without a word."""
    server.execute("admin", "CREATE TABLE alien (id int)")
    refused(server.role(), "public.alien belongs to", "run this as", lines=1)


def test_a_schema_of_ones_own_and_names_that_need_quotes(server):
    """Later tables of that schema, too; a missing one is named."""
    refused(server.role(APPLICATION_SCHEMAS="Shop"), "there is no schema Shop", lines=1)
    server.execute("owner", 'CREATE SCHEMA "Shop"')
    succeeded(server.role(APPLICATION_SCHEMAS="public,Shop"), "uses public, Shop")
    server.execute("owner", 'CREATE TABLE "Shop"."100% of: it" (id int)')
    succeeded(server.role(APPLICATION_SCHEMAS="public,Shop"))
    server.execute("app", 'INSERT INTO "Shop"."100% of: it" VALUES (1)')


def test_iam_takes_the_password_away_and_gives_it_back(server):
    """rds_iam wins over a password on RDS, so the role is a member or it is not."""
    member = f"SELECT pg_has_role('{server.names['app']}', 'rds_iam', 'MEMBER')"
    assert "logs in with IAM tokens" in succeeded(server.role("--iam"))
    assert server.execute("owner", member) == [(True,)]
    assert "from now on" not in succeeded(server.role("--iam"))
    assert "IAM tokens are refused" in succeeded(server.role())
    assert server.execute("owner", member) == [(False,)]
    refused(server.role("--iam", "--rotate"), "there is none to --rotate")


@pytest.fixture
def secret(served_aws, server):
    """Give the application's secret, as database.yaml makes it, with the variables that lead there."""
    value = json.dumps({"username": server.names["app"], "password": server.password})
    client = boto3.client("secretsmanager")
    arn = client.create_secret(Name="app", SecretString=value)["ARN"]
    return client, arn, served_aws | {"APPLICATION_SECRET_ARN": arn, "APPLICATION_PASSWORD": ""}


def current(client, arn):
    return json.loads(
        client.get_secret_value(SecretId=arn, VersionStage="AWSCURRENT")["SecretString"]
    )["password"]


def test_a_rotation_changes_secret_and_role_together(server, secret):
    """The new password logs in, the old one does not, and no second version is left waiting."""
    client, arn, variables = secret
    succeeded(server.role(**variables))
    old = server.password
    answer = succeeded(server.role("--rotate", **variables), "has a new password")
    server.password = current(client, arn)
    assert server.password not in answer
    assert server.password != old
    assert server.execute("app", "SELECT 1") == [(1,)]
    server.password = old
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        server.execute("app", "SELECT 1")
    stages = client.describe_secret(SecretId=arn)["VersionIdsToStages"].values()
    assert sorted(stage for each in stages for stage in each) == ["AWSCURRENT", "AWSPREVIOUS"]


def test_an_interrupted_rotation_is_continued(server, secret):
    """The password that is pending is used, not a third one."""
    client, arn, variables = secret
    succeeded(server.role(**variables))
    pending = json.dumps({"username": server.names["app"], "password": "pending-1"})
    client.put_secret_value(SecretId=arn, SecretString=pending, VersionStages=["AWSPENDING"])
    succeeded(server.role("--rotate", **variables))
    assert current(client, arn) == "pending-1"
    server.password = "pending-1"
    assert server.execute("app", "SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"APPLICATION_PASSWORD": ""}, "set APPLICATION_SECRET_ARN, APPLICATION_PASSWORD"),
        ({"APPLICATION_PASSWORD": "ü"}, "printable ASCII"),
        ({"APPLICATION_USER": "a b"}, "letters, digits"),
        ({"APPLICATION_USER": "pg_mine"}, "reserves the name"),
        ({"APPLICATION_STATEMENT_TIMEOUT": "15s"}, "whole number of ms"),
        (
            {"APPLICATION_PASSWORD": "", "APPLICATION_PASSWORD_FILE": "/no/such"},
            "/no/such: No such file",
        ),
    ],
)
def test_wrong_variables_are_named(server, variables, message):
    """In one line, with nothing changed."""
    refused(server.role(**variables), message, lines=1)


def test_the_password_comes_from_a_file(server, tmp_path):
    """As a secret of Compose or Kubernetes is mounted."""
    file = tmp_path / "password"
    file.write_text(f"{server.password}\n")
    succeeded(server.role(APPLICATION_PASSWORD="", APPLICATION_PASSWORD_FILE=str(file)))
    assert server.execute("app", "SELECT 1") == [(1,)]
