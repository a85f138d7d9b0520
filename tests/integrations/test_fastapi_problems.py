"""Errors, limits and operations of a FastAPI application on poolkit."""

import asyncio
import json
import logging
from typing import Annotated, Literal

import jsonschema
import pytest
from fastapi import Cookie, FastAPI, Header, HTTPException, Request
from fastapi.responses import Response
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import create_engine, exc, text
from sqlalchemy.pool import QueuePool

from poolkit.config.settings import Settings
from poolkit.errors import PoolExhausted
from poolkit.fastapi import (
    Database,
    RequestLimits,
    add_problems,
    operations,
    problem_response,
    problem_responses,
)
from poolkit.problems import MEDIA_TYPE, PROBLEM_SCHEMA, status_problem


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=3)
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None


class Unknown(Exception):
    pass


@pytest.fixture
def app():
    app = FastAPI(redirect_slashes=False)
    add_problems(app)

    @app.post("/orders")
    async def order(
        order: Order,
        copies: int = 1,
        x_token: Annotated[int, Header()] = 0,
        crumb: Annotated[int, Cookie()] = 0,
    ) -> None: ...

    @app.get("/orders/{number}", responses=problem_responses(404))
    async def read_order(number: int) -> None:
        raise Unknown

    @app.exception_handler(Unknown)
    async def on_unknown(request: Request, error: Unknown) -> Response:
        return problem_response(status_problem(404, "no such order"))

    return app


@pytest.fixture
def client(app):
    return TestClient(app, raise_server_exceptions=False)


def problem_in(answer, status):
    assert (answer.status_code, answer.headers["content-type"]) == (status, MEDIA_TYPE)
    jsonschema.validate(answer.json(), PROBLEM_SCHEMA)
    assert answer.json()["status"] == status
    return answer.json()


def raising(app, error):
    """Add a route that raises, and return its path."""

    @app.get("/raise")
    async def fail() -> None:
        raise error

    return "/raise"


# -- failures of pool and database ----------------------------------------------------------


def full_pool():
    """Return the error of a pool of SQLAlchemy's own whose one connection is in use."""
    engine = create_engine(
        "sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0
    )
    try:
        with engine.connect():
            engine.connect()
    except exc.TimeoutError as error:
        return error
    finally:
        engine.dispose()


def test_an_exhausted_pool_is_a_503_and_a_line_in_the_log(app, client, caplog):
    """The client learns when to try again; the log what happened and where."""
    with caplog.at_level(logging.WARNING, logger="poolkit.fastapi"):
        answer = client.get(raising(app, PoolExhausted("all 7 are in use on db.internal")))
    problem = problem_in(answer, 503)
    assert answer.headers["retry-after"] == "1"
    assert "db.internal" not in problem["detail"]
    assert "GET /raise: PoolExhausted: all 7 are in use on db.internal" in caplog.text


def test_an_engine_of_one_s_own_has_the_same_answers(app, client):
    """SQLAlchemy's own TimeoutError is a 503 too."""
    problem_in(client.get(raising(app, full_pool())), 503)


def test_a_broken_constraint_is_a_500(app, client):
    """An error of the program is none of the pool, and its text stays inside."""
    engine = create_engine("sqlite://")
    twice = text("INSERT INTO t VALUES ('hunter2'), ('hunter2')")
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE t (secret TEXT UNIQUE)"))
        with pytest.raises(exc.IntegrityError) as broken:
            connection.execute(twice)
    engine.dispose()
    answer = client.get(raising(app, broken.value))
    assert "hunter2" not in answer.text
    problem_in(answer, 500)


def test_a_bug_is_a_500_without_its_text_and_the_server_logs_it(app, client):
    """The answer gives nothing away; the exception goes on to the server."""
    answer = client.get(raising(app, ZeroDivisionError("hunter2")))
    problem_in(answer, 500)
    assert "hunter2" not in answer.text
    with pytest.raises(ZeroDivisionError):
        TestClient(app).get("/raise")


# -- the client's errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "options", "place"),
    [
        ("/orders", {"json": {}}, {"pointer": "#/name"}),
        ("/orders", {"json": {"name": "long"}}, {"pointer": "#/name"}),
        ("/orders", {"json": {"name": "x", "a/b": 1}}, {"pointer": "#/a~1b"}),
        ("/orders?copies=x", {"json": {"name": "x"}}, {"parameter": "copies"}),
        ("/orders", {"json": {"name": "x"}, "headers": {"X-Token": "x"}}, {"header": "x-token"}),
        (
            "/orders",
            {"json": {"name": "x"}, "headers": {"Cookie": "crumb=x"}},
            {"parameter": "crumb"},
        ),
    ],
)
def test_an_invalid_request_names_the_place(client, path, options, place):
    """A member has a JSON Pointer; a parameter and a header have their names."""
    problem = problem_in(client.post(path, **options), 422)
    assert problem["type"] == "/problems/invalid-input"
    (error,) = problem["errors"]
    assert {name: value for name, value in error.items() if name != "detail"} == place


@pytest.mark.parametrize(
    "body",
    [
        {"name": "hunter2"},
        {"name": "x", "pet": {"kind": "hunter2"}},
        {"name": ["hunter2"]},
        {"name": "\ud800hunter2"},
        {"\ud800": "hunter2"},
        "hunter2",
    ],
)
def test_an_answer_repeats_no_value(client, body):
    """Pydantic's own errors hold the input, the answer does not; lone surrogates break nothing."""
    headers = {"content-type": "application/json"}
    answer = client.post("/orders", content=json.dumps(body), headers=headers)
    assert "hunter2" not in answer.text
    problem_in(answer, 422)


def test_malformed_json_is_a_400_that_says_where(client):
    """The place is a character of the body."""
    headers = {"content-type": "application/json"}
    problem = problem_in(client.post("/orders", content=b'{"name": ', headers=headers), 400)
    assert problem["type"] == "/problems/malformed-json"
    assert "character 9" in problem["detail"]


def test_another_content_type_is_a_415(client):
    """A form where JSON is wanted says what to send."""
    assert (
        "application/json" in problem_in(client.post("/orders", data={"name": "x"}), 415)["detail"]
    )


def test_a_missing_path_is_a_404_and_a_wrong_method_a_405_with_all_methods(client):
    """Allow lists the methods of every route at the path."""
    assert "/nothing" not in problem_in(client.get("/nothing"), 404)["detail"]
    answer = client.delete("/orders")
    problem_in(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_a_handler_of_one_s_own_goes_first(client):
    """An exception of the domain has the answer that the application gives it."""
    assert problem_in(client.get("/orders/1"), 404)["detail"] == "no such order"


@pytest.mark.parametrize(
    ("error", "status", "members"),
    [
        (HTTPException(404, "no order 7"), 404, {"detail": "no order 7", "title": "Not Found"}),
        (HTTPException(404), 404, {"detail": "there is nothing at this path"}),
        (
            HTTPException(401, headers={"WWW-Authenticate": "Bearer"}),
            401,
            {"title": "Unauthorized"},
        ),
        (HTTPException(409, {"code": 7, "status": 200}), 409, {"code": 7, "status": 409}),
        (HTTPException(400, ["a", "b"]), 400, {"content": ["a", "b"]}),
    ],
)
def test_http_exceptions_keep_status_detail_and_headers(app, client, error, status, members):
    """FastAPI takes any JSON as detail; what is no text becomes members of the problem."""
    answer = client.get(raising(app, error))
    problem = problem_in(answer, status)
    assert members.items() <= problem.items()
    for name, value in (error.headers or {}).items():
        assert answer.headers[name] == value


def test_an_http_exception_that_is_no_error_has_no_body(app, client):
    """304 and its like are not problems."""
    answer = client.get(raising(app, HTTPException(304, headers={"ETag": '"1"'})))
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", '"1"')


def test_openapi_shows_the_problems_that_are_answered(app):
    """FastAPI's own schema of a 422, which is never answered, is not shown."""
    document = app.openapi()
    shown = document["paths"]["/orders"]["post"]["responses"]["422"]["content"]
    assert shown[MEDIA_TYPE]["schema"]["title"] == "Problem"
    assert MEDIA_TYPE in document["paths"]["/orders/{number}"]["get"]["responses"]["404"]["content"]
    assert "HTTPValidationError" not in json.dumps(document)
    assert app.openapi() == document


# -- limits ---------------------------------------------------------------------------------


@pytest.fixture
def limited():
    app = FastAPI()
    add_problems(app)
    app.add_middleware(RequestLimits, body=10, headers=1_000)

    @app.post("/lengths")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.post("/orders")
    async def order(order: Order) -> None: ...

    return TestClient(app)


def pieces(count):
    for _ in range(count):
        yield b"x"


@pytest.mark.parametrize("path", ["/lengths", "/orders"])
@pytest.mark.parametrize("length", [10, 11])
@pytest.mark.parametrize("is_declared", [True, False])
def test_a_body_is_limited(limited, path, length, is_declared):
    """The limit holds for a declared length and for one that is not known beforehand."""
    content = b"x" * length if is_declared else pieces(length)
    answer = limited.post(path, content=content)
    assert (answer.status_code == 413) == (length > 10)
    if length > 10:
        assert "10 bytes" in problem_in(answer, 413)["detail"]


def test_headers_are_limited(limited):
    """Their sum counts, so many small ones are no way around it."""
    many = {f"x-{number}": "x" * 20 for number in range(40)}
    problem_in(limited.post("/lengths", headers=many), 431)
    assert limited.post("/lengths", headers={"x-1": "x"}).status_code == 200


# -- operations -----------------------------------------------------------------------------


def settings():
    return Settings.from_environ(
        {
            "DATABASE_URL": "postgresql://u:p@127.0.0.1:1/x",
            "POOLKIT_ECHO": "false",
            "POOLKIT_CONNECT_TIMEOUT": "1",
        }
    )


def test_operations_need_neither_problems_nor_a_database():
    """Without a database the process is healthy and not ready, and its metrics are there."""
    databases = [Database(settings=settings, name=name) for name in ("main", "reports")]
    app = FastAPI()
    app.include_router(operations(*databases), prefix="/ops")

    async def ask():
        async with databases[0].lifespan(app), databases[1].lifespan(app):
            client = TestClient(app)
            return [
                await asyncio.to_thread(client.get, f"/ops{path}")
                for path in ("/healthz", "/metrics")
            ]

    health, metrics = asyncio.run(ask())
    assert (health.status_code, health.text) == (200, "ok\n")
    assert 'poolkit_pool_size{target="reports"} 5.0' in metrics.text


def test_readiness_asks_every_database():
    """One that is missing is enough for a 503, as a problem document."""
    database = Database(settings=settings)
    app = FastAPI(lifespan=database.lifespan)
    app.include_router(operations(database))
    with TestClient(app) as client:
        answer = client.get("/readyz")
    problem_in(answer, 503)
    assert answer.headers["retry-after"] == "5"
