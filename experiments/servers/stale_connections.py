"""What becomes of pooled connections that have died?

You may have read that a server closes idle connections, that the next query then fails with "server
closed the connection" (1.38, 2.20), and that pool_recycle helps (1.16); that pool_pre_ping finds a
dead connection and replaces it (0.30), so that production needs it (1.53); that without it a query
fails after a restart of the server (4.32); and that it, or a periodic check, deals with restarts and
network trouble (4.16).

Four engines fill their pools. Then their connections die: by an administrator, a restart, an idle
limit, or a firewall that forgets them without a word. Each engine serves some requests, one after the
other. An idle limit of one second stands for hours, and pool_recycle=0.5 for somewhat less than that.

`--set recycle_s=600` lets pool_recycle come too late.
"""

import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from poolkit.config.presets import preset
from poolkit.experiment import Lab, experiment

KILLED, RESTARTED, IDLE, LOST = "backend killed", "server restarted", "idle limit", "black hole"
NO_CHECK, RECYCLE, PRE_PING, KIT = "no check", "pool_recycle", "pool_pre_ping", "poolkit"


def make_engines(url: str, recycle_s: float) -> dict[str, Engine]:
    # Its check polls the socket, and pings a connection that was idle for 0.5 s.
    kit = preset("web", "prod").replace(pool_size=2, connect_timeout=2)
    return {
        NO_CHECK: create_engine(url, pool_size=2),
        RECYCLE: create_engine(url, pool_size=2, pool_recycle=recycle_s),
        PRE_PING: create_engine(url, pool_size=2, pool_pre_ping=True),
        KIT: kit.create_engine(url),
    }


def fill(engine: Engine) -> None:
    with engine.connect(), engine.connect():
        pass


def serve(engine: Engine, requests: int, errors: list[str]) -> None:
    """Serve requests one after the other, and add the error of each, or an empty text."""
    for _ in range(requests):
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 'work'"))
            errors.append("")
        except DBAPIError as error:
            errors.append(str(error.orig))


@experiment(
    question="What becomes of pooled connections that have died?",
    rows=("0.30", "1.16", "1.38", "1.53", "2.20", "4.16", "4.32"),
    seconds=14,
    needs=("own server",),
)
def run(
    lab: Lab,
    *,
    requests: int = 5,
    recycle_s: float = 0.5,
    idle_limit_s: float = 1.0,
    patience_s: float = 6.0,
) -> None:
    errors: dict[tuple[str, str], list[str]] = {}
    # The threads' own block is the outer one: they end when the network has.
    with ThreadPoolExecutor(4) as threads, lab.new_server() as server, lab.network(server) as line:

        def wait_until_ended() -> None:
            lab.wait_until("the server ends the sessions", lambda: not server.backends())

        def kill() -> None:
            server.terminate()
            wait_until_ended()

        def lose() -> None:
            time.sleep(0.6)  # the preset pings what was idle for 0.5 s
            line.network.lose_connections()

        restart, stay_idle = server.postgres.restart, wait_until_ended
        faults = {KILLED: kill, RESTARTED: restart, IDLE: stay_idle, LOST: lose}
        for fault, happens in faults.items():
            lab.say(f"{fault}: {requests} requests with each engine")
            limit = f"{idle_limit_s if fault == IDLE else 0}s"
            server.ask(f"ALTER ROLE {server.address.user} SET idle_session_timeout = '{limit}'")
            url = line.address.url() if fault == LOST else server.url()
            engines = make_engines(url, recycle_s if fault == IDLE else 3600)
            with ExitStack() as stack:
                for engine in engines.values():
                    stack.callback(engine.dispose)
                    fill(engine)
                happens()
                found: dict[str, list[str]] = {arm: [] for arm in engines}
                arms = [threads.submit(serve, engines[a], requests, found[a]) for a in engines]
                wait(arms, timeout=patience_s)
                errors |= {(arm, fault): list(each) for arm, each in found.items()}
                line.network.restore()  # a request that still waits receives a reset
                wait(arms)

    failed = {key: requests - each.count("") for key, each in errors.items()}
    lab.table(
        f"Requests of {requests} that failed, or had no answer within {patience_s:g} s",
        ("", *faults),
        [(arm, *(failed[arm, fault] for fault in faults)) for arm in engines],
    )

    def of(arm: str, *which: str) -> str:
        return f"{arm}: " + ", ".join(f"{failed[arm, fault]} ({fault})" for fault in which)

    asks = (
        "A ping is a question that the server answers before the connection is handed out. A server "
        "that ends a session says so, and the ping fails at once. In a black hole nothing answers, "
        "and a ping without a time limit waits for the kernel: about 15 minutes on Linux."
    )
    lab.judge(
        "0.30 1.53",
        "pool_pre_ping finds a dead connection and replaces it, so production needs it",
        holds={fault: failed[PRE_PING, fault] == 0 < failed[NO_CHECK, fault] for fault in faults},
        measured=f"failed of {requests}: {of(NO_CHECK, *faults)}; {of(PRE_PING, *faults)}",
        why=asks,
    )
    lab.judge(
        "4.32",
        "without pool_pre_ping a query fails after a restart of the server",
        holds=failed[NO_CHECK, RESTARTED] > 0 == failed[PRE_PING, RESTARTED],
        measured=f"failed of {requests}: {of(NO_CHECK, RESTARTED)}; {of(PRE_PING, RESTARTED)}",
        why="A pool does not look at its idle connections. The first query on a dead one fails, and "
        "SQLAlchemy then replaces all that are older. So each request of that moment fails, and no "
        "later one.",
    )
    lab.judge(
        "4.16",
        "pool_pre_ping or another check deals with restarts and network trouble",
        holds={
            f"{arm} and {fault}": failed[arm, fault] == 0
            for fault in (RESTARTED, LOST)
            for arm in (PRE_PING, KIT)
        },
        measured=f"failed of {requests}: {of(PRE_PING, RESTARTED, LOST)}; {of(KIT, RESTARTED, LOST)}",
        why=f"{asks} The preset's ping ends after connect_timeout. But to save round trips it pings only "
        "what was idle for half a second, and polls the socket of the others.",
    )
    symptom = next(filter(None, errors[NO_CHECK, IDLE]), "no error")
    prevents = {arm: failed[arm, IDLE] == 0 < failed[NO_CHECK, IDLE] for arm in (RECYCLE, PRE_PING)}
    measured = f"failed of {requests}: " + "; ".join(of(a, IDLE) for a in (NO_CHECK, *prevents))
    why = (
        "A connection older than pool_recycle is replaced at its next checkout. That helps if the "
        "limit is longer than pool_recycle, and against nothing that comes by surprise: after a "
        "restart young connections fail too. A ping need not know the limit."
    )
    lab.judge(
        "1.16",
        "pool_recycle helps against a server that closes idle connections",
        holds=prevents[RECYCLE],
        measured=f"limit {idle_limit_s:g} s, pool_recycle {recycle_s:g} s; {measured}",
        why=why,
    )
    lab.judge(
        "1.38 2.20",
        'a server closes idle connections: "server closed the connection unexpectedly"; '
        "pool_recycle and pool_pre_ping prevent it",
        holds={a: prevents[a] and "server closed the connection" in symptom for a in prevents},
        measured=f"{symptom.splitlines()[0]}; {measured}",
        why=why,
    )
