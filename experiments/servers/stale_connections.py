"""What becomes of pooled connections that have died?

You may have read that pool_pre_ping finds a dead connection and replaces it (0.30), so that
production needs it (1.53); that without it a query fails after a restart of the server (4.32); and
that it, or another check, deals with restarts and network trouble (4.16).

Four engines fill their pools. Then their connections die: by an administrator, by a restart, or by a
firewall that forgets them without a word. Each engine serves some requests, one after the other.

`--set connections=0` lets the pools be empty at that moment.
"""

import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from poolkit.config.presets import preset
from poolkit.experiment import Lab, experiment

KILLED, RESTARTED, LOST = "backend killed", "server restarted", "black hole"
NO_CHECK, PRE_PING, POLL, KIT = "no check", "pool_pre_ping", "a poll alone", "poll and idle ping"


def make_engines(url: str) -> dict[str, Engine]:
    # Its check polls the socket, and pings a connection that was idle for 0.5 s.
    kit = preset("web", "prod").replace(pool_size=2, connect_timeout=2)
    return {
        NO_CHECK: create_engine(url, pool_size=2),
        PRE_PING: create_engine(url, pool_size=2, pool_pre_ping=True),
        POLL: kit.replace(ping_after_idle=3600).create_engine(url),
        KIT: kit.create_engine(url),
    }


def fill(engine: Engine, connections: int) -> None:
    for taken in [engine.connect() for _ in range(connections)]:
        taken.close()


def serve(engine: Engine, requests: int, answers: list[object]) -> None:
    """Serve requests one after the other, and add those that got an answer."""
    for _ in range(requests):
        with suppress(DBAPIError), engine.connect() as connection:
            answers += connection.execute(text("SELECT 'work'"))


@experiment(
    question="What becomes of pooled connections that have died?",
    rows=("0.30", "1.53", "4.16", "4.32"),
    seconds=11,
    needs=("own server",),
)
def run(lab: Lab, *, requests: int = 5, connections: int = 2, patience_s: float = 6.0) -> None:
    failed: dict[tuple[str, str], int] = {}
    # The threads' own block is the outer one: they end when the network has.
    with ThreadPoolExecutor(4) as threads, lab.new_server() as server, lab.network(server) as line:

        def kill() -> None:
            server.terminate()
            lab.wait_until("the sessions end", lambda: not server.backends())

        def lose() -> None:
            time.sleep(0.6)  # so that they are idle for more than 0.5 s
            line.network.lose_connections()

        faults = {KILLED: kill, RESTARTED: server.postgres.restart, LOST: lose}
        for fault, happens in faults.items():
            lab.say(f"{fault}: {requests} requests with each engine")
            engines = make_engines(line.address.url() if fault == LOST else server.url())
            with ExitStack() as stack:
                for engine in engines.values():
                    stack.callback(engine.dispose)
                    fill(engine, connections)
                happens()
                answers: dict[str, list[object]] = {arm: [] for arm in engines}
                arms = [threads.submit(serve, engines[a], requests, answers[a]) for a in engines]
                wait(arms, timeout=patience_s)
                failed |= {(arm, fault): requests - len(answers[arm]) for arm in engines}
                line.network.restore()  # a request that still waits receives a reset
                wait(arms)

    title = f"Requests of {requests} that failed, or had no answer within {patience_s:g} s"
    rows = [(arm, *(failed[arm, fault] for fault in faults)) for arm in engines]
    lab.table(title, ("", *faults), rows)

    seen = {
        arm: f"{arm}: " + ", ".join(f"{failed[arm, fault]} ({fault})" for fault in faults)
        for arm in engines
    }
    asks = (
        "A ping is a question that the server answers before the connection is handed out. A server "
        "that ends a session says so, and the ping fails at once. In a black hole nothing answers, "
        "and a ping without a time limit waits for the kernel: about 15 minutes on Linux."
    )
    lab.judge(
        "0.30 1.53",
        "pool_pre_ping finds a dead connection and replaces it, so production needs it",
        holds={fault: failed[PRE_PING, fault] == 0 < failed[NO_CHECK, fault] for fault in faults},
        measured=f"failed of {requests}: {seen[NO_CHECK]}; {seen[PRE_PING]}",
        why=asks,
    )
    lab.judge(
        "4.32",
        "without pool_pre_ping a query fails after a restart of the server",
        holds=failed[NO_CHECK, RESTARTED] > 0 == failed[PRE_PING, RESTARTED],
        measured=f"failed of {requests}: {seen[NO_CHECK]}; {seen[PRE_PING]}",
        why="A pool does not look at its idle connections. The first query on a dead one fails, and "
        "SQLAlchemy then replaces all that are older. So each request of that moment fails, and no "
        "later one.",
    )
    checks, after = (PRE_PING, POLL, KIT), (RESTARTED, LOST)
    lab.judge(
        "4.16",
        "pool_pre_ping or another check deals with restarts and network trouble",
        holds={f"{arm} ({fault})": failed[arm, fault] == 0 for fault in after for arm in checks},
        measured=f"failed of {requests}: " + "; ".join(seen[arm] for arm in checks),
        why=f"{asks} A poll of the socket costs no round trip, and sees only what has arrived. "
        "poolkit's preset polls, and pings what was idle for half a second, for at most "
        "connect_timeout. The poll alone is that preset with a ping after an hour.",
    )
