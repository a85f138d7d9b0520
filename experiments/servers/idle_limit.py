"""What helps against a server that closes idle connections?

You may have read that a server closes idle connections, that the next query then fails with "server
closed the connection" (1.38, 2.20), and that pool_recycle helps (1.16).

Four engines fill their pools, and wait until the server has closed the connections. Then each serves
some requests, one after the other. A limit of one second stands for hours, and pool_recycle=0.5 for
somewhat less than that.

`--set recycle_s=600` lets pool_recycle come too late.
"""

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from poolkit.config.presets import preset
from poolkit.experiment import Lab, experiment

NO_CHECK, RECYCLE, PRE_PING, KIT = "no check", "pool_recycle", "pool_pre_ping", "poolkit's preset"


def serve(engine: Engine, requests: int) -> list[str]:
    """Serve requests one after the other, and return the errors of those that failed."""
    errors = []
    for _ in range(requests):
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 'work'"))
        except DBAPIError as error:
            errors.append(str(error.orig))
    return errors


@experiment(
    question="What helps against a server that closes idle connections?",
    rows=("1.16", "1.38", "2.20"),
    seconds=2,
)
def run(lab: Lab, *, requests: int = 5, recycle_s: float = 0.5, idle_limit_s: float = 1.0) -> None:
    url, limit_ms = lab.url(), int(idle_limit_s * 1e3)
    session = {"options": f"-c idle_session_timeout={limit_ms}"}
    kit = preset("web", "prod").replace(idle_session_timeout=limit_ms)
    engines = {
        NO_CHECK: create_engine(url, connect_args=session),
        RECYCLE: create_engine(url, connect_args=session, pool_recycle=recycle_s),
        PRE_PING: create_engine(url, connect_args=session, pool_pre_ping=True),
        KIT: kit.create_engine(url),
    }
    for engine in engines.values():
        lab.at_end(engine.dispose)
        with engine.connect(), engine.connect():
            pass
    lab.say(f"waiting for the limit of {idle_limit_s:g} s")
    lab.wait_until("the server ends the sessions", lambda: not lab.backends())
    errors = {arm: serve(engine, requests) for arm, engine in engines.items()}

    failed = {arm: len(found) for arm, found in errors.items()}
    lab.table("Requests after the idle time", ("", f"failed of {requests}"), failed.items())
    numbers = f"failed of {requests}: " + ", ".join(f"{n} ({arm})" for arm, n in failed.items())
    prevents = {arm: failed[arm] == 0 < failed[NO_CHECK] for arm in (RECYCLE, PRE_PING)}
    why = (
        "A connection older than pool_recycle is replaced at its next checkout. That helps if the "
        "limit is longer than pool_recycle, and against nothing that comes by surprise: after a "
        "restart young connections fail too. A ping need not know the limit."
    )
    lab.judge(
        "1.16",
        "pool_recycle helps against a server that closes idle connections",
        holds=prevents[RECYCLE],
        measured=f"limit {idle_limit_s:g} s, pool_recycle {recycle_s:g} s; {numbers}",
        why=why,
    )
    lines = "\n".join(errors[NO_CHECK]).splitlines()
    symptom = next((line for line in lines if "closed" in line), "")
    lab.judge(
        "1.38 2.20",
        'a server closes idle connections: "server closed the connection unexpectedly"; '
        "pool_recycle and pool_pre_ping prevent it",
        # With TLS it is "SSL connection has been closed unexpectedly".
        holds={arm: helps and bool(symptom) for arm, helps in prevents.items()},
        measured=f"{symptom or 'no such error'}; {numbers}",
        why=why,
    )
