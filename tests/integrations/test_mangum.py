"""An ASGI application under Mangum: one lifespan for each execution environment."""

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
import snapshot_restore_py
from awslambdaric.lambda_runtime_hooks_runner import run_after_restore, run_before_snapshot
from fastapi import Depends, FastAPI, Request
from lambda_events import MAKERS, http_api, new_context
from mangum import Mangum
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from poolkit.fastapi import AsyncDatabase, Database
from poolkit.mangum import TemporaryFailures, make_handler

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_hooks_and_loop():
    """Take back the hooks of SIGTERM and SnapStart, and the loop that Mangum sets."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    sigterm = signal.getsignal(signal.SIGTERM)
    registries = snapshot_restore_py.get_before_snapshot(), snapshot_restore_py.get_after_restore()
    before = [list(registry) for registry in registries]
    yield
    signal.signal(signal.SIGTERM, sigterm)
    for registry, content in zip(registries, before, strict=True):
        registry[:] = content
    asyncio.set_event_loop(None)
    loop.close()


def asynchronous(database):
    """Return an application as FastAPI's users write it, with asyncpg and a lifespan."""

    @asynccontextmanager
    async def lifespan(app):
        engine = create_async_engine(
            database.url("asyncpg"), connect_args={"server_settings": {"application_name": "mine"}}
        )
        yield {"engine": engine}
        await engine.dispose()

    async def connection(request: Request):
        async with request.state.engine.begin() as connection:
            yield connection

    app = FastAPI(lifespan=lifespan)

    @app.get("/pid")
    async def pid(connection: Annotated[Any, Depends(connection)]):
        return (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()

    return app


def get(handler, make_event=http_api):
    answer = json.loads(json.dumps(handler(make_event("GET", "/pid"), new_context())))
    return answer["statusCode"], json.loads(answer["body"])


@pytest.mark.parametrize("make_event", MAKERS.values(), ids=MAKERS)
def test_an_engine_of_the_lifespan_serves_all_requests(database, make_event):
    """The connection of one request is there for the next."""
    handler = make_handler(asynchronous(database))
    (first, pid), (second, again) = get(handler, make_event), get(handler, make_event)
    assert (first, second, pid) == (200, 200, again)
    assert len(database.backends("mine")) == 1
    handler.stop()
    database.wait_for_backends(0, "mine")


def test_no_connection_is_part_of_a_snapshot(database):
    """The lifespan ends before it, and each copy begins it anew."""
    handler = make_handler(asynchronous(database))
    get(handler)
    run_before_snapshot()
    database.wait_for_backends(0, "mine")
    run_after_restore()
    assert get(handler)[0] == 200
    database.wait_for_backends(1, "mine")
    handler.stop()


@pytest.mark.parametrize("make_database", [Database, AsyncDatabase])
def test_a_database_of_poolkits_own_keeps_one_connection(database, monkeypatch, make_database):
    """`poolkit.fastapi` and `poolkit.mangum` fit together, for both kinds of engines."""
    variables = {"DATABASE_URL": database.url(""), "POOLKIT_POOL_SIZE": "1"}
    for name, value in (variables | {"POOLKIT_MAX_OVERFLOW": "0"}).items():
        monkeypatch.setenv(name, value)
    service = make_database("web" if make_database is Database else "web_async")
    app = FastAPI(lifespan=service.lifespan)
    if make_database is Database:

        @app.get("/pid")
        def pid(session: Annotated[Session, Depends(service.session, scope="function")]):
            return session.execute(text("SELECT pg_backend_pid()")).scalar_one()
    else:

        @app.get("/pid")
        async def pid(session: Annotated[AsyncSession, Depends(service.session, scope="function")]):
            return (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()

    handler = make_handler(app)
    first, second = get(handler), get(handler)
    assert first == second
    assert first[0] == 200
    run_before_snapshot()
    database.wait_for_backends(0)
    run_after_restore()
    assert get(handler)[0] == 200
    handler.stop()
    database.wait_for_backends(0)


@pytest.mark.parametrize("kind", ["asynchronous", "synchronous"])
def test_an_engine_of_a_module_is_disposed_of(database, kind):
    """As many templates make it: at the top, and without a lifespan."""
    app = FastAPI()
    if kind == "asynchronous":
        engine = create_async_engine(database.url("asyncpg"))

        @app.get("/pid")
        async def pid():
            async with engine.begin() as connection:
                return (await connection.execute(text("SELECT 1"))).scalar_one()
    else:
        engine = create_engine(database.url())

        @app.get("/pid")
        def pid():
            with engine.begin() as connection:
                return connection.execute(text("SELECT 1")).scalar_one()

    handler = make_handler(app, engines=[engine])
    assert get(handler) == (200, 1)
    database.wait_for_backends(1)
    run_before_snapshot()
    database.wait_for_backends(0)
    run_after_restore()
    assert get(handler) == (200, 1)
    handler.stop()
    database.wait_for_backends(0)


def test_a_startup_that_fails_fails_the_init_phase():
    """With the application's own error in the message."""

    @asynccontextmanager
    async def lifespan(app):
        raise RuntimeError("no such setting")
        yield

    with pytest.raises(Exception, match="no such setting"):
        make_handler(FastAPI(lifespan=lifespan))


def test_mangums_options_are_passed_on():
    """Such as the base path of a custom domain's mapping."""
    app = FastAPI()
    app.get("/pid")(lambda: 7)
    handler = make_handler(app, api_gateway_base_path="/v1")
    answer = handler(MAKERS["rest_api"]("GET", "/v1/pid"), new_context())
    assert answer["statusCode"] == 200
    handler.stop()


def test_the_lifespan_begins_once_and_not_for_each_request():
    """Mangum alone begins it for each; what it yields is each request's state all the same."""
    began = []

    @asynccontextmanager
    async def lifespan(app):
        began.append("startup")
        yield {"number": 7}

    app = FastAPI(lifespan=lifespan)
    app.get("/pid")(number)
    for _ in range(2):
        Mangum(app)(http_api("GET", "/pid"), new_context())
    assert len(began) == 2
    handler = make_handler(app)
    assert [get(handler) for _ in range(2)] == [(200, 7)] * 2
    assert len(began) == 3
    handler.stop()


def number(request: Request):
    return request.state.number


SERVING = """
import sys, time
sys.path[:0] = ["tests", "tests/integrations"]
from lambda_events import http_api, new_context
from fastapi import FastAPI
from contextlib import asynccontextmanager
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from poolkit.mangum import make_handler

@asynccontextmanager
async def lifespan(app):
    app.engine = create_async_engine(sys.argv[1])
    yield
    await app.engine.dispose()
    print("disposed", flush=True)

app = FastAPI(lifespan=lifespan)

@app.get("/pid")
async def pid():
    async with app.engine.begin() as connection:
        return (await connection.execute(text("SELECT 1"))).scalar_one()

handler = make_handler(app)
assert handler(http_api("GET", "/pid"), new_context())["statusCode"] == 200
print("ready", flush=True)
while True:  # not pause(): a signal just before it would be waited for in vain
    time.sleep(0.05)
"""


@pytest.mark.process
def test_sigterm_ends_the_lifespan(database):
    """Lambda sends it to a function with an extension, and waits for 500 ms."""
    command = [sys.executable, "-c", SERVING, database.url("asyncpg")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with process:
        assert process.stdout.readline() == "ready\n"
        assert len(database.backends()) == 1
        process.terminate()
        assert process.stdout.readline() == "disposed\n"
        assert process.wait(60) == 0
    database.wait_for_backends(0)


# -- errors -----------------------------------------------------------------------------------


def test_a_database_that_fails_is_503(database):
    """With Retry-After and a problem document; other errors pass."""
    engine = create_engine(database.url().replace(database.name, "no_such_database"))
    app = FastAPI()
    app.add_middleware(TemporaryFailures)

    @app.get("/pid")
    def pid():
        with engine.begin():
            return 1

    @app.get("/bug")
    def bug():
        raise RuntimeError("secret")

    handler = make_handler(app, engines=[engine])
    answer = handler(http_api("GET", "/pid"), new_context())
    assert answer["statusCode"] == 503
    assert answer["headers"]["retry-after"] == "5"
    assert answer["headers"]["content-type"] == "application/problem+json"
    assert "no_such_database" not in answer["body"]
    assert handler(http_api("GET", "/bug"), new_context())["statusCode"] == 500
    handler.stop()
