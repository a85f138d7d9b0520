"""The application itself: its OpenAPI document, its limit of bodies, its answers to failures."""

import asyncio
import socket
import threading
from contextlib import asynccontextmanager

import httpx
import jsonschema
import pytest
from articles.api import API

from poolkit.config.metrics import PoolMetrics
from poolkit.errors import ConfigurationError, PoolExhausted
from webapp import app as sync_root
from webapp import async_app as async_root
from webapp.application import make_application
from webapp.configuration import WebSettings
from webapp.database import open_async_database, open_threaded_database
from webapp.worker_threads import WorkerThreads

ENVIRON = {"DATABASE_URL": "postgresql://u:p@127.0.0.1:1/x", "POOLKIT_ECHO": "false"}


def test_both_services_document_the_same_api():
    """Synchronous or not, the OpenAPI document is one."""
    assert sync_root.app.openapi() == async_root.app.openapi()


def test_the_document_has_every_endpoint_with_its_schemas_and_problems():
    """What `articles.api` checks and answers is what OpenAPI shows."""
    paths = sync_root.app.openapi()["paths"]
    for endpoint in API:
        shown = paths[endpoint.path][endpoint.method.lower()]
        statuses = {str(s) for s in (*endpoint.responses, *endpoint.problems, 503)}
        assert set(shown["responses"]) == statuses
        for status, schema in endpoint.responses.items():
            content = shown["responses"][str(status)]["content"]
            assert content["application/json"]["schema"] == schema
        if endpoint.request_schema is not None:
            content = shown["requestBody"]["content"]
            assert content["application/json"]["schema"] == endpoint.request_schema
        names = {*endpoint.path_parameters, *endpoint.query_parameters}
        assert {parameter["name"] for parameter in shown["parameters"]} == names


def test_the_document_has_the_schema_of_problems():
    """Every reference of the document leads somewhere."""
    document = sync_root.app.openapi()
    problem = document["components"]["schemas"]["Problem"]
    jsonschema.Draft202012Validator.check_schema(problem)
    assert "#/components/schemas/Problem" in str(document["paths"])


class BrokenDatabase:
    """A database with a bug."""

    async def run(self, operation, *, autocommit=False):
        operation.close()
        raise ZeroDivisionError("the password is hunter2")


@asynccontextmanager
async def open_broken(settings, metrics):
    yield BrokenDatabase()


def asked(app, method, path, **content):
    async def ask():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            return await client.request(method, path, **content)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("target", "open_database"),
    [("web", open_threaded_database), ("web_async", open_async_database)],
)
def test_the_pool_is_closed_at_the_end_and_not_by_the_process_s_own(
    target, open_database, migrated_database
):
    """With the application's end its connections end, while process and engine still live."""
    environ = ENVIRON | {
        "DATABASE_URL": migrated_database.url(driver=""),
        "POOLKIT_CONNECT_TIMEOUT": "60",
    }
    app = make_application(target, open_database, environ=environ)
    assert asked(app, "GET", "/articles").status_code == 200
    migrated_database.wait_for_backends(0, f"{target}:")
    assert migrated_database.abandoned() == 0
    assert app.state.resources.database.snapshot().opened == 1


def test_an_unexpected_error_is_a_500_that_gives_nothing_away():
    """The answer to a bug is a problem document without the error's text."""
    app = make_application("web", open_broken, environ=ENVIRON)
    answer = asked(app, "GET", "/articles")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in answer.text


async def chunked():
    for _ in range(11):
        yield b"x"


@pytest.mark.parametrize("content", [b"x" * 11, chunked()], ids=["declared length", "chunked"])
def test_a_body_is_limited(content):
    """WEBAPP_MAX_BODY_BYTES holds before the endpoint runs, also for a length that is not known."""
    app = make_application("web", open_broken, environ={**ENVIRON, "WEBAPP_MAX_BODY_BYTES": "10"})
    answer = asked(app, "POST", "/articles", content=content)
    assert answer.status_code == 413
    assert "10 bytes" in answer.json()["detail"]


@pytest.mark.process
def test_too_large_a_body_is_answered_before_it_is_sent(serve):
    """The head of a request is enough for a 413: not one byte of the body is waited for."""
    with serve(ENVIRON["DATABASE_URL"]) as served:
        host, port = served.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=100) as client:
            client.sendall(
                b"POST /articles HTTP/1.1\r\nHost: x\r\nContent-Length: 10485760\r\n\r\n"
            )
            assert client.recv(64).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WEBAPP_PORT", "65536"),
        ("WEBAPP_PORT", "http"),
        ("WEBAPP_MAX_BODY_BYTES", "0"),
        ("WEBAPP_MAX_BODY_BYTES", "1048577"),
        ("WEBAPP_KEEP_ALIVE_TIMEOUT", "-1"),
        ("WEBAPP_GRACEFUL_TIMEOUT", "1.5"),
        ("WEBAPP_ACCESS_LOG", "perhaps"),
    ],
)
def test_a_wrong_web_setting_is_named(variable, value):
    """A value out of range stops the start with the variable's name and what was found."""
    with pytest.raises(ConfigurationError, match=f"{variable} must be .*{value}"):
        WebSettings.from_environ({variable: value})


def test_a_misspelt_web_setting_is_named():
    """An unknown variable that is close to a known one stops the start."""
    with pytest.raises(ConfigurationError, match=r"WEBAPP_HOSTS is .*mean WEBAPP_HOST\?"):
        WebSettings.from_environ({"WEBAPP_HOSTS": "0.0.0.0"})


def test_a_web_service_refuses_another_target():
    """POOLKIT_TARGET=worker is a mistake in a web service's environment."""
    app = make_application("web", open_broken, environ={**ENVIRON, "POOLKIT_TARGET": "worker"})
    with pytest.raises(ConfigurationError, match="POOLKIT_TARGET=worker does not run here"):
        asked(app, "GET", "/healthz")


def test_a_thread_that_cannot_start_costs_no_place():
    """The work is refused as with a full pool, and done as soon as threads can start again."""

    async def refused_then_done():
        threads = WorkerThreads(1, patience=60, deadline=60, metrics=PoolMetrics())
        # More address space than there is.
        before = threading.stack_size(1 << 47)
        try:
            with pytest.raises(PoolExhausted, match="thread 1 cannot start"):
                await threads.run(lambda: "done")
        finally:
            threading.stack_size(before)
        done = await threads.run(lambda: "done")
        threads.close()
        return done

    assert asyncio.run(refused_then_done()) == "done"
