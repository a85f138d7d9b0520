"""Who holds connections in each framework: the route or the task, and what is out after its end."""

import threading
from typing import Annotated

import pytest
from celery import Celery
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from flask import Flask, stream_with_context
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from poolkit import attach
from poolkit.celery import Database as CeleryDatabase
from poolkit.config.settings import Settings
from poolkit.fastapi import Database, WatchHolds, operations
from poolkit.flask import Poolkit

SELECT = text("SELECT 1")


@pytest.fixture
def attached(database):
    engine = create_engine(database.url())
    yield attach(engine, hold_sampling=1.0)
    engine.dispose()


def units(attached):
    return {row.unit: row for row in attached.metrics.holds.rows()}


# -- FastAPI and Starlette ---------------------------------------------------------------------


def streaming_application(engine, scope):
    """An application with a session for a stream, and one for a plain answer and its background."""
    app, router = FastAPI(), APIRouter(prefix="/orders")
    app.add_middleware(WatchHolds)

    def get_session():
        with Session(engine) as session:
            yield session

    session_dependency = Annotated[Session, Depends(get_session, scope=scope)]

    @router.get("/{order_id}")
    def read(order_id: int, session: session_dependency) -> int:
        return session.scalar(SELECT)

    @router.get("/{order_id}/export")
    def export(order_id: int, session: session_dependency):
        session.execute(SELECT)
        return StreamingResponse(iter(["a", "b"]))

    @app.post("/mails")
    def send(background: BackgroundTasks, session: session_dependency) -> None:
        session.execute(SELECT)
        background.add_task(lambda: Session(engine).execute(SELECT).close())

    app.include_router(router)
    return app


@pytest.mark.parametrize("scope", ["function", "request"])
def test_fastapis_scope_decides_whether_a_connection_is_out_after_the_response(attached, scope):
    """By default a dependency ends after the response; the label is the route's template."""
    with TestClient(streaming_application(attached.engine, scope)) as client:
        for number in (1, 2):
            assert client.get(f"/orders/{number}").status_code == 200
            assert client.get(f"/orders/{number}/export").text == "ab"
    found = units(attached)
    assert set(found) == {"GET /orders/{order_id}", "GET /orders/{order_id}/export"}
    late = 2 if scope == "request" else 0
    assert [row.after_response for row in found.values()] == [late, late]
    assert attached.metrics.held_after_response == 2 * late


def test_a_background_task_that_checks_out_beside_its_request_is_nested(attached):
    """The request's session is still open where its dependency ends after the response."""
    with TestClient(streaming_application(attached.engine, "request")) as client:
        client.post("/mails")
    found = units(attached)["POST /mails"]
    assert attached.metrics.nested_checkouts == 1
    assert found.unit == "POST /mails"


def test_starlette_alone_and_its_mounts_have_templates_too(attached):
    """Also behind a BaseHTTPMiddleware, which runs the application in a task of its own."""

    def read(request):
        with attached.engine.connect() as connection:
            connection.execute(SELECT)
        return PlainTextResponse("")

    async def pass_on(request, call_next):
        return await call_next(request)

    app = Starlette(routes=[Mount("/v1", routes=[Route("/notes/{note_id}", read)])])
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    app.add_middleware(WatchHolds)
    with TestClient(app) as client:
        for number in (41, 42):
            assert client.get(f"/v1/notes/{number}").status_code == 200
    (row,) = attached.metrics.holds.rows()
    assert row.count == 2
    assert row.unit.endswith("/notes/{note_id}")


def test_metrics_have_the_lines_and_their_routes(database):
    """The answer to a scrape shows who held connections, and how long."""
    environ = {"DATABASE_URL": database.url(""), "POOLKIT_HOLD_SAMPLING": "1"}
    service = Database(settings=lambda: Settings.from_environ(environ))
    app = FastAPI(lifespan=service.lifespan)
    app.add_middleware(WatchHolds)

    @app.get("/orders")
    def read(session: Annotated[Session, Depends(service.session, scope="function")]) -> int:
        return session.scalar(SELECT)

    app.include_router(operations(service))
    with TestClient(app) as client:
        client.get("/orders")
        families = {
            family.name: family.samples
            for family in text_string_to_metric_families(client.get("/metrics").text)
        }
    (held,) = families["poolkit_hold_site_seconds"]
    assert held.labels["unit"] == "GET /orders"
    assert held.labels["where"].startswith("tests/integrations/test_holds_of_frameworks.py:")
    assert held.value > 0
    (count,) = [s for s in families["poolkit_pool_hold_seconds"] if s.name.endswith("_count")]
    assert count.value >= 1


# -- Flask -------------------------------------------------------------------------------------


def test_flask_has_the_rule_and_what_is_out_after_the_response(database, monkeypatch):
    """A stream that holds a session to its end is closed with the response, not after it."""
    monkeypatch.setenv("DATABASE_URL", database.url(driver=""))
    monkeypatch.setenv("POOLKIT_HOLD_SAMPLING", "1")
    app, kit, kept = Flask(__name__), Poolkit(), []
    kit.init_app(app)

    @app.get("/notes/<int:note_id>")
    def read(note_id):
        with kit.unit_of_work() as session:
            return str(session.scalar(SELECT))

    @app.get("/export")
    def export():
        def rows():
            with kit.unit_of_work() as session:
                yield str(session.scalar(SELECT))

        return stream_with_context(rows())

    @app.get("/forgotten")
    def forgotten():
        kept.append(kit.engine.connect())
        return ""

    with app.app_context():
        client = app.test_client()
        for path in ("/notes/1", "/notes/2", "/export", "/forgotten"):
            with client.get(path) as answer:
                assert answer.status_code == 200
        metrics = app.extensions["poolkit"].metrics["web"]
        found = {row.unit: row for row in metrics.holds.rows()}
        kept.pop().close()
        found |= {row.unit: row for row in metrics.holds.rows()}
        kit.engine.dispose()
    assert set(found) == {"GET /notes/<int:note_id>", "GET /export", "GET /forgotten"}
    assert {unit: row.after_response for unit, row in found.items() if row.after_response} == {
        "GET /forgotten": 1
    }
    assert metrics.nested_checkouts == 0


# -- Celery ------------------------------------------------------------------------------------


def test_a_task_that_keeps_its_connection_is_counted_and_its_line_named(database, caplog):
    """In a pool of threads too, where the next task finds another connection."""
    app = Celery("shop", set_as_current=False)
    environ = {"DATABASE_URL": database.url(), "POOLKIT_HOLD_SAMPLING": "1"}
    opened = CeleryDatabase(app, settings=lambda: Settings.from_environ(environ))
    opened._settings = opened._read()  # as in a worker
    kept = []

    @app.task(name="shop.keep", shared=False)
    def keep():
        kept.append(opened.engine.connect())

    @app.task(name="shop.count", shared=False)
    def count():
        with opened.session() as session:
            return session.scalar(SELECT)

    thread = threading.Thread(target=keep.apply)
    thread.start()
    thread.join()
    assert count.apply().get() == 1
    (error,) = [record for record in caplog.records if "still holds" in record.message]
    assert "shop.keep" in error.message
    assert "test_holds_of_frameworks.py:" in error.message
    assert opened.snapshot().held_after_response == 1
    kept.pop().close()
    assert {row.unit for row in opened.metrics.holds.rows()} == {"shop.keep", "shop.count"}
    opened.close()
