"""Sessions of `poolkit.fastapi` as dependencies: when they commit, roll back, and let go."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import httpx2
import pytest
import sqlmodel
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from fastapi_application import CREATE_TABLE, Note
from processes import ROOT, wait_until
from sqlalchemy import Connection, exc, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from poolkit.config.session import unit_of_work
from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError, NotStarted
from poolkit.fastapi import AsyncDatabase, Database, add_problems

NEW_NOTE = insert(Note).values(text="x")


@pytest.fixture
def notes(database):
    """Give a database with the table."""
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(CREATE_TABLE)
        cursor.execute("GRANT ALL ON notes TO PUBLIC")
    return database


def count(notes):
    (row,) = notes.execute("SELECT count(*) FROM notes")
    return row["count"]


def states_of(notes):
    return {backend["state"] for backend in notes.backends("web")}


def settings_of(notes, target, **environ):
    variables = {
        "DATABASE_URL": notes.url(driver=""),
        "POOLKIT_TARGET": target,
        "POOLKIT_ECHO": "false",
        "POOLKIT_CONNECT_TIMEOUT": "60",
        "POOLKIT_STATEMENT_TIMEOUT": "90000",
    }
    return lambda: Settings.from_environ(variables | environ)


@pytest.fixture
def sync(notes):
    return Database(settings=settings_of(notes, "web"))


@pytest.fixture
def asynchronous(notes):
    return AsyncDatabase(settings=settings_of(notes, "web_async"))


def dependencies(sync, asynchronous):
    """Return each way to write, with its function that inserts a note."""
    return {
        "session": (sync, sync.session),
        "connection": (sync, sync.connection),
        "async session": (asynchronous, asynchronous.session),
        "async connection": (asynchronous, asynchronous.connection),
    }


WAYS = ("session", "connection", "async session", "async connection")


@pytest.fixture(params=WAYS)
def way(request, sync, asynchronous):
    """Give a database and its dependency, in each of the four ways."""
    return dependencies(sync, asynchronous)[request.param]


def application(database, dependency, *, end=lambda: None, scope="function"):
    """Return an application whose POST /notes inserts one, and then calls `end`."""
    app = FastAPI(lifespan=database.lifespan)
    add_problems(app)
    if isinstance(database, Database):

        @app.post("/notes")
        def create(work: Annotated[Any, Depends(dependency, scope=scope)]) -> None:
            work.execute(NEW_NOTE)
            end()

    else:

        @app.post("/notes")
        async def create_async(work: Annotated[Any, Depends(dependency, scope=scope)]) -> None:
            await work.execute(NEW_NOTE)
            end()

    return app


def test_the_commit_is_done_before_the_response_is_sent(way, notes):
    """A client that has its answer finds what it wrote, whoever asks."""
    seen = []

    class Peek:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            async def peek(message):
                if message["type"] == "http.response.start":
                    seen.append(await asyncio.to_thread(count, notes))
                await send(message)

            await self.app(scope, receive, peek)

    app = application(*way)
    app.add_middleware(Peek)
    with TestClient(app) as client:
        assert client.post("/notes").status_code == 200
    assert seen == [1]


def raise_http_error():
    raise HTTPException(409, "not now")


def test_an_exception_rolls_back(way, notes):
    """An error, here one for the client, leaves nothing written; the connection is free again."""
    database, dependency = way
    with TestClient(application(database, dependency, end=raise_http_error)) as client:
        for _ in range(3):
            assert client.post("/notes").status_code == 409
        assert database.snapshot().checked_out == 0
    assert count(notes) == 0


def test_a_commit_that_fails_is_not_answered_as_a_success(way, notes):
    """A constraint that PostgreSQL checks at the commit answers an error."""
    notes.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE SQLSTATE '57P05'; END$$"
    )
    notes.execute(
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON notes"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    database, dependency = way
    with TestClient(application(database, dependency)) as client:
        assert client.post("/notes").status_code == 503
        assert database.snapshot().checked_out == 0
    assert count(notes) == 0


def test_a_commit_after_the_response_is_reported(way):
    """Without scope="function" FastAPI commits too late, which a test or the log shows."""
    with (
        TestClient(application(*way, scope="request")) as client,
        pytest.raises(ConfigurationError, match='scope="function"'),
    ):
        client.post("/notes")


def test_an_endpoint_may_commit_by_itself(sync, notes):
    """As FastAPI's own pages write it: add, commit, refresh."""
    app = FastAPI(lifespan=sync.lifespan)

    @app.post("/notes")
    def create(session: Annotated[Session, Depends(sync.session, scope="function")]) -> int:
        note = Note(text="x")
        session.add(note)
        session.commit()
        session.refresh(note)
        return note.id

    with TestClient(app) as client:
        assert client.post("/notes").json() == 1
    assert count(notes) == 1


# -- reading --------------------------------------------------------------------------------


def test_a_session_that_reads_has_no_transaction(sync, asynchronous, notes):
    """Between its statements the server sees it idle, not idle in a transaction."""
    app = FastAPI()
    one = select(text("1"))

    def state():
        (backend,) = notes.backends("web")
        return backend["state"]

    @app.get("/session")
    def read(session: Annotated[Session, Depends(sync.read_session)]) -> str:
        return session.scalar(one) and state()

    @app.get("/connection")
    def core(connection: Annotated[Connection, Depends(sync.read_connection)]) -> str:
        return connection.scalar(one) and state()

    @app.get("/async session")
    async def read_async(
        session: Annotated[AsyncSession, Depends(asynchronous.read_session)],
    ) -> str:
        return await session.scalar(one) and state()

    @app.get("/async connection")
    async def core_async(
        connection: Annotated[AsyncConnection, Depends(asynchronous.read_connection)],
    ) -> str:
        return await connection.scalar(one) and state()

    for database, kind in ((sync, ""), (asynchronous, "async ")):
        app.router.lifespan_context = database.lifespan
        with TestClient(app) as client:
            for path in ("session", "connection"):
                assert client.get(f"/{kind}{path}").json() == "idle"
            assert database.snapshot().checked_out == 0
        notes.wait_for_backends(0)


def test_a_session_that_reads_refuses_to_write(sync, asynchronous, notes):
    """A flush would be committed at once, so it raises and says what to use."""
    app = FastAPI()

    @app.post("/sync")
    def write(session: Annotated[Session, Depends(sync.read_session)]) -> None:
        session.add(Note(text="x"))
        session.flush()

    @app.post("/async")
    async def write_async(
        session: Annotated[AsyncSession, Depends(asynchronous.read_session)],
    ) -> None:
        session.add(Note(text="x"))
        await session.flush()

    for path, database in (("/sync", sync), ("/async", asynchronous)):
        app.router.lifespan_context = database.lifespan
        with (
            TestClient(app) as client,
            pytest.raises(exc.InvalidRequestError, match="read_session reads only"),
        ):
            client.post(path)
    assert count(notes) == 0


def test_a_stream_may_read_while_it_is_sent(sync, notes):
    """Without scope="function" a session that reads stays open until the last byte is sent."""
    app = FastAPI(lifespan=sync.lifespan)

    @app.get("/numbers")
    def numbers(
        session: Annotated[Session, Depends(sync.read_session, scope="request")],
    ) -> StreamingResponse:
        found = session.scalars(text("SELECT generate_series(1, 3)"))
        return StreamingResponse(f"{number}\n" for number in found)

    with TestClient(app) as client:
        assert client.get("/numbers").text == "1\n2\n3\n"
        assert sync.snapshot().checked_out == 0


# -- what outlives a request ----------------------------------------------------------------


def test_a_session_cannot_be_used_by_a_background_task(sync, notes):
    """It is closed for good, so it takes no connection that nothing would return."""
    app = FastAPI(lifespan=sync.lifespan)
    failures = []

    def use(session):
        try:
            session.execute(NEW_NOTE)
        except exc.InvalidRequestError as error:
            failures.append(error)
        with unit_of_work(sync.engine) as connection:
            connection.execute(NEW_NOTE)

    @app.post("/notes")
    def create(
        session: Annotated[Session, Depends(sync.session, scope="function")],
        tasks: BackgroundTasks,
    ) -> None:
        tasks.add_task(use, session)

    with TestClient(app) as client:
        assert client.post("/notes").status_code == 200
        assert len(failures) == 1
        assert sync.snapshot().checked_out == 0
    assert count(notes) == 1


@pytest.mark.parametrize("name", WAYS)
def test_a_cancelled_request_gives_its_connection_back(name, sync, asynchronous, notes):
    """A client that goes away under BaseHTTPMiddleware costs no connection.

    A coroutine ends at once and writes nothing. A thread cannot be cancelled: it ends its work.
    """
    database, dependency = dependencies(sync, asynchronous)[name]
    app = FastAPI(lifespan=database.lifespan)

    async def passing(request, call_next):
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    statements = (NEW_NOTE, text("SELECT pg_advisory_lock(1), pg_advisory_unlock(1)"))
    if isinstance(database, Database):

        @app.post("/notes")
        def create(work: Annotated[Any, Depends(dependency, scope="function")]) -> None:
            for statement in statements:
                work.execute(statement)

    else:

        @app.post("/notes")
        async def create_async(work: Annotated[Any, Depends(dependency, scope="function")]) -> None:
            for statement in statements:
                await work.execute(statement)

    async def cancel_and_look():
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            async with anyio.create_task_group() as requests:
                requests.start_soon(client.post, "/notes")
                await asyncio.to_thread(notes.wait_for_lock)
                requests.cancel_scope.cancel()
                if isinstance(database, Database):
                    # A thread that waits for the lock cannot be cancelled; its statement ends.
                    await asyncio.to_thread(unlock)
            # A coroutine has ended although the lock is not free.
            await asyncio.to_thread(unlock)
            await asyncio.to_thread(wait_until, lambda: database.snapshot().checked_out == 0)
            # The backend of a connection that was given up takes a moment to end.
            await asyncio.to_thread(wait_until, lambda: states_of(notes) <= {"idle"})

    def unlock():
        locked.execute("SELECT pg_advisory_unlock_all()")

    with notes.connect() as connection, connection.cursor() as locked:
        locked.execute("SELECT pg_advisory_lock(1)")
        asyncio.run(cancel_and_look())
    assert isinstance(database, Database) or count(notes) == 0


# -- lifespans, tests, several databases ----------------------------------------------------


def test_a_lifespan_of_one_s_own_contains_the_database_s(sync):
    """It may use the engine, before the first request and after the last."""
    seen = []

    @asynccontextmanager
    async def lifespan(app):
        async with sync.lifespan(app):
            seen.append(sync.engine.dialect.name)
            yield {"own": "state"}

    with TestClient(FastAPI(lifespan=lifespan)) as client:
        assert client.app_state["own"] == "state"
    assert seen == ["postgresql"]


def test_without_its_lifespan_a_database_says_what_is_missing(way):
    """TestClient without `with` starts no lifespan; the error says how it does."""
    with pytest.raises(NotStarted, match="with TestClient"):
        TestClient(application(*way)).post("/notes")


def test_an_overridden_dependency_needs_no_lifespan(way, notes):
    """A test may give another session, as FastAPI's pages show it, and no engine is made."""
    database, dependency = way
    executed = []

    class Fake:
        def execute(self, statement):
            executed.append(statement)
            return asyncio.sleep(0) if isinstance(database, AsyncDatabase) else None

    app = application(database, dependency)
    app.dependency_overrides[dependency] = Fake
    assert TestClient(app).post("/notes").status_code == 200
    assert executed == [NEW_NOTE]


def test_an_application_has_several_databases(notes, administration):
    """Each has an engine, sessions and metrics of its own; routers use what they need."""
    with administration.new_database("template0") as other:
        main = Database(settings=settings_of(notes, "web"))
        reports = AsyncDatabase(settings=settings_of(other, "web_async"), name="reports")
        router = APIRouter()

        @router.get("/main")
        def ask_main(session: Annotated[Session, Depends(main.read_session)]) -> Any:
            return session.scalar(text("SELECT current_database()"))

        @router.get("/reports")
        async def ask_reports(
            session: Annotated[AsyncSession, Depends(reports.read_session)],
        ) -> Any:
            return await session.scalar(text("SELECT current_database()"))

        @asynccontextmanager
        async def lifespan(app):
            async with main.lifespan(app), reports.lifespan(app):
                yield

        app = FastAPI(lifespan=lifespan)
        app.include_router(router, prefix="/of")
        with TestClient(app) as client:
            assert client.get("/of/main").json() == notes.name
            assert client.get("/of/reports").json() == other.name
            assert (main.name, reports.name) == ("web", "reports")


def test_a_database_opened_twice_is_refused(sync):
    """Two applications in one process each need a Database of their own."""
    with (
        TestClient(FastAPI(lifespan=sync.lifespan)),
        pytest.raises(ConfigurationError, match="open already"),
        TestClient(FastAPI(lifespan=sync.lifespan)),
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "target", "wanted"),
    [(Database, "web_async", "AsyncDatabase"), (AsyncDatabase, "web", "Database")],
)
def test_a_target_of_the_other_kind_is_refused(notes, kind, target, wanted):
    """The error names the variable, and the class that the target needs."""
    app = FastAPI(lifespan=kind(settings=settings_of(notes, target)).lifespan)
    with (
        pytest.raises(ConfigurationError, match=f"POOLKIT_TARGET={target} needs {wanted}"),
        TestClient(app),
    ):
        pass


def test_the_pool_is_closed_with_the_lifespan(way, notes):
    """With the application's end its connections end, while the process still lives."""
    database, _ = way
    with TestClient(application(*way)) as client:
        assert client.post("/notes").status_code == 200
        assert database.snapshot().opened == 1
    notes.wait_for_backends(0, "web")
    assert notes.abandoned() == 0


def test_the_example_of_the_page_works(notes, monkeypatch):
    """docs/integrations/fastapi.md begins with an application that runs as it stands."""
    page = (ROOT / "docs/integrations/fastapi.md").read_text()
    example = re.search(r'```python title="app.py"\n(.*?)```', page, re.DOTALL)[1]
    variables: dict[str, Any] = {"__name__": "app"}
    exec(compile(example, "app.py", "exec"), variables)
    notes.execute("CREATE TABLE heroes (id serial PRIMARY KEY, name text)")
    notes.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC")
    notes.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC")
    monkeypatch.setenv("DATABASE_URL", notes.url(driver=""))
    monkeypatch.setenv("POOLKIT_ECHO", "false")
    with TestClient(variables["app"]) as client:
        hero = {"id": 1, "name": "Deadpond"}
        assert client.post("/heroes", json={"name": "Deadpond"}).json() == hero
        assert client.get("/heroes/1").json() == hero
        assert client.get("/heroes/2").json()["detail"] == "there is no such hero"
        assert client.get("/readyz").status_code == 200


def test_sessions_are_of_the_class_that_was_asked_for(notes):
    """SQLModel's sessions have `exec`, and so they do here, for reading and for writing."""
    database = Database(
        settings=settings_of(notes, "web"), sessions=sessionmaker(class_=sqlmodel.Session)
    )
    app = FastAPI(lifespan=database.lifespan)

    @app.get("/both")
    def ask(
        session: Annotated[sqlmodel.Session, Depends(database.session, scope="function")],
        reader: Annotated[sqlmodel.Session, Depends(database.read_session)],
    ) -> list[int]:
        return [each.exec(sqlmodel.select(1)).one() for each in (session, reader)]

    with TestClient(app) as client:
        assert client.get("/both").json() == [1, 1]


def test_starlette_alone_has_sessions(sync, notes):
    """Without FastAPI the dependency is a context manager."""
    session_of = asynccontextmanager(sync.session)

    async def create(request):
        async with session_of(request) as session:
            await anyio.to_thread.run_sync(session.execute, NEW_NOTE)
        return PlainTextResponse("ok")

    routes = [Route("/notes", create, methods=["POST"])]
    app = Starlette(routes=routes, lifespan=sync.lifespan)
    add_problems(app)
    with TestClient(app) as client:
        assert client.post("/notes").status_code == 200
        assert client.get("/nothing").headers["content-type"] == "application/problem+json"
    assert count(notes) == 1


@pytest.mark.parametrize("way", WAYS)
def test_beyond_max_waiting_a_request_is_503_at_once(notes, way):
    """The one that holds the connection and the one that waits are answered as usual."""
    small = {"POOLKIT_POOL_SIZE": "1", "POOLKIT_MAX_OVERFLOW": "0", "POOLKIT_MAX_WAITING": "1"}
    small["POOLKIT_POOL_TIMEOUT"] = "60"
    found = dependencies(
        Database(settings=settings_of(notes, "web", **small)),
        AsyncDatabase(settings=settings_of(notes, "web_async", **small)),
    )
    database, dependency = found[way]
    with (
        TestClient(application(database, dependency)) as client,
        ThreadPoolExecutor(2) as threads,
        notes.connect() as other,
    ):
        cursor = other.cursor()
        cursor.execute("BEGIN; LOCK TABLE notes")
        holds = threads.submit(client.post, "/notes")
        wait_until(lambda: database.snapshot().checkouts == 1, 30)
        waits = threads.submit(client.post, "/notes")
        wait_until(lambda: database.snapshot().waiting == 1, 30)
        refused = client.post("/notes")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert database.snapshot().shed == 1
        cursor.execute("ROLLBACK")
        assert holds.result(60).status_code == waits.result(60).status_code == 200
