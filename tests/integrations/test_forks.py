"""Engines that are made before a fork: gunicorn, multiprocessing, Celery's prefork pool."""

import json
import sys
import urllib.request

import pytest
from processes import run_python, started, token, wait_until

pytestmark = pytest.mark.process

ENGINES = {
    "make_engine": "poolkit.make_engine(poolkit.Settings.from_environ())",
    "preset": "poolkit.preset('web').create_engine(os.environ['DATABASE_URL'])",
    "attach": "sqlalchemy.create_engine(os.environ['DATABASE_URL']); poolkit.attach(engine)",
}
WHO = "SELECT pg_backend_pid(), current_setting('application_name')"
APPLICATION = """
import json, os, sqlalchemy, poolkit

engine = ENGINE

def ask():
    with engine.connect() as connection:
        return list(connection.execute(sqlalchemy.text(WHO)).one())

at_import = ask()

def app(environ, start_response):
    start_response("200 OK", [("Connection", "close")])
    return [json.dumps([os.getpid(), *ask()]).encode()]
"""


def write_application(folder, engine):
    source = APPLICATION.replace("ENGINE", ENGINES[engine]).replace("WHO", repr(WHO))
    (folder / "application.py").write_text(source)


def serving(folder, database, *options):
    return started(
        *(sys.executable, "-m", "gunicorn", "application:app", "--bind", "127.0.0.1:0"),
        *("--workers", "2", *options),
        cwd=folder,
        environ={"DATABASE_URL": database.url(), "POOLKIT_ECHO": "false"},
        clean=True,
    )


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("make_engine", ["--preload"]),
        ("preset", ["--preload"]),
        ("attach", ["--preload"]),
        ("make_engine", []),
        ("make_engine", ["--preload", "--worker-class", "gthread", "--threads", "2"]),
    ],
    ids=["make_engine-preload", "preset-preload", "attach-preload", "no-preload", "threads"],
)
def test_each_worker_of_gunicorn_has_connections_of_its_own(tmp_path, database, engine, options):
    """No worker uses the connection that was opened before the fork, and each is named."""
    write_application(tmp_path, engine)
    with serving(tmp_path, database, *options) as server:
        address = server.wait_for(r"Listening at: (http://\S+)")[1]
        answers = {}

        def both_workers_answered():
            with urllib.request.urlopen(address, timeout=60) as answer:
                process, backend, name = json.load(answer)
            answers.setdefault(process, set()).add((backend, name))
            return len(answers) == 2

        server.wait_until(both_workers_answered)
        seen = [pair for pairs in answers.values() for pair in pairs]
        assert len({backend for backend, _ in seen}) == len(seen)
        for process, pairs in answers.items():
            assert all(name.endswith(f"-{process}") for _, name in pairs), answers
        # One of each worker, and one of the parent with `preload`; each worker's own without it.
        assert len(database.backends()) == (3 if "--preload" in options else 2)
        assert server.terminate() == 0
    database.wait_for_backends(0)


FORKING = """
import multiprocessing, os, sys
import sqlalchemy, poolkit
from poolkit import PoolMetrics, Settings, make_engine

metrics = PoolMetrics()
engine = make_engine(Settings.from_environ(), metrics)

def ask():
    with engine.connect() as connection:
        return connection.execute(sqlalchemy.text("SELECT pg_backend_pid()")).scalar_one()

def child(queue):
    before = metrics.snapshot(engine.pool)
    queue.put((ask(), before.opened, metrics.snapshot(engine.pool).opened))

first = ask()
forking = multiprocessing.get_context("fork")
queue = forking.Queue()
process = forking.Process(target=child, args=(queue,))
process.start()
theirs, before, after = queue.get(timeout=60)
process.join(60)
assert theirs != first
assert (before, after) == (0, 1), (before, after)
# The child has ended, and with it its copies of the connections.
assert ask() == first
assert metrics.snapshot(engine.pool).opened == 1
"""


def test_a_forked_process_begins_with_an_empty_pool_and_no_counts(database):
    """multiprocessing: the parent's connection survives the child's end."""
    answer = run_python(
        "-c",
        FORKING,
        environ={"DATABASE_URL": database.url(), "POOLKIT_ECHO": "false"},
        clean=True,
    )
    assert answer.returncode == 0, answer.stderr


BY_C_CODE = """
import ctypes, gc, os, sys, time
import sqlalchemy, poolkit

# An old connection that waits for a ping: each check has something to do.
web = poolkit.preset("web").replace(pool_size=1, max_overflow=0, ping_after_idle=0.01, echo=False)
engine = web.create_engine(os.environ["DATABASE_URL"])

def ask():
    with engine.connect() as connection:
        name = "current_setting('application_name')"
        row = connection.execute(sqlalchemy.text(f"SELECT pg_backend_pid(), {name}")).one()
    assert row[1].endswith(f"-{os.getpid()}"), row
    return row[0]

def in_child(work, fork):
    reading, writing = os.pipe()
    if not fork():
        os.close(reading)
        os.write(writing, str(work()).encode())
        os.close(writing)
        gc.collect()
        sys.exit()  # not _exit: what Python collects at its end must not end the parent's session
    os.close(writing)
    answer = os.read(reading, 1000).decode()
    assert os.wait()[1] == 0
    return int(answer)

def child():
    if os.environ["FIRST"] == "dispose":
        engine.dispose()
    theirs = ask()
    assert in_child(ask, os.fork) not in (first, theirs)
    assert ask() == theirs
    return theirs

first = ask()
time.sleep(0.02)
assert 0 < in_child(child, ctypes.PyDLL(None).fork) != first
assert ask() == first
"""


@pytest.mark.parametrize(
    ("driver", "then"), [("psycopg2", "ask"), ("psycopg2", "dispose"), ("psycopg", "ask")]
)
def test_a_fork_by_c_code_leaves_the_parents_connection_alone(database, driver, then):
    """Python's hooks do not run in such a child, nor are they needed; its children are safe, too."""
    answer = run_python(
        "-c",
        BY_C_CODE,
        environ={"DATABASE_URL": database.url(driver), "FIRST": then},
        clean=True,
    )
    assert answer.returncode == 0, answer.stderr


ASYNCHRONOUS = """
import asyncio, os, sqlalchemy
from poolkit import Settings, make_async_engine

engine = make_async_engine(Settings.from_environ(default_target="web_async"))

async def ask():
    async with engine.connect() as connection:
        return (await connection.execute(sqlalchemy.text("SELECT pg_backend_pid()"))).scalar_one()

with asyncio.Runner() as runner:
    first = runner.run(ask())
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            with asyncio.Runner() as other:
                os.write(writing, str(other.run(ask())).encode())
        finally:
            os._exit(0)
    os.close(writing)
    assert 0 < int(os.read(reading, 100)) != first
    os.wait()
    assert runner.run(ask()) == first
    runner.run(engine.dispose())
"""


def test_an_asynchronous_engine_is_empty_in_a_forked_process(database):
    """A child with an event loop of its own opens its own connections."""
    answer = run_python(
        "-c",
        ASYNCHRONOUS,
        environ={"DATABASE_URL": database.url("asyncpg"), "POOLKIT_ECHO": "false"},
        clean=True,
    )
    assert answer.returncode == 0, answer.stderr


TASKS = """
import os
from celery import Celery
from poolkit import Settings, make_engine
from sqlalchemy import text

app = Celery("tasks", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.task_default_queue = os.environ["QUEUE"]
engine = make_engine(Settings.from_environ(default_target="worker"))
with engine.connect() as connection:
    inherited = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()


@app.task
def ask():
    with engine.connect() as connection:
        backend = connection.execute(text("SELECT pg_sleep(0.2), pg_backend_pid()")).one()[1]
    return [os.getpid(), backend, inherited]
"""


@pytest.mark.slow
def test_each_child_of_celery_has_connections_of_its_own(tmp_path, database, broker):
    """The prefork pool forks after the import of the tasks' module."""
    (tmp_path / "tasks.py").write_text(TASKS)
    variables = {"DATABASE_URL": database.url(), "BROKER": broker.url, "QUEUE": token()}
    command = (sys.executable, "-m", "celery", "--app", "tasks")
    with started(
        *(*command, "worker", "--concurrency", "2", "--loglevel", "INFO"),
        cwd=tmp_path,
        environ=variables,
        clean=True,
    ) as worker:
        worker.wait_for(r"ready\.")
        # Until both have answered: on a busy machine one may be there much later.
        program = (
            "import json; from celery import group; from tasks import ask\n"
            "rows = []\n"
            "while len({row[0] for row in rows}) < 2:\n"
            "    rows += group(ask.s() for _ in range(6))().get(timeout=60)\n"
            "print(json.dumps(rows))"
        )
        answer = run_python("-c", program, cwd=tmp_path, environ=variables, clean=True)
        assert answer.returncode == 0, answer.stderr
        rows = json.loads(answer.stdout)
        assert len({process for process, _, _ in rows}) == 2
        assert len({(process, backend) for process, backend, _ in rows}) == 2
        assert not {backend for _, backend, _ in rows} & {inherited for _, _, inherited in rows}
    wait_until(lambda: not database.backends("worker:"), "the worker's connections to be closed")
