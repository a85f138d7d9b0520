"""What does MySQL do with connections that wait?

You may have read that MySQL closes connections after 8 hours, so that they must be recycled after
one hour (1.17), and that MySQL wants a pool of 10, `pool_recycle=3600` and `pool_pre_ping=True`
(1.43).

A MariaDB gets a `wait_timeout` of 2 s, which stands for 8 hours; an hour is 0.25 s then. Pools with
and without these settings open ten connections each, and wait until the server has closed them.
Then the ten are checked out together, and each runs a query. After that the server ends all
connections, as a restart does, and the pools are used again.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from poolkit.config.presets import preset
from poolkit.experiment import Lab, experiment
from poolkit.local.mariadb import EmbeddedMariaDB

HOUR_S, WAIT_TIMEOUT_S = 3600.0, 28_800
ONE = text("SELECT 1")
OTHERS = text(
    "SELECT id FROM information_schema.processlist WHERE user = 'poolkit' AND id <> connection_id()"
)
DEFAULT = text(
    "SELECT default_value FROM information_schema.system_variables "
    "WHERE variable_name = 'WAIT_TIMEOUT'"
)


@contextmanager
def engines(url: str, pool_size: int, recycle_s: float) -> Iterator[dict[str, Engine]]:
    """Make an engine with each setting, and open the connections of its pool."""
    recycle, ping = {"pool_recycle": recycle_s}, {"pool_pre_ping": True}
    settings: dict[str, dict[str, Any]] = {
        "neither": {},
        "pool_recycle": recycle,
        "pool_pre_ping": ping,
        "both": recycle | ping,
    }
    made = {name: create_engine(url, pool_size=pool_size, **settings[name]) for name in settings}
    made["poolkit's web preset"] = preset("web", "prod").create_engine(url, pool_size=pool_size)
    try:
        for engine in made.values():
            while failures(engine, pool_size):  # a busy machine took longer than wait_timeout
                pass
        yield made
    finally:
        for engine in made.values():
            engine.dispose()


def failures(engine: Engine, count: int) -> int:
    """Take connections, use each, give them back; return how many of the queries failed."""
    taken = [engine.connect() for _ in range(count)]
    failed = count
    for connection in taken:
        with suppress(OperationalError):  # such as 2013, "Lost connection to MySQL server"
            connection.execute(ONE)
            failed -= 1
    for connection in taken:
        connection.close()
    return failed


def own_id(engine: Engine) -> int:
    """Return the server's id of a connection of the engine, or 0 if the connection is lost."""
    with suppress(OperationalError), engine.connect() as connection:
        return connection.execute(text("SELECT connection_id()")).scalar_one()
    return 0


def others(connection: Connection) -> list[int]:
    """Return the ids of all other connections."""
    return list(connection.execute(OTHERS).scalars())


@experiment(
    question="What does MySQL do with connections that wait?",
    rows=("1.17", "1.43"),
    seconds=10,
    needs=("mariadb",),
)
def run(lab: Lab, *, wait_timeout_s: int = 2, recycle_s: float = 0.25, pool_size: int = 10) -> None:
    lab.say("starting MariaDB")
    with ExitStack() as stack:
        settings = {"wait_timeout": str(wait_timeout_s)}
        server = stack.enter_context(EmbeddedMariaDB(lab.folder, settings=settings))
        observer = create_engine(server.url(), isolation_level="AUTOCOMMIT")
        stack.callback(observer.dispose)
        admin = stack.enter_context(observer.connect())
        admin.execute(text("SET SESSION wait_timeout = 600"))
        default_s = int(admin.execute(DEFAULT).scalar_one())

        lab.say(f"waiting until connections are idle for longer than {wait_timeout_s} s")
        with engines(server.url(), pool_size, recycle_s) as made:
            used = create_engine(server.url(), pool_size=1)
            stack.callback(used.dispose)
            first = own_id(used)
            lab.wait_until(
                "idle connections are closed", lambda: own_id(used) and len(others(admin)) == 1
            )
            is_same = own_id(used) == first
            # For new connections: those that replace the closed ones shall last.
            admin.execute(text(f"SET GLOBAL wait_timeout = {default_s}"))
            idle = {name: failures(engine, pool_size) for name, engine in made.items()}

        lab.say("ending all connections, as a restart does")
        with engines(server.url(), pool_size, HOUR_S) as made:
            for pid in others(admin):
                with suppress(OperationalError):  # it has ended by itself
                    admin.execute(text(f"KILL {pid}"))
            lab.wait_until("connections are ended", lambda: not others(admin))
            ended = {name: failures(engine, pool_size) for name, engine in made.items()}

            arms = {name: partial(failures, engine, 1) for name, engine in made.items()}
            times = lab.time_in_turn(arms, 100)

    lab.table(
        f"Failed queries of {pool_size}; checkout, query and return in ms, p50",
        ("setting", f"after {wait_timeout_s} s idle", "after a restart", "ms"),
        [(name, idle[name], ended[name], times[name].median * 1e3) for name in idle],
    )
    lab.judge(
        "1.17",
        "MySQL closes connections after 8 hours, and recycling them earlier prevents failed queries",
        holds=default_s == WAIT_TIMEOUT_S and idle["neither"] > 0 and idle["pool_recycle"] == 0,
        measured=f"wait_timeout is {default_s} s by default; lowered to {wait_timeout_s} s, "
        f"{idle['neither']} of {pool_size} queries failed without recycling, "
        f"{idle['pool_recycle']} with pool_recycle={recycle_s:g}; a connection in use all the time "
        f"was {'kept' if is_same else 'closed'}",
        why="The server ends a session that has been idle for wait_timeout; its age does not matter. "
        "The pool learns of it by a failed query only. pool_recycle replaces a connection by its age, "
        "so if it is below wait_timeout, no connection of the pool reaches that.",
    )
    recommended = {"after an idle time": idle["both"], "after a restart": ended["both"]}
    lab.judge(
        "1.43",
        "MySQL wants a pool of 10 with recycling and a ping: no query meets a closed connection",
        holds={name: failed == 0 for name, failed in recommended.items()},
        measured=f"with both {idle['both']} and {ended['both']} of {pool_size} queries failed (idle, "
        f"restart), with the ping alone {idle['pool_pre_ping']} and {ended['pool_pre_ping']}, with "
        f"recycling alone {idle['pool_recycle']} and {ended['pool_recycle']}, with neither "
        f"{idle['neither']} and {ended['neither']}",
        why="The ping finds every connection that the server has closed, whatever the reason, at the "
        "price of a round trip for each checkout. Recycling only helps against limits that are known "
        "in advance. The number of connections has no part in it.",
    )
