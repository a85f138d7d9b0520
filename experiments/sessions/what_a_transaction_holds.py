"""When does a transaction take its connection, and when does it return it?

You may have read that `commit()` borrows a connection, sends the INSERT and returns it (0.17). `begin()` is
said to borrow one at once (0.36), for the whole transaction, which should therefore be short (0.37).

Here transactions begin and end in each way. After each step, the pool reports how many connections are out,
the engine which SQL it has sent, and the server the state of the connection. `--set objects=0` adds nothing.
"""

import time

from sqlalchemy import create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from poolkit.experiment import Lab, experiment


class Base(DeclarativeBase):
    """The base of the models."""


class Article(Base):
    """A model, as the texts have it."""

    __tablename__ = "articles"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


@experiment(
    question="When does a transaction take its connection, and when does it return it?",
    rows=("0.17", "0.36", "0.37"),
    seconds=1,
)
def run(lab: Lab, *, objects: int = 1) -> None:
    engine = create_engine(lab.url())
    lab.at_end(engine.dispose)
    Base.metadata.create_all(engine)
    borrowed, sent, out, table = [], [], {}, []
    event.listen(engine, "checkout", lambda *_: borrowed.append("a connection"))
    event.listen(engine, "before_cursor_execute", lambda *event: sent.append(event[2].split()[0]))

    def after(step: str) -> list[str]:
        (backend,) = lab.backends()
        out[step] = engine.pool.checkedout()
        done = [*borrowed, *sent]
        row = (step, len(borrowed), " ".join(sent) or "-", out[step], backend.state)
        table.append(row)
        borrowed.clear()
        sent.clear()
        return done

    new = [Article(title="Pools") for _ in range(3 * objects)]
    with Session(engine) as db:
        db.add_all(new[:objects])
        after("Session(), add()")
        db.commit()
        by_first_commit = after("commit()")
    with Session(engine) as db:
        db.scalars(select(Article)).all()
        after("Session(), query")
        db.add_all(new[objects : 2 * objects])
        after("add()")
        db.commit()
        by_second_commit = after("commit() after a query")
    with Session(engine) as db:
        db.begin()
        after("Session.begin()")
        db.add_all(new[2 * objects :])
        db.flush()
        after("add(), flush()")
        time.sleep(0.02)
        after("work before the commit")
        db.commit()
        after("its commit()")
    with engine.begin():
        after("engine.begin()")
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as db:
        db.scalars(select(Article)).all()
        after("query in AUTOCOMMIT")
    after("its close()")
    columns = ("after", "borrowed", "SQL sent", "out", "state on the server")
    lab.table("Transactions step by step", columns, table)

    all_three = ["a connection", "INSERT"]
    lab.judge(
        "0.17",
        "commit() borrows a connection, sends the INSERT, and returns the connection",
        holds={
            "a session that has only added": by_first_commit == all_three and out["commit()"] == 0,
            "a session that has queried before": by_second_commit == all_three
            and out["commit() after a query"] == 0,
        },
        measured=f"after add(): {' and '.join(by_first_commit) or 'nothing'}; "
        f"after a query and add(): {' and '.join(by_second_commit) or 'nothing'}",
        why="commit() first flushes, over the connection of the session's transaction. If there is no "
        "transaction yet, the flush borrows a connection; without anything to flush, commit() needs "
        "none. The end of the transaction returns it in each case.",
    )
    lab.judge(
        "0.36",
        "begin() takes a connection at once",
        holds={
            "Session.begin()": out["Session.begin()"] == 1,
            "engine.begin()": out["engine.begin()"] == 1,
        },
        measured=f"{out['Session.begin()']} out after Session.begin(), "
        f"{out['engine.begin()']} after engine.begin()",
        why="Session.begin() only marks the beginning; the first SQL borrows the connection. "
        "engine.begin() borrows one, and yet the server shows it as idle: the driver sends BEGIN "
        "together with the first statement.",
    )
    inside = (out["add(), flush()"], out["work before the commit"], out["its commit()"])
    lab.judge(
        "0.37",
        "a transaction holds its connection until it ends, so it should be short",
        holds=inside == (1, 1, 0),
        measured=f"{inside[0]} out after the flush, {inside[1]} after work, {inside[2]} after commit",
        why="The server keeps a transaction in one backend, so the pool cannot lend that connection "
        "before the end. AUTOCOMMIT does not help a session: the server shows idle, and yet the "
        "session holds the connection until it is closed.",
    )
