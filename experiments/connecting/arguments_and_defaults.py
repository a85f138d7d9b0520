"""Do the arguments and defaults exist that are printed about engines?

You may have read that the defaults are pool_size 5, max_overflow 10 and pool_timeout 30 (1.7), and
pool_recycle 3600 (1.8); that max_connections is one more limit (2.4); that an engine pools by itself
(3.17); that `conn.execute("SELECT 1")` is a query (3.19); and that `conn.close()` after the `with`
block gives the connection back (4.26).

Each of these lines is run here as it is printed.
"""

import inspect

from sqlalchemy import create_engine, exc, text
from sqlalchemy.pool import Pool, QueuePool

from poolkit.experiment import Lab, experiment


@experiment(
    question="Do the arguments and defaults exist that are printed about engines?",
    rows=("1.7", "1.8", "2.4", "3.17", "3.19", "4.26"),
    seconds=1,
)
def run(lab: Lab, *, argument: str = "max_connections") -> None:
    engine = create_engine(lab.url())
    pids = []
    for _ in range(2):
        with engine.connect() as conn:
            pids.append(conn.execute(text("SELECT pg_backend_pid()")).scalar())
    before_close = engine.pool.checkedout()
    conn.close()
    after_close = engine.pool.checkedout()

    errors = {"execute": "", "argument": ""}
    try:
        with engine.connect() as conn:
            conn.execute("SELECT 1")
    except exc.ObjectNotExecutableError as error:
        errors["execute"] = f"{type(error).__name__}: {error}"
    try:
        create_engine(lab.url(), **{argument: 100})
    except TypeError as error:
        errors["argument"] = str(error).split(",")[0]
    engine.dispose()
    lab.wait_until("the engine's connections are closed", lambda: not lab.backends())

    defaults = {
        "pool_size": engine.pool.size(),
        "max_overflow": inspect.signature(QueuePool).parameters["max_overflow"].default,
        "pool_timeout": engine.pool.timeout(),
        "pool_recycle": inspect.signature(Pool).parameters["recycle"].default,
    }
    lab.table("Defaults of create_engine", ("argument", "default"), defaults.items())
    why = (
        "create_engine passes these arguments on to the pool that it makes. An engine without any "
        "keeps 5 connections, opens 10 more under load, and lets a caller wait 30 s. It replaces "
        "no connection because of its age: pool_recycle=-1 means never."
    )
    lab.judge(
        "1.7",
        "by default pool_size is 5, max_overflow 10, pool_timeout 30 s",
        holds=tuple(defaults.values())[:3] == (5, 10, 30),
        measured=", ".join(f"{name}={value:g}" for name, value in defaults.items()),
        why=why,
    )
    lab.judge(
        "1.8",
        "by default a connection is replaced after an hour",
        holds=defaults["pool_recycle"] == 3600,
        measured=f"pool_recycle={defaults['pool_recycle']}",
        why=why,
    )
    lab.judge(
        "2.4",
        f"create_engine has an argument {argument}",
        holds=not errors["argument"],
        measured=f"create_engine({argument}=100): {errors['argument'] or 'accepted'}",
        why="max_connections is a setting of the PostgreSQL server. The limit of a pool is "
        "pool_size + max_overflow. create_engine raises a TypeError for a name it does not know.",
    )
    lab.judge(
        "3.17",
        "an engine pools connections without being told to",
        holds=pids[0] == pids[1],
        measured=f"two `with engine.connect()` used {len(set(pids))} server process(es)",
        why="create_engine makes a QueuePool unless poolclass names another. The second block gets "
        "the connection that the first one gave back.",
    )
    lab.judge(
        "3.19",
        'conn.execute("SELECT 1") runs a query',
        holds=not errors["execute"],
        measured=errors["execute"] or "it ran",
        why="Since SQLAlchemy 2.0 a plain string is no statement. text() makes one of it, and "
        "exec_driver_sql() passes a string to the driver.",
    )
    lab.judge(
        "4.26",
        "after `with engine.connect() as conn`, conn.close() gives the connection back",
        holds=after_close < before_close,
        measured=f"{before_close} checked out before conn.close(), {after_close} after it",
        why="The end of the `with` block has closed `conn`, which gives the connection to the pool. "
        "A second close does nothing. Without the block, close() is what gives it back.",
    )
