"""Which pool does SQLite need?

You may have read that StaticPool, one connection for all threads, is the pool for SQLite (1.27):
for a file as well (1.28), as the engine of a development machine (1.34), and always with
`check_same_thread=False` (1.29).

Four pools of SQLAlchemy get a database in memory, and a file. A table is made, and several threads
look for it. Then one thread writes while the others read: it inserts a row, the others run a query
and give their connection back, and it commits. In the end all of its rows must be there.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from tempfile import TemporaryDirectory

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool, StaticPool

from poolkit.experiment import Lab, experiment

ANY_THREAD = {"check_same_thread": False}
COUNT = text("SELECT count(*) FROM written")
INSERT = text("INSERT INTO written VALUES (:n)")
FIND = text("SELECT count(*) FROM written WHERE n = :n")
POOLS = (StaticPool, QueuePool, NullPool, SingletonThreadPool)


def use(engine: Engine, threads: int, rows: int) -> tuple[int, int, int]:
    """Use an engine from several threads, one step after the other.

    Return the number of threads that found the table, of queries that found a row before its
    commit, and of rows that were committed without an error and are not there.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(threads)]
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE written (n INTEGER)"))

        held = [(worker, worker.submit(engine.connect).result()) for worker in workers]
        readers = sum(worker.submit(finds_table, each).result() for worker, each in held)
        for worker, each in held:
            worker.submit(each.close).result()
        if readers < threads:
            return readers, 0, 0

        writer, *others = workers
        too_early = 0
        for n in range(rows):
            connection = writer.submit(engine.connect).result()
            writer.submit(connection.execute, INSERT, {"n": n}).result()
            too_early += sum(other.submit(find, engine, n).result() for other in others)
            writer.submit(connection.commit).result()
            writer.submit(connection.close).result()
        with engine.connect() as connection:
            return readers, too_early, rows - connection.scalar(COUNT)


def finds_table(connection: Connection) -> bool:
    with suppress(DBAPIError):  # there is no such table, or the pool has closed the connection
        connection.execute(COUNT)
        return True
    return False


def find(engine: Engine, n: int) -> int:
    with engine.connect() as connection:
        return connection.scalar(FIND, {"n": n})


def refuses_second_thread(url: str) -> bool:
    """Return whether StaticPool's connection works in one thread only, by SQLAlchemy's default."""
    engine = create_engine(url, poolclass=StaticPool)
    connection = engine.raw_connection()
    with ThreadPoolExecutor(1) as worker:
        error = worker.submit(connection.cursor).exception()
    connection.close()
    engine.dispose()
    return error is not None


@experiment(
    question="Which pool does SQLite need?", rows=("1.27", "1.28", "1.29", "1.34"), seconds=1
)
def run(lab: Lab, *, threads: int = 8, rows: int = 10) -> None:
    found, table, refuses = {}, [], {}
    with TemporaryDirectory() as folder:

        def address(kind: str, name: str) -> str:
            return "sqlite://" if kind == "memory" else f"sqlite:///{folder}/{name}.db"

        for kind in ("memory", "file"):
            lab.say(f"{threads} threads on a database in {kind}, with each pool")
            refuses[kind] = refuses_second_thread(address(kind, "refuses"))
            for pool in POOLS:
                url = address(kind, pool.__name__)
                engine = create_engine(url, poolclass=pool, connect_args=ANY_THREAD)
                lab.at_end(engine.dispose)
                opened: list[object] = []
                event.listen(engine, "connect", lambda made, _, to=opened: to.append(made))
                found[kind, pool] = readers, *broken = use(engine, threads, rows)
                shown = broken if readers == threads else ("-", "-")
                table.append((kind, pool.__name__, f"{readers} of {threads}", len(opened), *shown))
        alone = create_engine(address("file", "alone"), poolclass=StaticPool)
        lab.at_end(alone.dispose)
        _, _, lost_alone = use(alone, 1, rows)

    title = f"{threads} threads; one writes {rows} rows while the others read"
    lab.table(title, ("database", "pool", "reads", "connects", "too early", "rows lost"), table)
    memory = {pool.__name__: found["memory", pool][0] for pool in POOLS}
    lab.judge(
        "1.27",
        "a database in memory needs StaticPool: all threads share its one connection",
        holds=[name for name, readers in memory.items() if readers == threads] == ["StaticPool"],
        measured=f"threads of {threads} that found the table: "
        + ", ".join(f"{readers} with {name}" for name, readers in memory.items()),
        why="Each connection to :memory: opens an empty database of its own. But threads that share "
        "a connection share its transaction, so it is for work in sequence, as in tests.",
    )
    _, too_early, lost = found["file", StaticPool]
    measured = (
        f"of {rows} committed rows StaticPool lost {lost} with {threads} threads, {lost_alone} with "
        f"one; QueuePool lost {found['file', QueuePool][2]} with {threads}"
    )
    why = (
        "A connection of SQLite has one transaction. With StaticPool a reader's return is a rollback "
        "of the writer's work, and the commit that follows succeeds without it. With QueuePool each "
        "thread has a connection. A development server, too, runs requests in several threads."
    )
    by_threads = {"one thread": lost_alone == 0, f"{threads} threads": lost == too_early == 0}
    for row, claim, holds in (
        ("1.28", "StaticPool is the pool for a file as well", by_threads[f"{threads} threads"]),
        ("1.34", "StaticPool on a file is the engine for a development machine", by_threads),
    ):
        lab.judge(row, claim, holds=holds, measured=measured, why=why)
    lab.judge(
        "1.29",
        "StaticPool needs check_same_thread=False, or it works in one thread only",
        holds=refuses,
        measured="without the argument a second thread was "
        + ", ".join(f"{'refused' if no else 'served'} ({kind})" for kind, no in refuses.items()),
        why="Python's sqlite3 checks that the thread which uses a connection has opened it. "
        "SQLAlchemy 2 switches the check off for a file, whose connections QueuePool gives to any "
        "thread. In memory it stays on, because SQLAlchemy's own choice is a connection per thread.",
    )
