"""The web services as processes, over real HTTP: what may fail, and what must not."""

import os
import signal
import socket
import time

import pytest
from processes import run_python, wait_until

from webapp.__main__ import main

pytestmark = pytest.mark.process

ARTICLE = {"title": "Title", "body": ""}
SMALL = {"POOLKIT_POOL_SIZE": "1", "POOLKIT_MAX_OVERFLOW": "0", "POOLKIT_POOL_TIMEOUT": "1"}
# What takes seconds or a second process, and goes the same way in both targets: once here,
# for both in the slow run.
ONE_OF_THEM = pytest.mark.parametrize(
    "target", ["web", pytest.param("web_async", marks=pytest.mark.slow)]
)


@pytest.fixture
def locked(migrated_database):
    """Return a cursor whose transaction holds a lock on every article."""
    with migrated_database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO articles (title, body) VALUES ('x', '')")
        cursor.execute("BEGIN; SELECT * FROM articles FOR UPDATE")
        yield cursor


def update():
    return "PATCH", "/articles/1", {"version": 1, "title": "new"}


def test_an_exhausted_pool_is_503_at_once_for_readiness_and_after_pool_timeout_for_work(
    serve, migrated_database, locked
):
    """With every connection in use: 503 with Retry-After, counted; healthz still answers."""
    with serve(migrated_database.url(driver=""), **SMALL) as served:
        blocked = served.start(*update())
        migrated_database.wait_for_lock()
        assert served.get("/readyz") == 503
        # At once: no request has waited for a connection until the pool's time was up.
        assert served.metric("checkout_timeouts_total") == 0
        status, headers, body = served.request("GET", "/articles/1")
        assert (status, headers["Retry-After"]) == (503, "1"), body
        assert headers.get_content_type() == "application/problem+json"
        assert served.metric("checkout_timeouts_total") == 1
        assert served.metric("waiting") == 0
        assert served.metric("checked_out") == 1
        assert served.get("/healthz") == 200
        locked.execute("ROLLBACK")
        assert blocked.answer()[0] == 200
        # Within seconds, which a machine that stands still may use up.
        wait_until(lambda: served.get("/readyz") == 200, "the service to be ready")


def test_the_wait_for_a_connection_is_one_checkout(serve, migrated_database, locked):
    """A request that waits and then gets its connection counts once, with its whole wait."""
    patient = {**SMALL, "POOLKIT_POOL_TIMEOUT": "60"}
    with serve(migrated_database.url(driver=""), **patient) as served:
        blocked = served.start(*update())
        migrated_database.wait_for_lock()
        before = served.metric("checkout_wait_seconds_sum")
        waiting = served.start("GET", "/articles/1")
        wait_until(lambda: served.metric("waiting") == 1, "a request that waits")
        seen = time.monotonic()
        time.sleep(0.2)  # the very time that is to be measured
        held = time.monotonic() - seen
        locked.execute("ROLLBACK")
        assert (blocked.answer()[0], waiting.answer()[0]) == (200, 200)
        assert served.metric("checkouts_total") == 2
        assert served.metric("checkout_wait_seconds_sum") - before >= held


@ONE_OF_THEM
def test_a_server_that_stands_still_is_503_and_gives_its_connection_up(serve, migrated_database):
    """A stopped backend keeps no statement_timeout; the request ends all the same."""
    url = migrated_database.url(driver="")
    limits = {**SMALL, "POOLKIT_CONNECT_TIMEOUT": "1", "POOLKIT_STATEMENT_TIMEOUT": "500"}
    with serve(url, **limits, POOLKIT_PING_AFTER_IDLE="60") as served:
        backend = stood_still(served, migrated_database)
        try:
            began = time.monotonic()
            status, headers, body = served.request("GET", "/articles/1")
            assert (status, headers["Retry-After"]) == (503, "5"), body
            assert time.monotonic() - began < 40
            # The one connection of this pool is free for a backend that does answer.
            wait_until(lambda: served.get("/articles/1") == 200, "the pool to recover")
        finally:
            os.kill(backend, signal.SIGCONT)


def stood_still(served, database):
    """Stop the backend of the service's one connection; return its pid."""
    # Again: the limits of these tests are for a server that stands still, and short.
    wait_until(
        lambda: served.request("POST", "/articles", ARTICLE)[0] == 201, "a connection to be used"
    )
    (backend,) = database.wait_for_backends(1, f"{served.target}:")
    os.kill(backend["pid"], signal.SIGSTOP)
    return backend["pid"]


def test_a_shutdown_does_not_wait_for_a_server_that_stands_still(serve, migrated_database):
    """SIGTERM ends the process though a backend that it waits for is stopped."""
    # Longer than the process may take to end: it would wait for the statement.
    limits = {"POOLKIT_CONNECT_TIMEOUT": "1", "POOLKIT_STATEMENT_TIMEOUT": "600000"}
    url = migrated_database.url(driver="")
    with serve(url, **limits, WEBAPP_GRACEFUL_TIMEOUT="1") as served:
        backend = stood_still(served, migrated_database)
        try:
            stuck = served.start("GET", "/articles/1")
            wait_until(
                lambda: served.metric("checked_out") + served.metric("waiting") > 0,
                "the request to wait",
            )
            assert served.terminate(timeout_s=60) == 0
        finally:
            os.kill(backend, signal.SIGCONT)
        stuck.ended()


def test_a_shutdown_drains_what_is_in_flight(serve, migrated_database, locked):
    """After SIGTERM a request that waits for a lock is answered; then the pool takes its leave."""
    with serve(migrated_database.url(driver="")) as served:
        blocked = served.start(*update())
        migrated_database.wait_for_lock()
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _accepts(served), "no more connections to be taken")
        locked.execute("ROLLBACK")
        assert blocked.answer()[0] == 200
        assert served.process.wait(60) == 0
        migrated_database.wait_for_backends(0, f"{served.target}:")
        assert migrated_database.abandoned() == 0


def _accepts(served):
    host, port = served.address.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=60).close()
    except OSError:  # refused, or reset because the listening socket was closed meanwhile
        return False
    return True


def test_a_killed_process_leaves_no_backend(serve, migrated_database):
    """After SIGKILL the server finds the sockets closed, and ends its backends."""
    with serve(migrated_database.url(driver="")) as served:
        assert served.get("/articles") == 200
        migrated_database.wait_for_backends(1, f"{served.target}:")
        served.process.kill()
        migrated_database.wait_for_backends(0, f"{served.target}:")
        assert migrated_database.abandoned() == 1


def test_backends_killed_during_traffic_between_requests_fail_none(serve, migrated_database):
    """Terminated between requests again and again, over many connections: no failure."""
    with serve(migrated_database.url(driver="")) as served:
        for _ in range(5):
            burst = [served.start("GET", "/articles") for _ in range(4)]
            assert [started.answer()[0] for started in burst] == [200] * 4
            migrated_database.terminate_backends()
        assert served.metric("opened_total") >= 5


@ONE_OF_THEM
def test_two_processes_serve_one_address_with_a_pool_each(serve, migrated_database):
    """--processes says what it multiplies, serves, and ends with status 0."""
    with serve(migrated_database.url(driver=""), "--processes", "2") as served:
        assert served.get("/articles") == 200
        assert served.terminate() == 0
        migrated_database.wait_for_backends(0, f"{served.target}:")
        assert migrated_database.abandoned() == 0


def failed_start(target, environ, *options):
    words = ["-m", "webapp", "--port", "0", *(["--async"] if target == "web_async" else [])]
    return run_python(*words, *options, environ=environ, clean=True)


def test_a_wrong_setting_is_one_line(target):
    """A wrong value ends the start with status 2 and one line that names the variable."""
    ended = failed_start(target, {"DATABASE_URL": "sqlite+x:///", "POOLKIT_PORT": "1"})
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("webapp: DATABASE_URL: ")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--port", "99999", "must be a whole number from 0 to 65535, not '99999'"),
        ("--port", "http", "must be a whole number from 0 to 65535, not 'http'"),
        ("--processes", "0", "must be a whole number from 1 to 1000, not '0'"),
        ("--processes", "x", "must be a whole number from 1 to 1000, not 'x'"),
    ],
)
def test_a_wrong_option_says_what_it_must_be(capsys, option, value, words):
    """Status 2, and the same words as of a variable; nothing listens anywhere."""
    with pytest.raises(SystemExit) as ended:
        main([option, value])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument {option}: {words}\n")


@pytest.mark.parametrize(
    "processes", ["1", pytest.param("2", marks=pytest.mark.slow)], ids="{} processes".format
)
def test_a_start_without_a_database_is_one_line_when_it_is_to_fail_fast(target, processes):
    """fail_fast ends the start with a line that says what is missing, and no traceback."""
    environ = {"DATABASE_URL": "postgresql://u:p@127.0.0.1:1/x", "POOLKIT_FAIL_FAST": "true"}
    environ["POOLKIT_CONNECT_TIMEOUT"] = "1"
    ended = failed_start(target, environ, "--processes", processes)
    assert ended.returncode == 3
    assert ended.stdout == ""  # no address, so no client sends requests there
    assert "cannot start: the database " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_start_without_a_database_serves_health_and_says_it_is_not_ready(serve):
    """Without fail_fast the process starts, is healthy, and not ready within seconds."""
    url = "postgresql://u:p@127.0.0.1:1/x"
    with serve(url, POOLKIT_CONNECT_TIMEOUT="1") as served:
        assert served.get("/healthz") == 200
        began = time.monotonic()
        assert served.get("/readyz") == 503
        assert time.monotonic() - began < 40
        assert served.metric("connect_failures_total") > 0
