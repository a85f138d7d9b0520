"""How should a batch job connect?

You may have read that 1,000 documents without a pool cost 100 s of connecting (3.15), and with one
0.1 s (3.16); and that ETL jobs and all concurrent programs need a pool (3.23).

Documents are inserted in eight ways, on the database as it is and over a distance with TLS. Fewer
documents stand for the 1,000: the ms of one are the seconds of 1,000.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import psycopg
import psycopg2
from psycopg2.pool import ThreadedConnectionPool

from poolkit.experiment import Lab, experiment

INSERT = "INSERT INTO chunks (document, body) VALUES (%s, %s)"
Documents = list[tuple[int, str]]


def connection_for_each(dsn: str, documents: Documents, threads: int = 1) -> None:
    def insert(document: tuple[int, str]) -> None:
        with closing(psycopg2.connect(dsn)) as connection:
            connection.cursor().execute(INSERT, document)
            connection.commit()

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(insert, documents))


def one_connection(dsn: str, documents: Documents) -> None:
    with closing(psycopg2.connect(dsn)) as connection:
        for document in documents:
            connection.cursor().execute(INSERT, document)
            connection.commit()


def a_pool(dsn: str, documents: Documents, threads: int = 1) -> None:
    pool = ThreadedConnectionPool(threads, threads, dsn)

    def insert(document: tuple[int, str]) -> None:
        connection = pool.getconn()
        try:
            connection.cursor().execute(INSERT, document)
            connection.commit()
        finally:
            pool.putconn(connection)

    try:
        with ThreadPoolExecutor(threads) as executor:
            list(executor.map(insert, documents))
    finally:
        pool.closeall()


def one_transaction(dsn: str, documents: Documents) -> None:
    with closing(psycopg2.connect(dsn)) as connection:
        for document in documents:
            connection.cursor().execute(INSERT, document)
        connection.commit()


def executemany(dsn: str, documents: Documents) -> None:
    with psycopg.connect(dsn) as connection:
        connection.cursor().executemany(INSERT, documents)


def copy(dsn: str, documents: Documents) -> None:
    statement = "COPY chunks (document, body) FROM STDIN"
    with psycopg.connect(dsn) as connection, connection.cursor().copy(statement) as rows:
        for document in documents:
            rows.write_row(document)


@experiment(
    question="How should a batch job connect?",
    rows=("3.15", "3.16", "3.23"),
    seconds=5,
)
def run(lab: Lab, *, documents: int = 200, threads: int = 8, rtt_ms: float = 0.5) -> None:
    with closing(psycopg2.connect(lab.dsn())) as connection:
        connection.cursor().execute("CREATE TABLE chunks (document int, body text)")
        connection.commit()
    every = [(number, "A queue is a promise. " * 20) for number in range(documents)]
    few = every[:: max(1, documents // 20)]  # Where each needs a connect, 20 are enough.
    many = f"{threads} threads"
    ways = {
        "connection for each": (connection_for_each, few),
        f"connection for each, {many}": (partial(connection_for_each, threads=threads), few),
        "one connection": (one_connection, every),
        "pool": (a_pool, every),
        f"pool, {many}": (partial(a_pool, threads=threads), every),
        "one transaction": (one_transaction, every),
        "executemany": (executemany, every),
        "COPY": (copy, every),
    }
    here, far = "here", f"{rtt_ms:g} ms away"
    took: dict[str, dict[str, float]] = {here: {}, far: {}}
    connect = {}
    with lab.network(rtt_s=rtt_ms / 1e3, tls=True) as line:
        for place, dsn in ((here, lab.dsn()), (far, line.address.dsn())):
            lab.say(f"{documents} documents in {len(ways)} ways, {place}")
            for name, (way, some) in ways.items():
                took[place][name] = lab.time(partial(way, dsn, some)).total / len(some) * 1e3
            # The fastest, not the median: what else the machine does lengthens the others.
            connect[place] = min(lab.time(lambda at=dsn: psycopg2.connect(at).close(), 20)) * 1e3
    pool = ThreadedConnectionPool(1, 1, lab.dsn())
    borrow = lab.time(lambda: pool.putconn(pool.getconn()), 1000).median * 1e3
    pool.closeall()

    rows = [(name, took[here][name], took[far][name]) for name in ways]
    lab.table("One document in ms, or 1,000 documents in s", ("way", here, far), rows)
    lab.bars(f"One document, {far}", took[far], unit="ms", is_log=True)
    lab.judge(
        "3.15",
        "connecting for each of 1,000 documents takes about 100 s",
        holds={place: 50 <= each <= 200 for place, each in connect.items()},
        measured=", ".join(f"{each:.1f} s {place}" for place, each in connect.items()),
        why="A connect is a few ms of work, and six round trips with TLS. It takes 100 ms only "
        "where the round trip takes 15 ms, such as to another region.",
    )
    lab.judge(
        "3.16",
        "with a pool, 1,000 documents spend 0.1 s on connections",
        holds=borrow <= 0.1,
        measured=f"{borrow * 1e3:.2f} ms for 1,000 times getconn and putconn",
        why="getconn takes a connection from a list and putconn appends it; neither asks the server "
        "if the transaction has ended. A loop that keeps one connection saves as much.",
    )
    each_alone, shared = f"connection for each, {many}", f"pool, {many}"
    lab.judge(
        "3.23",
        "batch jobs and concurrent programs need a pool",
        holds={
            "one thread": all(at["one connection"] >= 2 * at["pool"] for at in took.values()),
            many: all(at[each_alone] >= 2 * at[shared] for at in took.values()),
        },
        measured=f"a document {far}: one thread {took[far]['one connection']:.1f} ms with a kept "
        f"connection and {took[far]['pool']:.1f} ms with a pool; {many} {took[far][each_alone]:.1f} "
        f"ms without and {took[far][shared]:.1f} ms with a pool; COPY {took[far]['COPY']:.2f} ms",
        why="Each thread needs a connection of its own for as long as a transaction lasts; a pool "
        "lends it. One thread gains nothing from a pool, but much from fewer round trips: one "
        "transaction, executemany of psycopg 3, which does not wait for each answer, and COPY.",
    )
