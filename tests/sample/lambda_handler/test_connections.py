"""How many connections an execution environment opens, and how long it keeps them."""

import json
import secrets

import boto3
import pytest
from behaviour.lambda_face import open_face
from psycopg2 import sql

from poolkit.local.postgres import APP_ROLE


def connections_opened(face):
    return face.environment.snapshot().opened


def test_by_default_each_invoke_opens_one_connection_and_leaves_none(migrated_database):
    """The preset lambda keeps nothing between invokes."""
    with open_face(migrated_database.url()) as face:
        for number in (1, 2, 3):
            assert face.request("GET", "/articles").status == 200
            assert connections_opened(face) == number
        migrated_database.wait_for_backends(0, "lambda:")


def test_a_request_that_needs_no_database_opens_no_connection(migrated_database):
    """Bad input is found out before there is a connection."""
    with open_face(migrated_database.url()) as face:
        assert face.request("GET", "/articles/x").status == 422
        assert face.request("POST", "/articles", body=b"{").status == 400
        assert face.request("GET", "/nowhere").status == 404
        assert connections_opened(face) == 0


def test_prewarming_connects_in_the_init_phase(migrated_database):
    """With prewarm the first invoke finds its connection there."""
    with open_face(
        migrated_database.url(), POOLKIT_TARGET="lambda_warm", POOLKIT_PREWARM="1"
    ) as face:
        assert len(migrated_database.wait_for_backends(1, "lambda_warm:")) == 1
        assert face.request("GET", "/articles").status == 200
        assert connections_opened(face) == 1


@pytest.fixture
def warm(migrated_database):
    with open_face(migrated_database.url(), POOLKIT_TARGET="lambda_warm") as face:
        yield face


def test_a_warm_execution_environment_keeps_one_connection(warm, migrated_database):
    """The preset lambda_warm opens it at the first invoke, and uses it for every other one."""
    assert connections_opened(warm) == 0
    for _ in range(3):
        assert warm.request("GET", "/articles").status == 200
    (backend,) = migrated_database.wait_for_backends(1, "lambda_warm:")
    assert backend["state"] == "idle"
    assert connections_opened(warm) == 1


def test_a_backend_that_was_terminated_between_invokes_fails_no_request(warm, migrated_database):
    """The checkout finds the connection dead and opens another."""
    assert warm.request("GET", "/articles").status == 200
    for number in (2, 3):
        (backend,) = migrated_database.wait_for_backends(1, "lambda_warm:")
        migrated_database.execute("SELECT pg_terminate_backend(%s, 60000)", backend["pid"])
        assert warm.request("POST", "/articles", body={"title": "t", "body": ""}).status == 201
        assert connections_opened(warm) == number


def test_a_connection_reaped_while_frozen_fails_no_request(migrated_database):
    """The server ends what is idle too long; the thawed environment connects again."""
    # So long a machine may stand still between the connect and the first statement.
    limits = {"POOLKIT_TARGET": "lambda_warm", "POOLKIT_IDLE_SESSION_TIMEOUT": "3000"}
    with open_face(migrated_database.url(), **limits) as face:
        assert face.request("GET", "/articles").status == 200
        migrated_database.wait_for_backends(0, "lambda_warm:")
        assert face.request("GET", "/articles").status == 200
        assert connections_opened(face) == 2


@pytest.mark.parametrize("target", ["lambda", "lambda_warm"])
def test_a_rotated_password_fails_no_request(migrated_database, postgres, served_aws, target):
    """The refused password is fetched anew when the next connection is opened."""
    role = f"rotated_{secrets.token_hex(4)}"
    before, after = (
        json.dumps({"username": role, "password": password}) for password in ("first", "second")
    )
    _set_password(migrated_database, "CREATE", role, "first")
    migrated_database.execute(f"GRANT {APP_ROLE} TO {role}")
    secrets_manager = boto3.client("secretsmanager")
    arn = secrets_manager.create_secret(Name=role, SecretString=before)["ARN"]
    variables = {
        "DATABASE_SECRET_ARN": arn,
        "DATABASE_HOST": "127.0.0.1",
        "DATABASE_PORT": str(postgres.port),
        "DATABASE_NAME": migrated_database.name,
        "DATABASE_SSLMODE": "disable",
        "POOLKIT_TARGET": target,
    }
    with open_face("", **variables) as face:
        assert face.request("GET", "/articles").status == 200
        _set_password(migrated_database, "ALTER", role, "second")
        secrets_manager.put_secret_value(SecretId=arn, SecretString=after)
        migrated_database.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = %s", role
        )
        assert face.request("GET", "/articles").status == 200
    secrets_manager.close()
    migrated_database.wait_for_backends(0, f"{target}:")
    migrated_database.execute(f"DROP ROLE {role}")


def _set_password(database, verb, role, password):
    statement = sql.SQL(verb + " ROLE {} LOGIN PASSWORD {}")
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(statement.format(sql.Identifier(role), sql.Literal(password)))
