"""How much memory does a connection take on the server?

You may have read that each connection takes about 10 MB, so that 100 of them take 1 GB (4.2); that each
one consumes resources of the server (3.4); and that a pool limits the memory (4.21).

PostgreSQL starts a process for each connection. /proc/<pid>/smaps_rollup shows how much memory a
process has to itself. It is read after several kinds of work, each in a new connection, and
then for many clients at once, without a pool and with one.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import psycopg2
from sqlalchemy import create_engine, text

from poolkit.experiment import Lab, experiment


class Memory(NamedTuple):
    """Of a process, in MB."""

    own: float
    """Its anonymous memory; of what it shares with the server since the fork, its part."""
    resident: float
    """What `top` and `ps` show: also the program and the shared buffers, which it has in common
    with all others."""


def memory_of(pid: int) -> Memory:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    kb = {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB$", rollup, re.MULTILINE)}
    return Memory((kb["Pss_Anon"]) / 1024, kb["Rss"] / 1024)


@experiment(
    question="How much memory does a connection take on the server?",
    rows=("4.2", "3.4", "4.21"),
    seconds=4,
    needs=("own server", "linux"),
)
def run(
    lab: Lab, *, clients: int = 50, pool_size: int = 10, tables: int = 1000, statements: int = 500
) -> None:
    numbers = "SELECT n FROM generate_series(1, 500000) n ORDER BY random()"
    by_name = "SELECT * FROM pg_class JOIN pg_attribute ON attrelid = oid WHERE relname = $1"
    works = {
        "idle": [],
        "after SELECT 1": ["SELECT 1"],
        "in a sort": [
            "SET work_mem = '64MB'",
            "BEGIN",
            f"DECLARE c CURSOR FOR {numbers}",
            "FETCH c",
        ],
        "after a sort": ["SET work_mem = '64MB'", f"SELECT count(*) FROM ({numbers}) sorted"],
        f"{statements} prepared statements": [
            f"PREPARE p{number} AS {by_name} AND attnum = {number}" for number in range(statements)
        ],
        f"{tables} tables used": [f"SELECT FROM t{number}" for number in range(tables)],
    }
    # Nothing here measures a disk, and a server without fsync makes the tables faster.
    settings = {"fsync": "off"}
    with lab.new_server(max_connections=clients + 20, settings=settings) as server:
        lab.say(f"one connection after each of {len(works)} kinds of work")
        make_tables(server.dsn(), tables)
        after: dict[str, Memory] = {}
        for work, queries in works.items():
            with closing(psycopg2.connect(server.dsn())) as connection:
                connection.autocommit = True
                for query in queries:
                    connection.cursor().execute(query)
                after[work] = memory_of(connection.info.backend_pid)

        lab.say(f"{clients} clients at once, without a pool and with one of {pool_size}")
        with ExitStack() as stack:
            direct = [
                stack.enter_context(closing(psycopg2.connect(server.dsn()))) for _ in range(clients)
            ]
            unpooled = {c.info.backend_pid: memory_of(c.info.backend_pid) for c in direct}

        engine = create_engine(server.url(), pool_size=pool_size, max_overflow=0)
        lab.at_end(engine.dispose)

        def query(_: int) -> int:
            with engine.connect() as conn:
                return conn.scalar(text("SELECT pg_backend_pid() FROM pg_sleep(0.05)"))

        with ThreadPoolExecutor(clients) as threads:
            pooled = {pid: memory_of(pid) for pid in set(threads.map(query, range(clients)))}

    rows = [(work, memory.own, memory.resident) for work, memory in after.items()]
    lab.table("A server process in MB", ("work", "its own", "resident"), rows)
    lab.bars("Memory of one connection", {work: own for work, own, _ in rows}, unit="MB")
    total, with_pool = (sum(each.own for each in found.values()) for found in (unpooled, pooled))
    lab.judge(
        "4.2",
        "a connection takes 10 MB, within a factor of two",
        holds={work: 10 / 2 <= memory.own <= 10 * 2 for work, memory in after.items()},
        measured=", ".join(f"{memory.own:.1f} MB {work}" for work, memory in after.items())
        + f"; {clients} idle ones {total:.0f} MB together; `top` shows "
        f"{after['idle'].resident:.1f} MB for an idle one",
        why="A new process shares nearly all its memory with the server, so it needs about 1 MB. It "
        "grows with what it keeps: plans of prepared statements, and a description of each table "
        "that it has used, both until it ends. A sort takes up to work_mem, and gives it back. "
        "`top` shows about 10 MB for each, as it counts what all of them share each time.",
    )
    lab.judge(
        "3.4",
        "each connection consumes resources of the server: a process, and more than 0.5 MB",
        holds=len(unpooled) == clients and total > clients / 2,
        measured=f"{clients} connections: {len(unpooled)} processes, {total:.0f} MB",
        why="The server starts a process for a connection and ends it with the connection. An idle "
        "one takes no CPU time, but its memory, and one of max_connections.",
    )
    lab.judge(
        "4.21",
        f"with a pool of {pool_size}, {clients} clients take less than half the memory",
        holds=with_pool < total / 2,
        measured=f"{len(unpooled)} connections {total:.0f} MB, {len(pooled)} of the pool "
        f"{with_pool:.0f} MB",
        why="The pool limits the number of server processes, and so what they take together. It "
        "does not limit one of them: a pooled connection lives longer, so it keeps more. "
        "pool_recycle replaces it.",
    )


def make_tables(dsn: str, tables: int) -> None:
    with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
        for number in range(tables):
            cursor.execute(f"CREATE TABLE t{number} (id int PRIMARY KEY, a int, b int, c int)")
