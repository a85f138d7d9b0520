"""A database that is full, away or back again: 503 with Retry-After, then 200."""

import time

import pytest
from behaviour.face import problem_of
from closed_databases import CLOSED
from processes import ROOT
from psycopg2 import sql

from poolkit.alembic import Scripts


def assert_unavailable(answer):
    problem_of(answer, 503)
    assert int(answer.headers["retry-after"]) > 0
    # Neither the host nor the role nor the driver's words are a client's business.
    assert "127.0.0.1" not in answer.body.decode()
    assert "poolkit" not in answer.body.decode()


def request_until_available(face, *request, **more):
    """Send a request until it is not refused any more; a busy machine may use up a short time limit."""
    deadline = time.monotonic() + 60
    while (answer := face.request(*request, **more)).status == 503:
        assert time.monotonic() < deadline, answer.body
    return answer


@pytest.fixture(scope="module")
def stoppable(new_postgres):
    """Give a PostgreSQL of this module's own, which its tests may stop."""
    with new_postgres() as server:
        Scripts(ROOT / "articles/migrations").upgrade(server.url())
        yield server


def limit_connections(database, number):
    statement = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}")
    database.execute(statement.format(sql.Identifier(database.name), sql.Literal(number)))


def test_a_database_without_free_connections_is_503_until_there_is_one(
    open_face, migrated_database
):
    """The server refuses for lack of connections: 503, and 200 as soon as it does not."""
    limit_connections(migrated_database, 0)
    # For as long as that, it is asked again.
    with open_face(migrated_database.url(driver=""), POOLKIT_CONNECT_TIMEOUT="1") as face:
        assert_unavailable(face.request("GET", "/articles"))
        limit_connections(migrated_database, -1)
        assert request_until_available(face, "GET", "/articles").status == 200


def test_a_stopped_database_is_503_until_it_is_back(open_face, stoppable):
    """A stop in between is 503, for reads and writes; after the start requests succeed again."""
    with open_face(stoppable.url(driver="")) as face:
        assert face.request("GET", "/articles").status == 200
        stoppable.stop()
        try:
            assert_unavailable(face.request("GET", "/articles"))
            assert_unavailable(face.request("POST", "/articles", body={"title": "x", "body": ""}))
        finally:
            stoppable.start()
        assert face.request("GET", "/articles").status == 200


@pytest.mark.parametrize("reason", CLOSED)
def test_a_database_that_accepts_no_login_is_503(open_face, migrated_database, reason):
    """Whatever keeps a connection from being opened is 503, in a transaction or without one."""
    with open_face(CLOSED[reason](migrated_database)) as face:
        assert_unavailable(face.request("GET", "/articles/1"))
        assert_unavailable(face.request("POST", "/articles", body={"title": "x", "body": ""}))


def test_a_bad_request_needs_no_database(open_face, stoppable):
    """Bad input is answered as such while the database is away."""
    with open_face(stoppable.url(driver="")) as face:
        stoppable.stop()
        try:
            assert face.request("POST", "/articles", body=b"{").status == 400
            assert face.request("GET", "/articles/0").status == 422
        finally:
            stoppable.start()


def test_a_statement_that_waits_too_long_is_503(open_face, migrated_database):
    """A statement over statement_timeout, here one that waits for a lock, answers 503."""
    url = migrated_database.url(driver="")
    with open_face(url, POOLKIT_STATEMENT_TIMEOUT="200") as face:
        article = {"title": "x", "body": ""}
        path = request_until_available(face, "POST", "/articles", body=article).headers["location"]
        with migrated_database.connect() as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN; SELECT * FROM articles FOR UPDATE")
            assert_unavailable(face.request("PATCH", path, body={"version": 1, "title": "y"}))
            cursor.execute("ROLLBACK")
        change = {"version": 1, "title": "y"}
        assert request_until_available(face, "PATCH", path, body=change).status == 200


def test_backends_that_are_killed_between_requests_fail_none(face, migrated_database):
    """Connections that the server ended are replaced; no request notices."""
    for _ in range(5):
        assert face.request("GET", "/articles").status == 200
        migrated_database.terminate_backends()
        created = face.request("POST", "/articles", body={"title": "x", "body": ""})
        assert created.status == 201
