"""The shim in a target's process: it reads engines, and replaces their pools if told to."""

import json
import sys
from textwrap import dedent

import pytest
from processes import run_python

from poolkit.compare.run.hold_rows import read_holds
from poolkit.shim import records

pytestmark = pytest.mark.process
URL = "postgresql+psycopg2://u:secret@127.0.0.1:1/x"
ASYNC_URL = "postgresql+asyncpg://u:secret@127.0.0.1:1/x"


@pytest.fixture
def in_target(tmp_path):
    """A function that runs code as a target's process, and returns its output and the records."""
    (tmp_path / "records").mkdir()

    def execute(code, pool="now", *, per_task=False, path=(), environment="prod", **variables):
        environ = records.environ(tmp_path / "records", pool, environment, per_task=per_task)
        environ |= variables
        environ["PYTHONPATH"] = ":".join([str(records.FOLDER), *map(str, path)])
        answer = run_python("-c", dedent(code), environ=environ)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.strip(), records.read_records(tmp_path / "records")

    return execute


WAYS = {
    "create_engine": f"""
        from sqlalchemy import create_engine
        engine = create_engine({URL!r}, pool_size=3, max_overflow=4)
        """,
    "engine_from_config": f"""
        from sqlalchemy import engine_from_config
        options = {{"x.url": {URL!r}, "x.pool_size": "3", "x.max_overflow": "4"}}
        engine = engine_from_config(options, "x.")
        """,
    "create_async_engine": f"""
        from sqlalchemy.ext.asyncio import create_async_engine
        engine = create_async_engine({ASYNC_URL!r}, pool_size=3, max_overflow=4).sync_engine
        """,
    "SQLModel": f"""
        from sqlmodel import create_engine
        engine = create_engine({URL!r}, pool_size=3, max_overflow=4)
        """,
    "Flask-SQLAlchemy": f"""
        from flask import Flask
        from flask_sqlalchemy import SQLAlchemy
        app = Flask("x")
        app.config["SQLALCHEMY_DATABASE_URI"] = {URL!r}
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {{"pool_size": 3, "max_overflow": 4}}
        database = SQLAlchemy(app)
        with app.app_context():
            engine = database.engine
        """,
}
SHOW = "\nprint(engine.pool.size(), engine.pool._max_overflow)\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("pool", "numbers"), [("now", "3 4"), ("web", "20 10"), ("lambda_warm", "1 0")]
)
def test_every_way_to_an_engine_leads_through_the_shim(in_target, way, pool, numbers):
    """`now` leaves the numbers of the application, a preset replaces them, and the record has them."""
    output, (record,) = in_target(dedent(WAYS[way]) + SHOW, pool)
    assert output == numbers
    (engine,) = record.engines
    assert engine.described.split()[1] == numbers.replace(" ", "+")
    assert engine.most == sum(map(int, numbers.split()))


@pytest.mark.parametrize(
    ("pool", "described"), [("now", "QueuePool 20+10"), ("worker", "QueuePool 5+5")]
)
def test_an_engine_of_poolkit_s_own_is_read_and_replaced_too(in_target, pool, described):
    """Its settings refuse unknown variables that begin with POOLKIT_; those of the shim do not."""
    code = """
        import os
        os.environ |= {
            "DATABASE_URL": "postgresql://u:p@127.0.0.1:1/x",
            "POOLKIT_TARGET": "web",
            "POOLKIT_ENVIRONMENT": "prod",
        }
        from poolkit import Settings, make_engine
        engine = make_engine(Settings.from_environ())
        """
    _, (record,) = in_target(code, pool)
    assert [engine.described for engine in record.engines] == [described]


def test_a_null_pool_keeps_nothing(in_target):
    """The preset of a plain function replaces the application's pool by NullPool, async ones too."""
    _, (record,) = in_target(WAYS["create_async_engine"], "lambda")
    (engine,) = record.engines
    assert (engine.pool, engine.is_null, engine.most) == ("NullPool", True, None)


def test_a_worker_s_child_gets_one_connection(in_target):
    """A prefork child runs one task at a time, so the worker's preset is 1+0 there."""
    _, (record,) = in_target(WAYS["create_engine"], "worker", per_task=True)
    assert record.engines[0].described == "QueuePool 1+0"


def test_the_application_s_driver_and_arguments_stay(in_target):
    """A preset decides about the pool; driver, echo and isolation level are the application's."""
    code = """
        from sqlalchemy import create_engine
        url = "postgresql+psycopg://u:p@127.0.0.1:1/x"
        engine = create_engine(url, echo="debug", isolation_level="AUTOCOMMIT")
        print(engine.dialect.driver, engine.echo, engine.dialect._on_connect_isolation_level)
        """
    output, _ = in_target(code, "web")
    assert output.endswith("psycopg debug AUTOCOMMIT")


def test_other_databases_are_left_alone(in_target):
    """SQLite beside it keeps its pool, and is no engine of the database that is measured."""
    code = """
        from sqlalchemy import create_engine
        print(type(create_engine("sqlite://").pool).__name__)
        """
    output, (record,) = in_target(code, "web")
    assert output == "SingletonThreadPool"
    ceiling = records.ceiling_of([record], alive={record.pid}, ports={1})
    assert ceiling.connections == 0


def test_a_fork_has_a_record_of_its_own(in_target):
    """The children of a master inherit its engine, and each may fill a pool of that size."""
    code = dedent(WAYS["create_engine"]) + dedent(
        """
        import os
        for _ in range(2):
            if not os.fork():
                os._exit(0)
        os.wait(), os.wait()
        """
    )
    _, found = in_target(code)
    assert sorted(record.inherited for record in found) == [False, True, True]
    ceiling = records.ceiling_of(found, alive={record.pid for record in found}, ports={1})
    assert ceiling == (14, "2 processes x QueuePool 3+4, read from its engines")


def test_a_driver_s_own_pool_is_noted(in_target):
    """An application may use asyncpg's pool in place of SQLAlchemy's."""
    code = f"""
        import asyncio, asyncpg
        async def main():
            return asyncpg.create_pool({ASYNC_URL.replace("+asyncpg", "")!r}, min_size=1, max_size=7)
        asyncio.run(main())
        """
    _, (record,) = in_target(code)
    ceiling = records.ceiling_of([record], alive={record.pid}, ports={1})
    assert ceiling == (7, "1 process x asyncpg 7, read from its engines")


def test_django_is_noted(in_target):
    """It has no engine; without the option `pool` it keeps a connection in each thread."""
    _, (record,) = in_target("import django.db")
    assert (record.has_django, record.engines) == (True, ())


def test_the_sitecustomize_that_it_hides_runs_too(in_target, tmp_path):
    """An interpreter or a tool may have one of its own."""
    (tmp_path / "sitecustomize.py").write_text("print('the other one')\n")
    output, _ = in_target("", path=[tmp_path])
    assert output == "the other one"


def test_without_its_variables_it_does_nothing(tmp_path):
    """A process that inherits the path alone is not touched."""
    code = f"from sqlalchemy import create_engine\n{dedent(WAYS['create_engine'])}{SHOW}"
    answer = run_python(
        "-c", code, environ={"PYTHONPATH": str(records.FOLDER)}, clean=True, cwd=tmp_path
    )
    assert (answer.stdout.strip(), answer.stderr) == ("3 4", "")


def test_a_record_has_no_password(in_target, tmp_path):
    """The record stays in the run's folder, so it names host and port alone."""
    _, (record,) = in_target(WAYS["create_engine"])
    (file,) = (tmp_path / "records").glob("*.json")
    assert "secret" not in file.read_text()
    assert json.loads(file.read_text())["pid"] == record.pid != sys.maxsize


def test_an_engine_for_each_request_has_no_ceiling(in_target):
    """Each one has a pool of its own, however many of them live at a moment."""
    code = f"""
        from sqlalchemy import create_engine
        for _ in range(60):
            create_engine({URL!r}).dispose()
        """
    _, (record,) = in_target(code)
    ceiling = records.ceiling_of([record], alive={record.pid}, ports={1})
    assert ceiling.connections is None
    assert "it makes engines all the time" in ceiling.reason


def test_a_folder_that_is_gone_does_not_stop_the_target(in_target, tmp_path):
    """The record is lost, and the application runs on."""
    code = f"import shutil\nshutil.rmtree({str(tmp_path / 'records')!r})\n"
    output, found = in_target(code + dedent(WAYS["create_engine"]) + SHOW)
    assert (output, found) == ("3 4", [])


HELD = {
    "QueuePool": """
        engine = create_engine(url)
        def hold():
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                time.sleep(0.1)
        hold()
        engine.dispose()  # the next pool is watched too
        hold()
        """,
    "NullPool": """
        from sqlalchemy.pool import NullPool
        engine = create_engine(url, poolclass=NullPool)
        def hold():
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                time.sleep(0.1)
        hold()
        hold()
        """,
    "asyncpg": """
        import asyncio
        from sqlalchemy.ext.asyncio import create_async_engine
        engine = create_async_engine(url.replace("psycopg2", "asyncpg"))
        async def hold():
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
                await asyncio.sleep(0.1)
        async def main():
            await hold()
            await hold()
            await engine.dispose()
        asyncio.run(main())
        """,
    "GET /orders/{number}": """
        from fastapi import FastAPI
        from fastapi.testclient import TestClient
        engine = create_engine(url)
        app = FastAPI()
        @app.get("/orders/{number}")
        def hold(number: int):
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                time.sleep(0.1)
        with TestClient(app) as client:
            client.get("/orders/1"), client.get("/orders/2")
        """,
    "GET /orders/<int:number>": """
        from flask import Flask
        engine = create_engine(url)
        app = Flask("x")
        @app.get("/orders/<int:number>")
        def hold(number):
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                time.sleep(0.1)
            return ""
        app.test_client().get("/orders/1"), app.test_client().get("/orders/2")
        """,
    "reports.hold": """
        from celery import Celery
        engine = create_engine(url)
        app = Celery("x")
        @app.task(name="reports.hold")
        def hold():
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                time.sleep(0.1)
        hold.apply(), hold.apply()
        """,
}


# The record is written several times a second: it is waited for, but not for ever.
IS_WRITTEN = """
import json
from pathlib import Path

def written():
    folder = Path(os.environ["_POOLKIT_HOLDS_FOLDER"])
    found = [json.loads(file.read_text())["rows"] for file in folder.glob("*.json")]
    return sum(row["count"] for rows in found for row in rows)

deadline = time.monotonic() + 60
while written() < 2 and time.monotonic() < deadline:
    time.sleep(0.02)
"""


@pytest.mark.parametrize("kind", HELD)
def test_the_lines_that_hold_connections_are_recorded(in_target, database, tmp_path, kind):
    """Of each kind of pool, with the endpoint or task of the frameworks."""
    (tmp_path / "holds").mkdir()
    begin = "import os, time\nfrom sqlalchemy import create_engine, text\nurl = os.environ['U']\n"
    (tmp_path / "held.py").write_text(begin + dedent(HELD[kind]) + IS_WRITTEN)
    variables = {"U": database.url(), "_POOLKIT_HOLDS_FOLDER": str(tmp_path / "holds")}
    in_target("import held", path=[tmp_path], **variables)
    (row,) = read_holds(tmp_path / "holds").rows.values()
    assert (row.count, row.where.rpartition(" in ")[2]) == (2, "hold")
    assert row.unit == (kind if " " in kind or "." in kind else "")
    assert row.longest_s >= 0.1
    # However slow the queries were: it slept through a tenth of a second each time.
    assert 0 < row.busy_s <= row.held_s - 0.2 + 1e-6


SIZED = {
    "": "QueuePool 7 2",
    ", pool_size=3, max_overflow=4": "QueuePool 7 2",
    ", poolclass=NullPool": "NullPool - -",
    ", poolclass=StaticPool": "StaticPool - -",
}


@pytest.mark.parametrize("options", SIZED)
def test_an_engine_with_a_queue_gets_the_size_that_was_asked_for(in_target, options):
    """Other pools take no size: SQLAlchemy would refuse the argument."""
    code = (
        "from sqlalchemy import create_engine\n"
        "from sqlalchemy.pool import NullPool, StaticPool\n"
        f"engine = create_engine({URL!r}{options})\n"
        "kind = type(engine.pool).__name__\n"
        "size = getattr(engine.pool, 'size', lambda: '-')()\n"
        "print(kind, size, getattr(engine.pool, '_max_overflow', '-'))\n"
    )
    output, _ = in_target(code, _POOLKIT_SHIM_SIZE="7+2")
    assert output == SIZED[options]


def test_other_databases_keep_the_size_of_their_pools(in_target):
    """As SQLite beside it."""
    code = "from sqlalchemy import create_engine\nprint(create_engine('sqlite:///x').pool.size())"
    output, _ = in_target(code, _POOLKIT_SHIM_SIZE="7+2")
    assert output != "7"
