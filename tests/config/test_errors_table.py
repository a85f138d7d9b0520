"""docs/errors.md: each row's failure, made on a real server, is what the row says."""

import contextlib
import io
import re
import signal
import socket
import threading
import time
from pathlib import Path

import psycopg2
import pytest
from driving import DRIVERS, Client, TcpProxy, small_preset
from processes import wait_until
from sqlalchemy import Column, Integer, MetaData, Table, event, exc, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, registry

from poolkit.celery.delivery import is_operational
from poolkit.config.presets import preset
from poolkit.config.session import remember_failure, translate
from poolkit.local.ports import free_port
from poolkit.problems import problem_of

PAGE = Path(__file__).parents[2] / "docs/errors.md"
ASYNC = ("psycopg_async", "asyncpg")
LOCK_OF_2 = "SELECT n FROM t WHERE n = 2 FOR UPDATE"


def rows_of(heading):
    """Return the cells of a section's table, by the first one without its quotes."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| (?!---)(.+) \|$", section, re.MULTILINE)[1:]
    rows = [[cell.strip().replace("`", "") for cell in line.split(" | ")] for line in lines]
    return {row[0]: row[2:] for row in rows}


class Work:
    """Units of work of one driver on a database of their own, and what disturbs them."""

    def __init__(self, driver, database) -> None:
        self.driver = driver
        self.database = database
        self.clients = []
        self.on_close = []
        self.client = self.connected(database.url())

    def connected(self, url, **changes):
        """Make a client for the driver, with one connection."""
        options = changes.pop("options", {})
        url = url.replace("+psycopg2", "+" + self.driver.removesuffix("_async"))
        chosen = small_preset(self.driver, pool_size=1, pool_timeout=0.1, **changes)
        client = Client(chosen, url, **options)
        event.listen(client.sync_engine, "handle_error", remember_failure)
        self.clients.append(client)
        return client

    def execute(self, *statements):
        def work(connection):
            for statement in statements:
                result = connection.execute(text(statement))
            return result.all() if result.returns_rows else None

        return self.client.run(work)

    def raw(self, connection, function, function_async):
        """Call one of two functions with the driver's own connection."""
        if self.driver in ASYNC:
            return connection.connection.dbapi_connection.run_async(function_async)
        return function(connection.connection.driver_connection)

    def copy(self, connection, query):
        """Read a query by COPY, which SQLAlchemy does not see."""
        command = f"COPY ({query}) TO STDOUT"

        def sync(driver_connection):
            with driver_connection.cursor() as cursor:
                if self.driver == "psycopg2":
                    return cursor.copy_expert(command, io.StringIO())
                with cursor.copy(command) as copy:
                    return list(copy)

        async def asynchronous(driver_connection):
            if self.driver == "asyncpg":
                return await driver_connection.copy_from_query(query, output=io.BytesIO())
            async with driver_connection.cursor() as cursor, cursor.copy(command) as copy:
                return [row async for row in copy]

        return self.raw(connection, sync, asynchronous)

    def deadlock(self, connection, lock):
        """Lock row 1, and call `lock` for row 2, whose holder waits for row 1."""
        connection.execute(text("SET LOCAL deadlock_timeout = 10"))
        connection.execute(text("SELECT n FROM t WHERE n = 1 FOR UPDATE"))
        other = psycopg2.connect(self.database.admin_url(""))
        cursor = other.cursor()
        # It does not look for a deadlock, so that the one who does is known.
        cursor.execute("SET deadlock_timeout = '100s'")
        cursor.execute(LOCK_OF_2)
        thread = threading.Thread(target=cursor.execute, args=("SELECT n FROM t FOR UPDATE",))
        thread.start()
        self.on_close += [other.close, thread.join]
        self.database.wait_for_lock()
        lock(connection)

    def hold(self, statement):
        """Execute a statement in another session, whose transaction stays open."""
        other = psycopg2.connect(self.database.admin_url(""))
        self.on_close.append(other.close)
        other.cursor().execute(statement)

    def close(self):
        for client in self.clients:
            client.close()
        for function in reversed(self.on_close):
            function()


class EndsAfterLogin(TcpProxy):
    """Lets clients in and hangs up as soon as the server is ready for a query (PostgreSQL, 54.7)."""

    def _forward(self, source, sink):
        with contextlib.suppress(OSError):
            from_server = source.getpeername()[1] == self.target
            while data := source.recv(65536):
                sink.sendall(data)
                if from_server and data[-6:-1] == b"Z\0\0\0\5":
                    break
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


FAILURES = {}


def failure(row, *drivers):
    """Register the function that makes a row's failure, for all drivers or for some."""

    def register(make):
        FAILURES[row] = (make, drivers or DRIVERS)
        return make

    return register


def statements(row, *failing):
    failure(row)(lambda work: work.execute(*failing))


statements("25006 as requested", "SET TRANSACTION READ ONLY", "INSERT INTO t VALUES (9)")
statements("57014, a timeout", "SET LOCAL statement_timeout = 20", "SELECT pg_sleep(60)")
statements("57014, a request", "SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(60)")
statements("57P01", "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60)")
statements("23505 and other constraints", "INSERT INTO t VALUES (1)")
statements("42P01 and other mistakes", "SELECT * FROM missing")


@failure("sqlalchemy.exc.TimeoutError")
def exhausted(work):
    work.client.run(lambda _: work.client.pool.connect())


@failure("no SQLSTATE, at a connect")
def refused(work):
    work.connected(f"postgresql+psycopg2://me:x@127.0.0.1:{free_port()}/d").scalar("SELECT 1")


@failure("InvalidRequestError, at a checkout")
def ended_at_once(work):
    proxy = EndsAfterLogin(work.database.server.port)
    work.on_close.append(proxy.close)
    url = work.database.url().replace(f":{proxy.target}/", f":{proxy.port}/")
    work.connected(url).scalar("SELECT 1")


def disconnect(work, then):
    """Cut a connection within its transaction, and call `then`."""
    proxy = TcpProxy(work.database.server.port)
    work.on_close.append(proxy.close)
    url = work.database.url().replace(f":{proxy.target}/", f":{proxy.port}/")

    def cut(connection):
        connection.execute(text("SELECT 1"))
        for each in proxy.sockets:
            each.shutdown(socket.SHUT_RDWR)
        then(connection)

    work.connected(url).run(cut)


@failure("08, or a lost connection")
def lost(work):
    disconnect(work, lambda connection: connection.execute(text("SELECT 1")))


@failure("08 under COPY")
def lost_in_copy(work):
    disconnect(work, lambda connection: work.copy(connection, "SELECT 1"))


@failure("PendingRollbackError 8s2b")
def lost_and_swallowed(work):
    def go_on(connection):
        with pytest.raises(exc.DBAPIError):
            connection.execute(text("SELECT 1"))
        connection.execute(text("SELECT 1"))

    disconnect(work, go_on)


def flush_and_go_on(work, number, *before):
    table = Table("t", MetaData(), Column("n", Integer, primary_key=True))
    mapped = type("Row", (), {})
    registry().map_imperatively(mapped, table)

    def flush(connection):
        for statement in before:
            connection.execute(text(statement))
        with Session(connection) as session:
            row = mapped()
            row.n = number
            session.add(row)
            with pytest.raises(exc.DBAPIError):
                session.flush()
            session.execute(text("SELECT 1"))

    work.client.run(flush)


@failure("PendingRollbackError 7s2a")
def flush_without_lock(work):
    work.hold("LOCK TABLE t")
    flush_and_go_on(work, 9, "SET LOCAL lock_timeout = 20")


@failure("PendingRollbackError after a constraint")
def flush_of_a_double(work):
    flush_and_go_on(work, 1)


@failure("25P02")
def deadlock_and_go_on(work):
    def go_on(connection):
        with pytest.raises(exc.DBAPIError):
            work.deadlock(connection, lambda connection: connection.execute(text(LOCK_OF_2)))
        connection.execute(text("SELECT 1"))

    work.client.run(go_on)


@failure("25P02 after a mistake")
def mistake_and_go_on(work):
    def go_on(connection):
        with pytest.raises(exc.DBAPIError):
            connection.execute(text("SELECT * FROM missing"))
        connection.execute(text("SELECT 1"))

    work.client.run(go_on)


@failure("25P03")
def idle_in_transaction(work):
    work.client.run(
        lambda c: wait_for_end(work, c, "SET LOCAL idle_in_transaction_session_timeout = 20")
    )


def wait_for_end(work, connection, limit):
    """Set a limit of the session, wait until the server has ended it, and go on."""
    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
    connection.execute(text(limit))
    while work.database.execute("SELECT FROM pg_stat_activity WHERE pid = %s", pid):
        time.sleep(0.01)
    connection.execute(text("SELECT 1"))


@failure("25P04")
def transaction_too_long(work):
    work.execute("SET LOCAL transaction_timeout = 20", "SELECT pg_sleep(60)")


@failure("57P05")
def session_idle(work):
    options = {"options": {"isolation_level": "AUTOCOMMIT"}}
    client = work.connected(work.database.url(), **options)
    client.run(lambda c: wait_for_end(work, c, "SET idle_session_timeout = 20"))


@failure("25006")
def became_read_only(work):
    def write(connection):
        connection.execute(text("SET default_transaction_read_only = on"))
        connection.execute(text("INSERT INTO t VALUES (9)"))

    options = {"options": {"isolation_level": "AUTOCOMMIT"}}
    work.connected(work.database.url(), **options).run(write)


@failure("28P01")
def wrong_password(work):
    password = work.database.server.password()
    work.connected(work.database.url().replace(f":{password}@", ":wrong@")).scalar("SELECT 1")


@failure("3D000")
def no_such_database(work):
    work.connected(work.database.server.url("no_such_database")).scalar("SELECT 1")


@failure("40001")
def serialization(work):
    def update(connection):
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        connection.execute(text("SELECT * FROM t"))
        work.database.execute("UPDATE t SET n = 8 WHERE n = 1")
        connection.execute(text("UPDATE t SET n = 9 WHERE n = 1"))

    work.client.run(update)


@failure("40P01")
def deadlock(work):
    execute = text(LOCK_OF_2)
    work.client.run(lambda c: work.deadlock(c, lambda c: c.execute(execute)))


@failure("40P01 under COPY")
def deadlock_in_copy(work):
    work.client.run(lambda c: work.deadlock(c, lambda c: work.copy(c, LOCK_OF_2)))


@failure("InvalidCachedStatementError", "asyncpg")
def changed_table(work):
    work.execute("SELECT * FROM t")
    work.database.execute("ALTER TABLE t ADD COLUMN m int")
    work.execute("SELECT * FROM t")


@failure("53300")
def full(work):
    work.database.execute(f"ALTER DATABASE {work.database.name} CONNECTION LIMIT 0")
    work.connected(work.database.url(), retry_connect=False).scalar("SELECT 1")


@failure("53400")
def too_many_files(work):
    work.database.execute(f"ALTER DATABASE {work.database.name} SET temp_file_limit = '64kB'")
    work.execute(
        "SET LOCAL work_mem = '64kB'",
        "SELECT count(*) FROM (SELECT n FROM generate_series(1, 100000) n ORDER BY n DESC) t",
    )


@failure("55P03")
def locked(work):
    work.hold(LOCK_OF_2)
    work.execute(LOCK_OF_2 + " NOWAIT")


@failure("TimeoutError of asyncpg", "asyncpg")
def drivers_own_limit(work):
    # It is the limit of the first statements, too, which a busy machine may let wait.
    options = {"connect_args": {"command_timeout": 3}}
    work.connected(work.database.url(), options=options).scalar("SELECT pg_sleep(60)")


@failure("another command is in progress", "psycopg", "psycopg_async", "asyncpg")
def used_twice(work):
    async def two(driver_connection):
        if work.driver == "asyncpg":
            import asyncio

            both = [driver_connection.fetch("SELECT pg_sleep(0.1)") for _ in range(2)]
            return await asyncio.gather(*both)
        return driver_connection.pgconn.send_query(b"SELECT 1")

    def use(connection):
        connection.execute(text("SELECT 1"))
        work.raw(connection, lambda raw: raw.pgconn.send_query(b"SELECT 1"), two)
        connection.execute(text("SELECT 2"))

    work.client.run(use)


@failure("OSError of a listener")
def listener_misses_a_file(work):
    @event.listens_for(work.client.pool, "connect")
    def read(connection, record):
        Path("/no/such/file").read_text()

    work.execute("SELECT 1")


@failure("TimeoutError of a signal", "psycopg2", "psycopg")
def alarm(work):
    def handler(*_):
        raise TimeoutError("the program's own limit")

    former = signal.signal(signal.SIGALRM, handler)
    work.on_close.append(lambda: signal.signal(signal.SIGALRM, former))
    work.execute("SELECT 1")  # so that it strikes in the statement, and in no connect
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    work.execute("SELECT pg_sleep(1)")


OURS = rows_of("PostgreSQL")
MADE = [(row, driver) for row in OURS for driver in FAILURES.get(row, (None, ["?"]))[1]]


@pytest.mark.parametrize(("row", "driver"), MADE)
def test_a_failure_is_what_the_table_says(row, driver, database):
    """Its exception, the answer to a web client, and whether a worker tries again."""
    database.execute("CREATE TABLE t (n int PRIMARY KEY)")
    database.execute("INSERT INTO t VALUES (1), (2)")
    database.execute("GRANT ALL ON t TO PUBLIC")
    database.execute("GRANT SET ON PARAMETER deadlock_timeout TO PUBLIC")
    work = Work(driver, database)
    try:
        with pytest.raises(Exception) as caught:
            FAILURES[row][0](work)
    finally:
        work.close()
    assert_as(OURS[row], caught.value)


def assert_as(cells, error):
    kind, status, retry_after, web, worker = cells
    known = translate(error)
    found = "own" if known is None else type(known).__name__
    assert found == ("own" if kind.endswith(" own") else kind), repr(error)
    problem = problem_of(error)
    assert (str(problem.status), problem.headers.get("Retry-After", "none")) == (
        status,
        retry_after,
    )
    assert is_operational(error) == (worker == "retried")
    assert (web == "client") == (worker == "retried")


# -- MySQL, MariaDB and SQLite ----------------------------------------------------------------


THEIRS = rows_of("MySQL, MariaDB and SQLite")
MYSQL = {
    "1062": ["INSERT INTO t VALUES (1)"],
    "1205": ["SET innodb_lock_wait_timeout = 1", LOCK_OF_2],
    "1317": ["KILL QUERY CONNECTION_ID()"],
    "1969": [
        "SET max_statement_time = 0.02",
        "SELECT count(*) FROM seq_1_to_100000 a JOIN seq_1_to_100000 b",
    ],
    "2003": None,
    "2013": ["KILL CONNECTION_ID()"],
    "1045": None,
    "1213": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["pymysql", "asyncmy"])
@pytest.mark.parametrize("row", MYSQL)
def test_a_failure_of_mariadb_is_what_the_table_says(row, driver, mariadb):
    """As for PostgreSQL, by the number of the error."""
    import pymysql

    login = make_url(mariadb.url()).translate_connect_args(username="user")
    other = pymysql.connect(**login)
    cursor = other.cursor()
    cursor.execute("CREATE OR REPLACE TABLE t (n int PRIMARY KEY) ENGINE=InnoDB")
    cursor.execute("INSERT INTO t VALUES (1), (2)")
    other.commit()
    # Of two transactions in a deadlock, the one that has changed less is ended.
    cursor.execute("INSERT INTO t VALUES (11), (12), (13)")
    cursor.execute(LOCK_OF_2)
    url = mariadb.url(driver)
    if row == "2003":
        url = url.replace(f":{mariadb.port}/", f":{free_port()}/")
    if row == "1045":
        url = url.replace(login["password"], "wrong")
    chosen = preset("web_async" if driver == "asyncmy" else "web", "prod")
    client = Client(chosen.replace(pool_size=1, max_overflow=0), url)
    thread = threading.Thread(target=cursor.execute, args=("SELECT n FROM t FOR UPDATE",))

    def work(connection):
        if row == "1213":
            connection.execute(text("SELECT n FROM t WHERE n = 1 FOR UPDATE"))
            thread.start()
            waits = (
                "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
            )

            def is_waiting():
                # The view is renewed only after 0.1 s without a query of it.
                time.sleep(0.3)
                return connection.execute(text(waits)).scalar()

            wait_until(is_waiting)
            connection.execute(text(LOCK_OF_2))
        for statement in MYSQL[row] or ["SELECT 1"]:
            connection.execute(text(statement))

    try:
        with pytest.raises(exc.DBAPIError) as caught:
            client.run(work)
    finally:
        client.close()
        if thread.ident is not None:
            thread.join()
        other.close()
    assert_as(THEIRS[row], caught.value)


def test_a_failure_of_sqlite_is_what_the_table_says(tmp_path):
    """A locked file, a snapshot that is not the newest any more, and a folder that is missing."""
    url = f"sqlite:///{tmp_path}/file.db"
    client, other = (Client(preset("web", "prod"), url, connect_args={"timeout": 0}) for _ in "12")
    client.run(lambda c: c.execute(text("PRAGMA journal_mode = WAL")))
    client.run(lambda c: c.execute(text("CREATE TABLE t (n int)")))

    def write(connection):
        connection.execute(text("INSERT INTO t VALUES (1)"))

    def write_in_between(connection):
        connection.exec_driver_sql("BEGIN")
        connection.execute(text("SELECT * FROM t")).all()
        other.run(write)
        write(connection)

    def write_twice(connection):
        write(connection)
        other.run(write)

    missing = Client(preset("web", "prod"), "sqlite:////no/such/folder/file.db")
    for row, work in {
        "SQLite 5": lambda: client.run(write_twice),
        "SQLite 14": lambda: missing.run(write),
        "SQLite 517": lambda: client.run(write_in_between),
    }.items():
        with pytest.raises(exc.DBAPIError) as caught:
            work()
        assert_as(THEIRS[row], caught.value)
    client.close()
    other.close()


def test_every_row_is_made():
    """Each row of both tables has a failure here, and each failure a row."""
    assert set(OURS) == set(FAILURES)
    assert {row for row in THEIRS if not row.startswith("SQLite")} == set(MYSQL)
