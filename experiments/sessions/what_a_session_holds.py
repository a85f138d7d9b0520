"""What does a session hold, step by step?

You may have read that `SessionLocal()` and `add()` take no connection (0.1, 0.16). Then a session is said to
borrow one for each query only (0.4, 0.5, 0.23, 0.25, 0.40): for 8 ms of a request of 50 ms (0.24). And its
`close()` returns the connection without closing it (0.2, 0.3, 0.26).

Here each step is done. After it, the pool reports how many connections are out, and the server reports the
state of the connection. `--set after_query=commit` ends the transaction after each query.
"""

import time

from sqlalchemy import create_engine, event, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from poolkit.experiment import Lab, Times, experiment


class Base(DeclarativeBase):
    """The base of the models."""


class Article(Base):
    """A model, as the texts have it."""

    __tablename__ = "articles"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


@experiment(
    question="What does a session hold, step by step?",
    rows=("0.1", "0.2", "0.3", "0.4", "0.5", "0.16", "0.23", "0.24", "0.25", "0.26", "0.40"),
    seconds=1,
)
def run(lab: Lab, *, after_query: str = "nothing") -> None:
    engine = create_engine(lab.url())
    lab.at_end(engine.dispose)
    Base.metadata.create_all(engine)
    session_local = sessionmaker(engine)
    # Checkouts and checkins alternate, because only one session is used at a time.
    moments: list[float] = []
    event.listen(engine, "checkout", lambda *_: moments.append(time.perf_counter()))
    event.listen(engine, "checkin", lambda *_: moments.append(time.perf_counter()))
    pids, out, table = set(), {}, []

    def after(step: str) -> None:
        out[step] = engine.pool.checkedout()
        (backend,) = lab.backends()
        pids.add(backend.pid)
        checkouts = (len(moments) + 1) // 2
        table.append((step, out[step], engine.pool.checkedin(), checkouts, backend.state))

    def query(db: Session) -> None:
        db.scalars(select(Article)).all()
        if after_query == "commit":
            db.commit()

    db = session_local()
    after("SessionLocal()")
    db.add(Article(title="Pools"))
    after("add()")
    db.commit()
    after("commit()")
    query(db)
    after("query")
    time.sleep(0.02)
    after("Python work")
    query(db)
    after("second query")
    db.commit()
    after("second commit()")
    db.scalars(select(Article)).all()
    after("third query")
    db.close()
    after("close()")
    with session_local() as db:
        query(db)
        after("second session")
    after("its close()")
    lab.table("Two sessions", ("after", "out", "in the pool", "checkouts", "on the server"), table)
    lab.bars("Connections out of the pool after each step", out, unit="out")

    lab.say("7 requests with a query and Python work")
    moments.clear()

    def request() -> None:
        with session_local() as db:
            db.execute(text("SELECT pg_sleep(0.008)"))
            if after_query == "commit":
                db.commit()
            time.sleep(0.042)

    took_ms = lab.time(request, 7).median * 1e3
    held = [end - begin for begin, end in zip(moments[::2], moments[1::2], strict=True)]
    held_ms = Times(held).median * 1e3

    lab.judge(
        "0.1 0.16",
        "a new session, and objects added to it, take no connection",
        holds=out["SessionLocal()"] == 0 and out["add()"] == 0,
        measured=f"{out['SessionLocal()']} out after SessionLocal(), {out['add()']} after add()",
        why="A session asks its engine for a connection when it has the first SQL to send. Objects "
        "wait in memory for the flush.",
    )
    between = f"{out['query']} out after the query, {out['Python work']} after the Python work"
    why = (
        "The first SQL begins a transaction, which lives in one connection. The session keeps both "
        "until commit, rollback or close, and the server shows it as idle in transaction."
    )
    lab.judge(
        "0.4 0.5 0.23 0.40",
        "a session returns its connection after each query, and holds none while Python works",
        holds=out["query"] == 0 and out["Python work"] == 0,
        measured=between,
        why=why,
    )
    lab.judge(
        "0.24",
        "a request of 50 ms holds its connection only for the 8 ms of its query",
        holds=held_ms < took_ms / 2,
        measured=f"held for {held_ms:.0f} of {took_ms:.0f} ms",
        why=why,
    )
    lab.judge(
        "0.25",
        "it is a misconception that each session holds a connection",
        holds={
            "a session before its first query": out["SessionLocal()"] == 0,
            "one between its queries": out["Python work"] == 0,
            "one after its commit": out["second commit()"] == 0,
        },
        measured=f"{between}, {out['second commit()']} after the commit",
        why=why,
    )
    lab.judge(
        "0.2 0.3 0.26",
        "close() ends the session, which is one thing; its connection, another thing, stays open",
        holds=(out["third query"], out["close()"]) == (1, 0) and len(pids) == 1,
        measured=f"{out['close()']} out after close(); both sessions used {len(pids)} connection",
        why="The pool owns the connection. close() rolls back what is open and returns it, and the "
        "next session borrows the same one. Only a connection beyond pool_size is closed then.",
    )
