"""Leak detection: each kind of leak is logged once, with its line, and again when it comes back.

The line that a leak is expected at has the comment `# out`.
"""

import asyncio
import gc
import logging
import threading
from contextlib import asynccontextmanager, contextmanager

import pytest
from celery import Celery
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from processes import ROOT, run_python, wait_until
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from poolkit import attach
from poolkit.celery import Database as CeleryDatabase
from poolkit.config.settings import Settings
from poolkit.fastapi import WatchHolds

SELECT = text("SELECT 1")
THRESHOLD = 0.2  # s


@pytest.fixture
def reports(caplog):
    """Return the warnings (or what came back) of poolkit.holds, for one line or all, once there are some."""
    caplog.set_level(logging.INFO, logger="poolkit.holds")

    def read(level, where=""):
        def found():
            return [
                r
                for r in caplog.records
                if r.name == "poolkit.holds"
                and r.levelno == level
                and r.hold["where"].startswith(where)
            ]

        return wait_until(found, lambda: f"a report of a leak; found {caplog.text}")

    return read


def line_of(function_name, number=0):
    """Return the expected `where` of the comment `# out` in a function or method of this file."""
    file = "tests/config/test_leaks.py"
    inside, lines = False, []
    for index, line in enumerate((ROOT / file).read_text().splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith((f"def {function_name}(", f"async def {function_name}(")):
            inside = True
        elif inside and stripped.startswith(("def plant_", "async def plant_", "PLANTS")):
            break
        if inside and stripped.endswith("# out"):
            lines.append(f"{file}:{index}")
    return lines[number]


@contextmanager
def plant_forgotten_session(engine, _):
    session = Session(engine)
    session.execute(SELECT)  # out
    yield
    session.close()


@contextmanager
def plant_generator_dependency(engine, _):
    def get_session():
        with Session(engine) as session:
            session.execute(SELECT)  # out
            yield session

    generator = get_session()
    next(generator)
    yield
    generator.close()


@contextmanager
def plant_background_task(engine, _):
    app, done = FastAPI(), threading.Event()
    app.add_middleware(WatchHolds)

    def send_mail():
        with Session(engine) as session:
            session.execute(SELECT)  # out
            done.wait(60)

    @app.post("/orders")
    def create(background: BackgroundTasks):
        background.add_task(send_mail)

    with TestClient(app) as client:
        posting = threading.Thread(target=client.post, args=["/orders"])
        posting.start()
        yield
        done.set()
        posting.join()


@contextmanager
def plant_stream(engine, _):
    app, done = FastAPI(), threading.Event()
    app.add_middleware(WatchHolds)

    def get_session():
        with Session(engine) as session:
            yield session

    @app.get("/export")
    def export(session: Session = Depends(get_session)):  # noqa: B008, FAST002
        def rows():
            yield str(session.scalar(SELECT))  # out
            done.wait(60)

        return StreamingResponse(rows())

    with TestClient(app) as client:
        getting = threading.Thread(target=client.get, args=["/export"])
        getting.start()
        yield
        done.set()
        getting.join()


@contextmanager
def plant_nested_unit(engine, _):
    def audit():
        with engine.begin() as connection:  # out
            connection.execute(SELECT)
            yield

    with engine.begin() as connection:
        connection.execute(SELECT)
    auditing = audit()
    next(auditing)
    yield
    next(auditing, None)


@contextmanager
def plant_kept_exception(engine, _):
    def fail():
        session = Session(engine)
        session.execute(SELECT)  # out
        raise ValueError("the traceback keeps the frame, and the frame the session")

    kept = None
    try:
        fail()
    except ValueError as error:
        kept = error
    yield
    del kept
    gc.collect()


@contextmanager
def plant_thread(engine, _):
    done = threading.Event()

    def work():
        with engine.connect():  # out
            done.wait(60)

    thread = threading.Thread(target=work, name="importer")
    thread.start()
    yield
    done.set()
    thread.join()


@contextmanager
def plant_streamed_result(engine, _):
    options = {"stream_results": True, "yield_per": 10}
    connection = engine.connect().execution_options(**options)  # out
    result = connection.execute(text("SELECT generate_series(1, 1000)"))
    next(result)
    yield
    result.close()
    connection.close()


@contextmanager
def plant_raw_connection(engine, _):
    raw = engine.raw_connection()  # out
    yield
    raw.close()


@contextmanager
def plant_celery_task(engine, database):
    app = Celery("shop", set_as_current=False)
    environ = {"DATABASE_URL": database.url()}
    opened = CeleryDatabase(app, settings=lambda: Settings.from_environ(environ))
    kept = []

    @app.task(name="shop.count", shared=False)
    def count():
        kept.append(engine.connect())  # out

    count.apply()
    yield
    kept.pop().close()
    opened.close()


@asynccontextmanager
async def plant_asyncio_task(engine, _):
    done = asyncio.Event()

    async def poll():
        async with AsyncSession(engine) as session:
            await session.execute(SELECT)  # out
            await done.wait()

    task = asyncio.create_task(poll(), name="poller")
    yield
    done.set()
    await task


@asynccontextmanager
async def plant_asynchronous_dependency(engine, _):
    async def get_connection():
        async with engine.connect() as connection:  # out
            yield connection

    dependency = get_connection()
    await anext(dependency)
    yield
    await dependency.aclose()


UNITS = {
    "plant_background_task": "POST /orders",
    "plant_stream": "GET /export",
    "plant_celery_task": "shop.count",
}
HOLDERS = {"plant_thread": "thread importer", "plant_asyncio_task": "task poller"}
PLANTS = [
    *(plant_forgotten_session, plant_generator_dependency, plant_background_task, plant_stream),
    *(plant_nested_unit, plant_kept_exception, plant_thread, plant_streamed_result),
    *(plant_raw_connection, plant_celery_task),
]
ASYNC_PLANTS = [plant_asyncio_task, plant_asynchronous_dependency]


def check(plant, reports):
    name = plant.__name__
    # Of this line: on a machine that stands still, a short checkout beside it may be reported, too.
    (warning,) = reports(logging.WARNING, f"{line_of(name)} in ")
    assert warning.hold["unit"] == UNITS.get(name, "")
    assert warning.hold["holder"].startswith(HOLDERS.get(name, ("thread ", "task ")))
    assert warning.hold["held_s"] >= THRESHOLD
    # The whole stack, with the line at its end or above SQLAlchemy's frames.
    file, _, line = line_of(name).partition(":")
    assert f'{file}", line {line}, in ' in warning.getMessage()


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__.removeprefix("plant_"))
def test_a_leak_is_logged_once_with_its_line_and_again_when_it_comes_back(plant, database, reports):
    """The line is the application's own; the unit of work, and the thread or task, are named."""
    engine = create_engine(database.url())
    attach(engine, leak_detection_threshold=THRESHOLD)
    with plant(engine, database):
        check(plant, reports)
    assert len(reports(logging.INFO, f"{line_of(plant.__name__)} in ")) == 1
    check(plant, reports)  # still one
    engine.dispose()


@pytest.mark.parametrize(
    "plant", ASYNC_PLANTS, ids=lambda plant: plant.__name__.removeprefix("plant_")
)
def test_a_leak_under_asyncio_is_logged_too(plant, database, reports):
    """The frames of the coroutine, not only those of SQLAlchemy's greenlet."""

    async def work():
        engine = create_async_engine(database.url(driver="asyncpg"))
        attach(engine, leak_detection_threshold=THRESHOLD)
        async with plant(engine, database):
            await asyncio.to_thread(check, plant, reports)
        await asyncio.to_thread(reports, logging.INFO)
        await engine.dispose()

    asyncio.run(work())


def test_a_connection_that_is_never_closed_is_named(database, reports):
    """The garbage collector returns it in silence where the driver is synchronous."""
    engine = create_engine(database.url())
    attached = attach(engine, leak_detection_threshold=100)

    def forget():
        connection = engine.connect()  # out
        connection.execute(SELECT)

    forget()
    gc.collect()
    (warning,) = reports(logging.WARNING)
    assert warning.hold["where"].endswith("forget")
    assert attached.snapshot().leaked == 1
    engine.dispose()


def test_short_checkouts_are_no_leaks(database, reports, caplog):
    """Also many of them at once."""
    engine = create_engine(database.url())
    attached = attach(engine, leak_detection_threshold=60)
    for _ in range(20):
        with engine.connect() as connection:
            connection.execute(SELECT)
    assert not [record for record in caplog.records if record.name == "poolkit.holds"]
    assert attached.snapshot().leaked == 0
    assert attached.metrics.holds.holding() == []
    engine.dispose()


IN_A_CHILD = """
import logging, os, sys, threading, time
from sqlalchemy import create_engine
from poolkit import attach

logging.basicConfig(format="%(process)d %(message)s", stream=sys.stdout)
reported = threading.Event()
told = logging.Handler()
told.emit = lambda record: reported.set()
engine = create_engine(sys.argv[1])
attached = attach(engine, leak_detection_threshold=0.1)
engine.connect().close()  # starts the parent's thread
of_parent = engine.connect()
if pid := os.fork():
    os.waitpid(pid, 0)
else:
    logging.getLogger().addHandler(told)
    held = engine.connect()
    reported.wait(100)
    time.sleep(0.3)  # in which it would be reported again
    print(f"{os.getpid()} is the child, nested {attached.metrics.nested_checkouts}", flush=True)
    os._exit(0)
"""

WITHOUT_A_THREAD = """
import logging, resource, os, sys, time
from sqlalchemy import create_engine
from poolkit import attach

logging.basicConfig(format="%(message)s", stream=sys.stdout)
engine = create_engine(sys.argv[1])
attach(engine, leak_detection_threshold=0.1)
engine.dispose()
if os.getuid() == 0:
    os.setgid(54321)
    os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
with engine.connect():
    time.sleep(0.3)
"""


@pytest.mark.process
def test_a_forked_child_looks_for_its_own_leaks(database):
    """The thread of its parent does not run in it."""
    done = run_python("-c", IN_A_CHILD, database.url())
    lines = [line for line in done.stdout.splitlines() if line[:1].isdigit()]
    (last,) = [line for line in lines if " is the child" in line]
    child = last.split()[0]
    assert [line.split()[0] for line in lines if line != last].count(child) == 1
    assert last == f"{child} is the child, nested 0"


@pytest.mark.process
def test_without_a_thread_a_leak_is_reported_when_it_comes_back(database):
    """No error, and nothing else than the report."""
    done = run_python("-c", WITHOUT_A_THREAD, database.url())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("was out for more than 0.1 s") == 1
