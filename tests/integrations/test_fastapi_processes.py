"""FastAPI on poolkit as processes, over real HTTP: what may fail, and what must not."""

import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from fastapi_application import CREATE_TABLE
from processes import run_python, started, wait_until
from web_service import Served, environment, serving

pytestmark = pytest.mark.process

HERE = str(Path(__file__).parent)
APPLICATIONS = {"web": "fastapi_application:app", "web_async": "fastapi_application:async_app"}
SMALL = {"POOLKIT_POOL_SIZE": "1", "POOLKIT_MAX_OVERFLOW": "0", "POOLKIT_POOL_TIMEOUT": "1"}
# What takes seconds or a second process, and goes the same way in both: once here, for both in
# the slow run.
ONE_OF_THEM = pytest.mark.parametrize(
    "target", ["web", pytest.param("web_async", marks=pytest.mark.slow)]
)


@pytest.fixture(params=APPLICATIONS)
def target(request) -> str:
    """Name the synchronous and the asynchronous application in turn."""
    return request.param


@pytest.fixture
def serve(target) -> Callable[..., Served]:
    """Return the function that starts the application."""
    app = APPLICATIONS[target]
    return lambda url, *options, **environ: serving(
        app, url, "--app-dir", HERE, *options, **environ
    )


@pytest.fixture
def notes(database):
    """Give a database with the table, and its URL without a driver, as platforms hand URLs out."""
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(CREATE_TABLE)
        cursor.execute("GRANT ALL ON notes TO PUBLIC")
    return database


@pytest.fixture
def locked(notes):
    """Return a cursor that holds the lock for which GET /locked waits."""
    with notes.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(1)")
        yield cursor


def unlock(locked):
    locked.execute("SELECT pg_advisory_unlock(1)")


def test_an_exhausted_pool_is_503_at_once_for_readiness_and_after_pool_timeout_for_work(
    serve, notes, locked
):
    """With every connection in use: 503 with Retry-After, counted; healthz still answers."""
    with serve(notes.url(driver=""), **SMALL) as served:
        blocked = served.start("GET", "/locked")
        notes.wait_for_lock()
        assert served.get("/readyz") == 503
        # At once: no request has waited for a connection until the pool's time was up.
        assert served.metric("checkout_timeouts_total") == 0
        status, headers, body = served.request("GET", "/notes")
        assert (status, headers["Retry-After"]) == (503, "1"), body
        assert headers.get_content_type() == "application/problem+json"
        assert served.metric("checkout_timeouts_total") == 1
        assert served.metric("waiting") == 0
        assert served.metric("checked_out") == 1
        assert served.get("/healthz") == 200
        unlock(locked)
        assert blocked.answer()[0] == 200
        # Within seconds, which a machine that stands still may use up.
        wait_until(lambda: served.get("/readyz") == 200, "the service to be ready")


def test_the_wait_for_a_connection_is_one_checkout(serve, notes, locked):
    """A request that waits and then gets its connection counts once, with its whole wait."""
    with serve(notes.url(driver=""), **SMALL | {"POOLKIT_POOL_TIMEOUT": "60"}) as served:
        blocked = served.start("GET", "/locked")
        notes.wait_for_lock()
        before = served.metric("checkout_wait_seconds_sum")
        waiting = served.start("GET", "/notes")
        wait_until(lambda: served.metric("waiting") == 1, "a request that waits")
        seen = time.monotonic()
        time.sleep(0.2)  # the very time that is to be measured
        held = time.monotonic() - seen
        unlock(locked)
        assert (blocked.answer()[0], waiting.answer()[0]) == (200, 200)
        assert served.metric("checkouts_total") == 2
        assert served.metric("checkout_wait_seconds_sum") - before >= held


def test_requests_beyond_the_pool_and_beyond_fastapi_s_threads_are_all_answered(serve, notes):
    """60 at once on 2 connections: none waits for a thread that waits for its connection."""
    pool = {"POOLKIT_POOL_SIZE": "2", "POOLKIT_MAX_OVERFLOW": "0", "POOLKIT_POOL_TIMEOUT": "100"}
    with serve(notes.url(driver=""), **pool) as served:
        with notes.connect() as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN; LOCK TABLE notes")
            requests = [served.start("POST", "/notes", {"text": str(n)}) for n in range(60)]
            wait_until(lambda: served.metric("waiting") == 58, "all requests to be there")
        assert {started.answer()[0] for started in requests} == {201}
        assert served.metric("opened_total") == 2
        assert served.metric("checkout_timeouts_total") == 0
    (row,) = notes.execute("SELECT count(*) FROM notes")
    assert row["count"] == 60


@ONE_OF_THEM
def test_a_server_that_stands_still_is_503_and_gives_its_connection_up(serve, notes):
    """A stopped backend keeps no statement_timeout; the request ends all the same."""
    limits = {**SMALL, "POOLKIT_CONNECT_TIMEOUT": "1", "POOLKIT_STATEMENT_TIMEOUT": "500"}
    with serve(notes.url(driver=""), **limits, POOLKIT_PING_AFTER_IDLE="60") as served:
        backend = stood_still(served, notes)
        try:
            began = time.monotonic()
            status, headers, body = served.request("GET", "/notes")
            assert (status, headers["Retry-After"]) == (503, "5"), body
            assert time.monotonic() - began < 40
            # The one connection of this pool is free for a backend that does answer.
            wait_until(lambda: served.get("/notes") == 200, "the pool to recover")
        finally:
            os.kill(backend, signal.SIGCONT)


def stood_still(served, database):
    """Stop the backend of the service's one connection; return its pid."""
    # Again: the limits of these tests are for a server that stands still, and short.
    wait_until(
        lambda: served.request("POST", "/notes", {"text": ""})[0] == 201, "a connection to be used"
    )
    (backend,) = database.wait_for_backends(1, "web")
    os.kill(backend["pid"], signal.SIGSTOP)
    return backend["pid"]


def test_a_shutdown_does_not_wait_for_a_server_that_stands_still(serve, notes):
    """SIGTERM ends the process though a backend that it waits for is stopped."""
    # Longer than the process may take to end: it would wait for the statement.
    limits = {"POOLKIT_CONNECT_TIMEOUT": "1", "POOLKIT_STATEMENT_TIMEOUT": "600000"}
    url = notes.url(driver="")
    with serve(url, "--timeout-graceful-shutdown", "1", **limits) as served:
        backend = stood_still(served, notes)
        try:
            stuck = served.start("GET", "/notes")
            wait_until(
                lambda: served.metric("checked_out") + served.metric("waiting") > 0,
                "the request to wait",
            )
            served.terminate(timeout_s=60)
        finally:
            os.kill(backend, signal.SIGCONT)
        stuck.ended()


def test_a_shutdown_drains_what_is_in_flight(serve, notes, locked):
    """After SIGTERM a request that waits for a lock is answered; then the pool is closed."""
    with serve(notes.url(driver="")) as served:
        blocked = served.start("GET", "/locked")
        notes.wait_for_lock()
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _accepts(served), "no more connections to be taken")
        unlock(locked)
        assert blocked.answer()[0] == 200
        served.process.wait(60)
        notes.wait_for_backends(0, "web")
        assert notes.abandoned() == 0


def _accepts(served):
    host, port = served.address.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=60).close()
    except OSError:  # refused, or reset because the listening socket was closed meanwhile
        return False
    return True


def test_a_killed_process_leaves_no_backend(serve, notes):
    """After SIGKILL the server finds the sockets closed, and ends its backends."""
    with serve(notes.url(driver="")) as served:
        assert served.get("/notes") == 200
        notes.wait_for_backends(1, "web")
        served.process.kill()
        notes.wait_for_backends(0, "web")
        assert notes.abandoned() == 1


def test_backends_killed_during_traffic_between_requests_fail_none(serve, notes):
    """Terminated between requests again and again, over many connections: no failure."""
    with serve(notes.url(driver="")) as served:
        for _ in range(5):
            burst = [served.start("GET", "/notes") for _ in range(4)]
            assert [started.answer()[0] for started in burst] == [200] * 4
            notes.terminate_backends()
        assert served.metric("opened_total") >= 5


@ONE_OF_THEM
def test_uvicorn_s_workers_have_a_pool_each(serve, notes):
    """Two processes behind one address serve, and close their pools at the end."""
    # uvicorn kills a worker that does not answer for five seconds, as on a busy machine.
    options = ("--workers", "2", "--timeout-worker-healthcheck", "100")
    with serve(notes.url(driver=""), *options) as served:
        wait_until(lambda: _accepts(served), "a worker to listen")
        assert served.get("/notes") == 200
        served.terminate()
        notes.wait_for_backends(0, "web")
        assert notes.abandoned() == 0


@pytest.mark.parametrize("options", [(), pytest.param(("--preload",), marks=pytest.mark.slow)])
@ONE_OF_THEM
def test_gunicorn_s_workers_have_a_pool_each(target, options, notes):
    """The lifespan makes the engine after the fork, whether the application was preloaded or not."""
    command = (sys.executable, "-m", "gunicorn", APPLICATIONS[target], "--chdir", HERE, *options)
    worker = ("--workers", "2", "--worker-class", "uvicorn.workers.UvicornWorker")
    with started(
        *command, *worker, "--bind", "127.0.0.1:0", environ=environment(notes.url(driver=""))
    ) as process:
        served = Served(process, process.wait_for(r"Listening at: (http://\S+)")[1])
        assert served.request("POST", "/notes", {"text": "x"})[0] == 201
        assert served.terminate() == 0
        notes.wait_for_backends(0, "web")


def failed_start(app, environ):
    words = ("-m", "uvicorn", app, "--port", "0", "--app-dir", HERE)
    return run_python(*words, environ=environ, clean=True)


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"DATABASE_URL": "sqlite+x:///"}, "cannot start: DATABASE_URL: "),
        (
            {
                "DATABASE_URL": "postgresql://u:p@127.0.0.1:1/x",
                "POOLKIT_FAIL_FAST": "true",
                "POOLKIT_CONNECT_TIMEOUT": "1",
            },
            "cannot start: the database ",
        ),
    ],
    ids=["a wrong setting", "no database, and fail_fast"],
)
def test_a_failed_start_is_one_line(target, environ, reason):
    """The line says what is wrong, the exit status is not 0, and there is no traceback."""
    ended = failed_start(APPLICATIONS[target], environ)
    assert ended.returncode == 3
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_start_without_a_database_serves_health_and_says_it_is_not_ready(serve):
    """Without fail_fast the process starts, is healthy, and not ready within seconds."""
    with serve("postgresql://u:p@127.0.0.1:1/x", POOLKIT_CONNECT_TIMEOUT="1") as served:
        assert served.get("/healthz") == 200
        began = time.monotonic()
        assert served.get("/readyz") == 503
        assert time.monotonic() - began < 40
        assert served.metric("connect_failures_total") > 0


@ONE_OF_THEM
def test_too_large_a_body_is_answered_before_it_is_sent(serve):
    """The head of a request is enough for a 413: not one byte of the body is waited for."""
    with serve("postgresql://u:p@127.0.0.1:1/x") as served:
        host, port = served.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=100) as client:
            client.sendall(b"POST /notes HTTP/1.1\r\nHost: x\r\nContent-Length: 10485760\r\n\r\n")
            assert client.recv(64).startswith(b"HTTP/1.1 413 ")


@contextmanager
def no_more_threads(pid: int) -> Iterator[None]:
    """Leave a process too little address space for the stack of another thread."""
    size = psutil.Process(pid).memory_info().vms
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (size + 6 * 1024 * 1024, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="sets another process's limits")
@pytest.mark.parametrize("target", ["web"])
def test_threads_that_cannot_be_started_cost_no_place(serve, notes):
    """A burst meanwhile is answered with 503 at worst, and only what is answered with 201 is stored."""
    with serve(notes.url(driver="")) as served:
        pid = served.process.pid
        with no_more_threads(pid):
            # The application's own thread is there, but FastAPI has none yet.
            assert served.get("/healthz") == 503
            status, headers, _ = served.request("POST", "/notes", {"text": "0"})
            assert (status, headers["Retry-After"]) == (503, "1")
        assert served.get("/healthz") == 200
        with no_more_threads(pid):
            burst = [served.start("POST", "/notes", {"text": str(n)}) for n in range(40)]
            statuses = [each.answer()[0] for each in burst]
            assert set(statuses) <= {201, 503}
        burst = [served.start("POST", "/notes", {"text": str(n)}) for n in range(40)]
        assert {each.answer()[0] for each in burst} == {201}
        stored = json.loads(served.request("GET", "/notes")[2])
        assert len(stored) == statuses.count(201) + 40
        assert served.get("/healthz") == 200
        assert served.metric("checked_out") == 0
        assert "Traceback" not in served.process.text
