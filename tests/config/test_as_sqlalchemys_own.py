"""An engine of a preset is SQLAlchemy's own: listeners, options and the program's exceptions."""

import asyncio
import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy
from driving import patient_driver
from processes import run_python, wait_until
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import CreateEnginePlugin, make_url
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, StaticPool

from poolkit import PoolMetrics, Settings, attach, make_async_engine, make_engine, preset
from poolkit.config.presets import error_of_the_program

# -- do_connect ------------------------------------------------------------------------------


def _settings(url, target):
    return Settings.from_environ({"POOLKIT_TARGET": target, "DATABASE_URL": url})


def _attached(url, add):
    engine = create_engine(url)
    attach(engine, preset("web", "prod"))
    add(engine)
    return engine


def _attached_later(url, add):
    engine = create_engine(url)
    add(engine)
    attach(engine, preset("web", "prod"))
    return engine


def _made(engine, add):
    add(engine)
    return engine


WAYS = {
    "web": lambda url, add: _made(preset("web", "prod").create_engine(url), add),
    "null pool": lambda url, add: _made(preset("lambda_proxy").create_engine(url), add),
    "no retry": lambda url, add: _made(
        preset("web", "prod").replace(retry_connect=False).create_engine(url), add
    ),
    "make_engine": lambda url, add: _made(make_engine(_settings(url, "web"), PoolMetrics()), add),
    "attached": _attached,
    "attached later": _attached_later,
}
ASYNC_WAYS = {
    "web_async": lambda url: preset("web_async", "prod").create_async_engine(url),
    "make_async_engine": lambda url: make_async_engine(_settings(url, "web_async"), PoolMetrics()),
}


def _token_listeners(database, calls, *, opens):
    """Return a function that adds SQLAlchemy's recipe for tokens, in front of it another one."""

    def second(dialect, record, cargs, cparams):
        calls.append("second")
        cparams["password"] = database.server.password()
        return dialect.connect(*cargs, **cparams) if opens else None

    def first(dialect, record, cargs, cparams):
        calls.append("first")

    def add(engine):
        event.listen(engine, "do_connect", first)
        event.listen(engine, "do_connect", second, insert=True)

    return add


@pytest.mark.parametrize("opens", [False, True], ids=["changes arguments", "opens"])
@pytest.mark.parametrize("way", WAYS)
def test_do_connect_listeners_are_called_as_on_any_engine(database, way, opens):
    """Each before each connect, in SQLAlchemy's order; the token that they set is used."""
    url = make_url(database.url()).set(password="expired")
    url = url.render_as_string(hide_password=False)
    seen = {}
    for name, make in {
        "bare": lambda url, add: _made(create_engine(url), add),
        way: WAYS[way],
    }.items():
        seen[name] = []
        engine = make(url, _token_listeners(database, seen[name], opens=opens))
        for _ in range(2):
            with engine.connect() as connection:
                assert connection.scalar(text("SELECT 1")) == 1
                connection.invalidate()
        engine.dispose()
    assert seen[way] == seen["bare"]


@pytest.mark.parametrize("way", ASYNC_WAYS)
def test_do_connect_listeners_of_asynchronous_engines(database, way):
    """The same recipe, with asyncpg."""
    url = make_url(database.url("asyncpg")).set(password="expired")
    engine = ASYNC_WAYS[way](url.render_as_string(hide_password=False))
    calls = []
    _token_listeners(database, calls, opens=False)(engine.sync_engine)

    async def ask():
        async with engine.connect() as connection:
            return await connection.scalar(text("SELECT 1"))

    async def scenario():
        try:
            return await ask()
        finally:
            await engine.dispose()

    assert asyncio.run(scenario()) == 1
    assert sorted(calls) == ["first", "second"]


# -- the options of create_engine ------------------------------------------------------------


class OwnPool(QueuePool):
    pass


class Plugin(CreateEnginePlugin):
    def __init__(self, url, options):
        self.mark = "from the plugin"

    def update_url(self, url):
        return url

    def engine_created(self, engine):
        engine.logging_name = self.mark


sqlalchemy.engine.url.plugins.register("poolkit_test", "test_as_sqlalchemys_own", "Plugin")


def _open(engine):
    with engine.connect() as connection:
        return connection.scalar(text("SELECT 1"))


def _has_fired(engine):
    _open(engine)
    return engine.logging_name


# Each parameter of create_engine: a value, and what one sees of it on the engine.
OPTIONS = {
    "connect_args": (
        {"keepalives_idle": 7},
        lambda e: e.connect().connection.dbapi_connection.info.dsn_parameters["keepalives_idle"],
    ),
    "creator": (None, lambda e: _open(e) and e.pool._creator.__name__),
    "echo": (True, lambda e: e.echo),
    "echo_pool": (True, lambda e: e.pool.echo),
    "enable_from_linting": (False, lambda e: e.dialect.compiler_linting),
    "execution_options": (
        {"isolation_level": "AUTOCOMMIT"},
        lambda e: (dict(e.get_execution_options()), e.connect().get_isolation_level()),
    ),
    "hide_parameters": (True, lambda e: e.hide_parameters),
    "insertmanyvalues_page_size": (7, lambda e: e.dialect.insertmanyvalues_page_size),
    "isolation_level": ("SERIALIZABLE", lambda e: e.connect().get_isolation_level()),
    "json_deserializer": (str, lambda e: e.dialect._json_deserializer),
    "json_serializer": (str, lambda e: e.dialect._json_serializer),
    "label_length": (20, lambda e: e.dialect.label_length),
    "logging_name": ("mine", lambda e: e.logging_name),
    "max_identifier_length": (50, lambda e: _open(e) and e.dialect.max_identifier_length),
    "max_overflow": (-1, lambda e: e.pool._max_overflow),
    "module": (psycopg2, lambda e: e.dialect.dbapi),
    "paramstyle": ("format", lambda e: e.dialect.paramstyle),
    "pool": (None, lambda e: (e.pool.size(), _open(e))),
    "poolclass": (OwnPool, lambda e: isinstance(e.pool, OwnPool) and _open(e)),
    "pool_events": ([(lambda *_: None, "connect")], _open),
    "pool_logging_name": ("mine", lambda e: e.pool.logging_name),
    "pool_pre_ping": (True, lambda e: e.pool._pre_ping),
    "pool_recycle": (-1, lambda e: e.pool._recycle),
    "pool_reset_on_return": (None, lambda e: e.pool._reset_on_return),
    "pool_size": (3, lambda e: e.pool.size()),
    "pool_timeout": (1.5, lambda e: e.pool.timeout()),
    "pool_use_lifo": (False, lambda e: e.pool._pool.use_lifo),
    "plugins": (["poolkit_test"], _has_fired),
    "query_cache_size": (0, lambda e: e._compiled_cache),
    "skip_autocommit_rollback": (True, lambda e: e.dialect.skip_autocommit_rollback),
    "use_insertmanyvalues": (False, lambda e: e.dialect.use_insertmanyvalues),
}
# Refused, without effect, or text in the documentation.
NO_OPTIONS = {"empty_in_strategy", "future", "implicit_returning", "tag"}


def test_every_parameter_of_create_engine_is_tried():
    """The list is SQLAlchemy's own documentation, of the version that is installed."""
    documented = set(re.findall(r":param (\w+)", create_engine.__doc__))
    assert documented - NO_OPTIONS - set(OPTIONS) == set()


# Of which an engine with credentials and metrics could make something else.
WITH_METRICS = ("creator", "execution_options", "plugins", "pool", "poolclass", "pool_recycle")


@pytest.mark.parametrize(
    ("way", "name"),
    [*(("preset", name) for name in OPTIONS), *(("make_engine", name) for name in WITH_METRICS)],
)
@pytest.mark.filterwarnings("ignore:Can't validate argument")
def test_an_option_does_what_it_does_on_create_engine(postgres, way, name):
    """What the caller gives wins over the preset."""
    if name == "skip_autocommit_rollback" and name not in create_engine.__doc__:
        pytest.skip("SQLAlchemy 2.0.43 and later have it")
    value, effect = OPTIONS[name]
    url, seen = postgres.url(), {}
    makers = {
        "bare": lambda **options: create_engine(url, **options),
        "preset": lambda **options: preset("web", "prod").create_engine(url, **options),
        "make_engine": lambda **options: make_engine(
            _settings(url, "web"), PoolMetrics(), **options
        ),
    }
    for made in ("bare", way):
        if name == "creator":

            def value():
                return psycopg2.connect(postgres.url(driver=""))

        elif name == "pool":
            value = QueuePool(lambda: psycopg2.connect(postgres.url(driver="")), pool_size=3)
        engine = makers[made](**{name: value})
        seen[made] = effect(engine)
        assert name != "pool" or engine.pool is value
        engine.dispose()
    assert seen[way] == seen["bare"]


@pytest.mark.parametrize("poolclass", [NullPool, StaticPool, AssertionPool, OwnPool])
def test_a_pool_class_gets_the_numbers_that_it_takes(database, poolclass):
    """NullPool has no size. The others keep connections, and replace a dead one at checkout."""
    engine = preset("web", "prod").create_engine(database.url(), poolclass=poolclass)
    assert isinstance(engine.pool, poolclass)
    _open(engine)
    database.terminate_backends()
    assert _open(engine) == 1
    engine.dispose()


def test_an_asynchronous_engine_takes_a_null_pool_and_a_creator(database):
    """As a test suite with an event loop for each test asks for."""
    import asyncpg

    async def create(*_, **__):
        url = database.url("").replace("postgresql+", "postgresql")
        return await asyncpg.connect(url)

    async def scenario(**options):
        engine = preset("web_async", "prod").create_async_engine(database.url("asyncpg"), **options)
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1
        await engine.dispose()
        return type(engine.pool)

    assert issubclass(asyncio.run(scenario(poolclass=NullPool)), NullPool)
    asyncio.run(scenario(async_creator=create))


# -- what interrupts a checkout ---------------------------------------------------------------


class OwnLimitError(TimeoutError):
    """What a program raises from a signal's handler."""


@pytest.fixture
def interrupt():
    """Have a signal's handler raise in the main thread while a client's ping waits."""

    def handler(*_):
        raise OwnLimitError("the job's own limit")

    before = signal.signal(signal.SIGUSR1, handler)
    with ExitStack() as ending:

        def arrange(client):
            def send():
                wait_until(lambda: client.pings, "a ping")
                time.sleep(0.1)  # its beginning may be interrupted as well
                os.kill(os.getpid(), signal.SIGUSR1)

            thread = threading.Thread(target=send)
            thread.start()
            ending.callback(thread.join)

        yield arrange
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def silent(postgres, database, make_client, make_proxy, driver):
    """A client whose only connection was idle for long, and the proxy, which is silent by now."""
    proxy = make_proxy(postgres.port)
    url = database.url().replace(f":{postgres.port}/", f":{proxy.port}/")
    client = make_client(url, options=patient_driver(driver), pool_size=1, ping_after_idle=0.01)
    client.scalar("SELECT 1")
    proxy.flowing.clear()
    time.sleep(0.02)
    return client, proxy


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_an_exception_of_the_program_ends_a_ping(silent, interrupt):
    """It reaches the program at once and unchanged, and the slot comes back."""
    client, proxy = silent
    interrupt(client)
    with pytest.raises(OwnLimitError):
        client.scalar("SELECT 1")
    assert client.pool.checkedout() == 0
    proxy.resume()
    assert client.scalar("SELECT 1") == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_a_cancelled_ping_gives_its_slot_back(silent):
    """Cancelled again and again, as AnyIO does it, while the server is silent."""
    client, proxy = silent

    async def scenario():
        async def work():
            async with client.engine.connect():
                pass

        task = asyncio.create_task(work())
        await asyncio.sleep(0.2)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        return task

    assert client.runner.run(scenario()).cancelled()
    assert client.pool.checkedout() == 0
    proxy.resume()
    assert client.scalar("SELECT 1") == 1


@pytest.mark.parametrize("driver", ["asyncpg"])
def test_a_cancelled_connect_is_no_failed_one(postgres, database, make_proxy, driver):
    """The client hung up; the database did nothing wrong."""
    proxy = make_proxy(postgres.port)
    url = database.url(driver).replace(f":{postgres.port}/", f":{proxy.port}/")
    metrics = PoolMetrics()
    engine = make_async_engine(_settings(url, "web_async"), metrics)
    proxy.flowing.clear()

    async def scenario():
        async def work():
            async with engine.connect():
                pass

        task = asyncio.create_task(work())
        await asyncio.to_thread(wait_until, lambda: proxy.sockets)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return metrics.snapshot(engine.sync_engine.pool)

    found = asyncio.run(scenario())
    assert (found.connect_failures, found.checked_out) == (0, 0)


@pytest.mark.parametrize("event_name", ["connect", "checkout", "checkin", "reset"])
def test_a_listener_that_raises_costs_no_slot(database, event_name):
    """The request fails, if at all, and the next one has a connection."""
    engine = preset("web", "prod").replace(pool_size=1, max_overflow=0, pool_timeout=1)
    engine = engine.create_engine(database.url())
    fails = [True]

    def listener(*_):
        if fails[0]:
            raise FileNotFoundError("of the listener's own")

    event.listen(engine.pool, event_name, listener)
    for _ in range(3):
        if event_name == "reset":  # SQLAlchemy logs it
            assert _open(engine) == 1
        else:
            with pytest.raises(FileNotFoundError, match="of the listener's own"):
                _open(engine)
        assert engine.pool.checkedout() == 0
    fails[0] = False
    assert _open(engine) == 1
    engine.dispose()


def test_an_emptied_info_costs_no_slot(database):
    """`Connection.info` is the application's."""
    engine = preset("web", "prod").replace(pool_size=1, max_overflow=0, pool_timeout=1)
    engine = engine.create_engine(database.url())
    backends = set()
    for _ in range(3):
        with engine.connect() as connection:
            backends.add(connection.scalar(text("SELECT pg_backend_pid()")))
            connection.info.clear()
    assert len(backends) == 1
    engine.dispose()


def test_an_error_of_the_program_is_told_from_the_networks():
    """By where it was raised; one that the program was handling before is another matter."""
    with pytest.raises(OSError) as caught:
        socket.create_connection(("127.0.0.1", 1), timeout=10)
    assert error_of_the_program(caught.value) is None
    own = OwnLimitError()
    with pytest.raises(OwnLimitError) as caught:
        raise own
    assert error_of_the_program(caught.value) is own
    with pytest.raises(psycopg2.OperationalError) as caught:
        _connect_while_handling_an_error()
    assert isinstance(caught.value.__context__, FileNotFoundError)
    assert error_of_the_program(caught.value) is None


def _connect_while_handling_an_error():
    try:
        Path("no such file").read_text()
    except FileNotFoundError:
        psycopg2.connect("host=127.0.0.1 port=1")


# -- what the check needs ---------------------------------------------------------------------

AT_THE_LIMIT = """
import os, resource, sys, time
from sqlalchemy import text
from poolkit import preset

web = preset("web", "prod").replace(ping_after_idle=0.01, pool_size=2, prewarm=2)
web = web.replace(connect_timeout=60)
engine = web.create_engine(os.environ["DATABASE_URL"])
assert web.start(engine) == 2

def ask():
    time.sleep(0.02)
    with engine.connect() as connection:
        return connection.scalar(text("SELECT pg_backend_pid()"))

before = {ask(), ask()}
if os.getuid() == 0:
    os.setgid(54321)
    os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
for _ in range(3):
    assert ask() in before
print("kept")
"""


@pytest.mark.process
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
def test_a_ping_needs_neither_a_thread_nor_a_file(database, driver):
    """A process that can have none of them any more keeps its connections."""
    answer = run_python(
        "-c", AT_THE_LIMIT, environ={"DATABASE_URL": database.url(driver)}, clean=True
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "kept\n"
