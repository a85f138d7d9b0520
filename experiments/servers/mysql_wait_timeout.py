"""What does MySQL do with connections that wait?

You may have read that MySQL closes connections after 8 hours, so that they must be recycled after
one hour (1.17), and that MySQL wants a pool of 10, `pool_recycle=3600` and `pool_pre_ping=True`
(1.43).

A MariaDB gets a `wait_timeout` of 2 s, which stands for 8 hours; an hour is 0.25 s then. Pools with
and without these settings open ten connections each, and wait until the server has closed them.
Then all are checked out, and each runs a query. The same is done after the server has ended all
connections, as a restart does.

`--set checked_out=1` keeps one of the ten checked out while it waits, as a slow call does.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from poolkit.config.presets import preset
from poolkit.experiment import Lab, experiment
from poolkit.local.mariadb import EmbeddedMariaDB

HOUR_S, WAIT_TIMEOUT_S = 3600.0, 28_800
OTHERS = text(
    "SELECT id FROM information_schema.processlist WHERE user = 'poolkit' AND id <> connection_id()"
)


@contextmanager
def full_pools(url: str, size: int, recycle_s: float) -> Iterator[dict[str, Engine]]:
    """Make an engine with each setting, and open the connections of its pool."""
    engines = {
        "neither": create_engine(url, pool_size=size),
        "pool_recycle": create_engine(url, pool_size=size, pool_recycle=recycle_s),
        "pool_pre_ping": create_engine(url, pool_size=size, pool_pre_ping=True),
        "both": create_engine(url, pool_size=size, pool_recycle=recycle_s, pool_pre_ping=True),
        "poolkit's web preset": preset("web", "prod").create_engine(url, pool_size=size),
    }
    with ExitStack() as stack:
        for engine in engines.values():
            stack.callback(engine.dispose)
            while query_all(take(engine, size)):  # a busy machine took longer than wait_timeout
                pass
        yield engines


def take(engine: Engine, count: int) -> list[Connection]:
    return [engine.connect() for _ in range(count)]


def query_all(taken: list[Connection]) -> int:
    """Run a query on each connection, give all back, and return how many queries failed."""
    failed = len(taken)
    for connection in taken:
        with suppress(OperationalError):  # such as 2013, "Lost connection to MySQL server"
            connection.execute(text("SELECT 1"))
            failed -= 1
    for connection in taken:
        connection.close()
    return failed


@experiment(
    question="What does MySQL do with connections that wait?",
    rows=("1.17", "1.43"),
    seconds=12,
    needs=("mariadb",),
)
def run(
    lab: Lab,
    *,
    wait_timeout_s: int = 2,
    recycle_s: float = 0.25,
    pool_size: int = 10,
    checked_out: int = 0,
) -> None:
    lab.say("starting MariaDB")
    with EmbeddedMariaDB(lab.folder) as server, ExitStack() as stack:
        observer = create_engine(server.url(), isolation_level="AUTOCOMMIT")
        stack.callback(observer.dispose)
        admin = stack.enter_context(observer.connect())
        default_s = admin.scalar(text("SELECT @@GLOBAL.wait_timeout"))

        def set_timeout(seconds: int) -> None:  # of new connections
            admin.execute(text(f"SET GLOBAL wait_timeout = {seconds}"))

        def kill_all() -> None:
            for found in list(admin.scalars(OTHERS)):
                with suppress(OperationalError):  # it has ended by itself
                    admin.execute(text(f"KILL {found}"))

        def failures(engines: dict[str, Engine], lose: Callable[[], None]) -> dict[str, int]:
            """Use all connections of each pool when the server has ended them."""
            held = {name: take(engine, checked_out) for name, engine in engines.items()}
            lose()
            lab.wait_until("the connections end", lambda: not list(admin.scalars(OTHERS)))
            pooled = pool_size - checked_out
            return {name: query_all(held[name] + take(e, pooled)) for name, e in engines.items()}

        lab.say(f"waiting until connections are idle for longer than {wait_timeout_s} s")
        set_timeout(wait_timeout_s)
        with full_pools(server.url(), pool_size, recycle_s) as engines:
            idle = failures(engines, lambda: set_timeout(default_s))
        lab.say("ending all connections, as a restart does")
        with full_pools(server.url(), pool_size, HOUR_S) as engines:
            ended = failures(engines, kill_all)

    columns = ("setting", f"after {wait_timeout_s} s idle", "after a restart")
    rows = [(name, idle[name], ended[name]) for name in idle]
    lab.table(f"Failed queries of {pool_size}", columns, rows)
    if not lab.distance.is_none:
        lab.note("--rtt and --tls do not apply to MariaDB.")
    lab.judge(
        "1.17",
        "MySQL closes connections after 8 hours, and recycling them earlier prevents failed queries",
        holds=default_s == WAIT_TIMEOUT_S and idle["neither"] > 0 == idle["pool_recycle"],
        measured=f"wait_timeout is {default_s} s by default; lowered to {wait_timeout_s} s, "
        f"{idle['neither']} of {pool_size} queries failed without recycling, "
        f"{idle['pool_recycle']} with pool_recycle={recycle_s:g}",
        why="The server ends a session that has been idle for wait_timeout; its age does not matter. "
        "pool_recycle replaces a connection by its age, at checkout. If it is below wait_timeout, no "
        "connection of the pool is ever idle for that long.",
    )
    numbers = (f"{name} {idle[name]} and {ended[name]}" for name in idle)
    lab.judge(
        "1.43",
        "MySQL wants a pool of 10 with recycling and a ping: no query meets a closed connection",
        holds={"an idle time": idle["both"] == 0, "a restart": ended["both"] == 0},
        measured=f"of {pool_size} queries failed (idle time, restart): {', '.join(numbers)}",
        why="The ping finds a connection that the server has closed, whatever the reason, at the price "
        "of a round trip for each checkout. It does not protect one that is checked out already. "
        "Recycling helps against known limits only. The size of the pool has no part in it.",
    )
