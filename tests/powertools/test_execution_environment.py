"""One execution environment: units of work, its end, and its copies from a snapshot."""

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import snapshot_restore_py
from awslambdaric.lambda_runtime_hooks_runner import run_after_restore, run_before_snapshot
from closed_databases import CLOSED
from sqlalchemy import BigInteger, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from poolkit.errors import ConfigurationError, DatabaseUnavailable
from poolkit.execution_environment import at_end

ROOT = str(Path(__file__).parents[2])


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    text: Mapped[str]


def notes(database):
    return [row["text"] for row in database.execute("SELECT text FROM notes ORDER BY id")]


def opened(environment):
    return environment.snapshot().opened


# -- units of work ----------------------------------------------------------------------------


def test_a_session_commits_at_the_end_of_its_block(environment, database):
    """What it has loaded stays readable afterwards."""
    with environment.session() as session:
        note = Note(id=1, text="one")
        session.add(note)
    assert (note.id, note.text) == (1, "one")
    assert notes(database) == ["one"]


def test_a_connection_commits_at_the_end_of_its_block(environment, database):
    """Core statements need no ORM."""
    with environment.connection() as connection:
        connection.execute(text("INSERT INTO notes VALUES (1, 'one')"))
    assert notes(database) == ["one"]


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_an_exception_rolls_the_block_back(environment, database, kind):
    """And the exception goes on."""
    with pytest.raises(RuntimeError, match="mine"):
        insert_and_fail(getattr(environment, kind)())
    assert notes(database) == []


def insert_and_fail(unit_of_work):
    with unit_of_work as work:
        work.execute(text("INSERT INTO notes VALUES (2, 'two')"))
        raise RuntimeError("mine")


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_what_reads_begins_no_transaction(environment, kind):
    """Two statements have two transactions; in a unit of work they have one."""
    for name, number in ((kind, 1), (f"read_{kind}", 2)):
        with getattr(environment, name)() as work:
            seen = {work.scalar(text("SELECT pg_current_xact_id()::text")) for _ in range(2)}
        assert len(seen) == number


def test_a_session_that_reads_refuses_to_write(environment, database):
    """What it flushed would be committed at once."""
    with (
        pytest.raises(InvalidRequestError, match="use session"),
        environment.read_session() as session,
    ):
        session.add(Note(id=1, text="one"))
    assert notes(database) == []


@pytest.mark.parametrize("kind", ["session", "connection"])
@pytest.mark.parametrize("reason", ["connection refused", "no such database", "wrong password"])
def test_a_database_that_accepts_no_login_is_unavailable(open_environment, database, kind, reason):
    """The driver's error is translated, in a unit of work of either kind."""
    environment = open_environment(CLOSED[reason](database), POOLKIT_CONNECT_TIMEOUT="1")
    with pytest.raises(DatabaseUnavailable), getattr(environment, kind)() as work:
        work.execute(text("SELECT 1"))


def test_units_of_work_on_a_held_connection_open_no_other(environment, database):
    """One after the other, each with a transaction of its own; then the connection is returned."""
    with environment.holding_connection():
        with environment.session() as session:
            session.add(Note(id=1, text="one"))
        with pytest.raises(RuntimeError, match="mine"):
            insert_and_fail(environment.connection())
        with environment.connection() as connection:
            connection.execute(text("INSERT INTO notes VALUES (3, 'three')"))
    assert notes(database) == ["one", "three"]
    assert opened(environment) == 1
    database.wait_for_backends(0, "lambda:")


def test_a_held_connection_that_dies_is_replaced_for_the_next_unit_of_work(environment, database):
    """The unit of work that had it fails, and no other."""
    with environment.holding_connection():
        with pytest.raises(DatabaseUnavailable), environment.session() as session:
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        with environment.session() as session:
            session.add(Note(id=1, text="one"))
    assert notes(database) == ["one"]


def test_another_thread_takes_no_part_in_a_unit_of_work(environment):
    """A held connection and the current unit of work are the caller's own."""
    with environment.holding_connection(), environment.session() as session:
        assert environment.current() is session.connection()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(environment.current).result(60) is None
    assert environment.current() is None


# -- the init phase ---------------------------------------------------------------------------


def test_by_default_nothing_is_connected_and_nothing_kept(environment, database):
    """The preset lambda opens a connection for each unit of work."""
    assert opened(environment) == 0
    for number in (1, 2):
        use(environment)
        assert opened(environment) == number
    database.wait_for_backends(0, "lambda:")


def test_prewarming_connects_in_the_init_phase(open_environment, database):
    """With prewarm the first invoke finds its connection there."""
    open_environment(POOLKIT_TARGET="lambda_warm", POOLKIT_PREWARM="1")
    assert len(database.wait_for_backends(1, "lambda_warm:")) == 1


@pytest.mark.parametrize("target", ["web", "worker", "script"])
def test_a_target_that_is_no_function_stops_the_start(open_environment, target):
    """The message lists the targets that a function can run with."""
    with pytest.raises(ConfigurationError, match="lambda, lambda_warm, lambda_proxy"):
        open_environment(POOLKIT_TARGET=target)


def use(environment):
    with environment.connection() as connection:
        connection.execute(text("SELECT 1"))


# -- the end ----------------------------------------------------------------------------------

WARM = """
import os, signal, sys, time

def tell(*_):
    print("ended", flush=True)
    sys.stdin.read()
    sys.exit(3)

if sys.argv[1] == "chained":
    signal.signal(signal.SIGTERM, tell)
from poolkit.execution_environment import ExecutionEnvironment
from sqlalchemy import text

environment = ExecutionEnvironment.open()
with environment.connection() as connection:
    connection.execute(text("SELECT 1"))
if sys.argv[1] == "locked":
    environment._metrics._lock.acquire()
print("ready", flush=True)
while True:  # not pause(): a signal just before it would be waited for in vain
    time.sleep(0.05)
"""


@pytest.fixture
def start_warm(database):
    """Start a process that keeps one connection, and wait until it has."""
    started = []

    def start(how):
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": ROOT}
        environ |= {"DATABASE_URL": database.url(), "POOLKIT_TARGET": "lambda_warm"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", WARM, how], env=environ, **pipes)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        assert len(database.wait_for_backends(1, "lambda_warm:")) == 1
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.process
def test_sigterm_closes_the_connection_and_calls_the_handler_before(start_warm, database):
    """The backend ends while the process still runs; then it is the earlier handler's turn."""
    process = start_warm("chained")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "ended\n"
    database.wait_for_backends(0, "lambda_warm:")
    assert process.poll() is None
    process.communicate()
    assert process.returncode == 3


@pytest.mark.process
def test_sigterm_ends_a_process_that_had_no_handler(start_warm):
    """With exit status 0, which Lambda takes for a graceful end."""
    process = start_warm("alone")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.mark.process
def test_sigterm_in_the_middle_of_the_pools_work_does_not_hang(start_warm):
    """A lock that the interrupted code holds delays the end by less than Lambda waits."""
    process = start_warm("locked")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.fixture
def hooked(open_environment):
    """Return a warm environment whose hooks are registered; they are taken back afterwards."""
    handler = signal.getsignal(signal.SIGTERM)
    registries = snapshot_restore_py.get_before_snapshot(), snapshot_restore_py.get_after_restore()
    before = [list(registry) for registry in registries]
    environment = open_environment(POOLKIT_TARGET="lambda_warm")
    at_end(environment.dispose, after_restore=environment.restore)
    yield environment
    signal.signal(signal.SIGTERM, handler)
    for registry, content in zip(registries, before, strict=True):
        registry[:] = content


def test_no_connection_is_part_of_a_snapshot(hooked, database):
    """The hook closes what the init phase opened; a restored copy opens its own."""
    use(hooked)
    database.wait_for_backends(1, "lambda_warm:")
    run_before_snapshot()
    database.wait_for_backends(0, "lambda_warm:")
    run_after_restore()
    use(hooked)
    database.wait_for_backends(1, "lambda_warm:")


def test_restored_copies_differ_in_name_and_in_chance(hooked, database):
    """Two copies of one snapshot have neither the same jitter nor the same application_name."""
    state = random.getstate()
    seen = set()
    for _ in range(2):
        random.setstate(state)
        run_after_restore()
        use(hooked)
        (backend,) = database.wait_for_backends(1, "lambda_warm:")
        seen.add((backend["application_name"], random.random()))
        hooked.dispose()
        database.wait_for_backends(0, "lambda_warm:")
    names, draws = zip(*seen, strict=True)
    assert len(set(names)) == len(set(draws)) == 2
