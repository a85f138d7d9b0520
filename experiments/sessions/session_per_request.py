"""One session for each request, or one for all?

You may have read that a global session keeps its connection, shows stale data and leaks (2.12), and that
each request should have its own session (2.10). And 1,000 sessions in a loop are said to be cheap (0.34).

Requests read an article: first with a session each, then with one global session. Between them another
program changes the article. Then two requests come at once, and at last one has a mistake in its SQL.
`--set after_request=commit` ends the global session's transaction after each request.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from poolkit.experiment import Lab, experiment


class Base(DeclarativeBase):
    """The base of the models."""


class Article(Base):
    """A model, as the texts have it."""

    __tablename__ = "articles"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


@experiment(
    question="One session for each request, or one for all?",
    rows=("0.34", "2.10", "2.12"),
    seconds=1,
)
def run(lab: Lab, *, after_request: str = "nothing", sessions: int = 1000) -> None:
    engine = create_engine(lab.url())
    lab.at_end(engine.dispose)
    session_local = sessionmaker(engine)
    Base.metadata.create_all(engine)
    other_program = psycopg2.connect(lab.dsn())
    lab.at_end(other_program.close)
    other_program.autocommit = True
    global_session = session_local()
    lab.at_end(global_session.close)

    @contextmanager
    def one_for_all() -> Iterator[Session]:
        try:
            yield global_session
        finally:
            if after_request != "nothing":
                getattr(global_session, after_request)()

    found = {}
    for way, session_of_request in {"one each": session_local, "one for all": one_for_all}.items():
        with session_local.begin() as db:
            db.merge(Article(id=1, title="1st"))
        with session_of_request() as db:
            article = db.get(Article, 1)
        out = engine.pool.checkedout()
        other_program.cursor().execute("UPDATE articles SET title = '2nd'")
        with session_of_request() as db:
            in_use = db.get(Article, 1).title
        del article  # a session forgets an object when nothing else refers to it
        other_program.cursor().execute("UPDATE articles SET title = '3rd'")
        with session_of_request() as db:
            again = db.get(Article, 1).title

        # Two requests at once: the first one succeeds, the second one changes its mind.
        with session_of_request() as first, session_of_request() as second:
            first.add(Article(id=2, title="new"))
            second.rollback()
            first.commit()
        with session_local() as db:
            kept = db.scalar(text("SELECT count(*) FROM articles WHERE id = 2"))

        failed = 0
        for sql in ("SELECT no_such_column", *["SELECT title FROM articles"] * 5):
            try:
                with session_of_request() as db:
                    db.execute(text(sql))
            except SQLAlchemyError:
                failed += 1
        found[way] = (out, in_use, again, kept, failed)
        with session_local.begin() as db:
            db.execute(text("DELETE FROM articles"))
    columns = ("a session", "out between", "2nd read as", "3rd read as", "row kept", "failed of 6")
    table = [(way, *what) for way, what in found.items()]
    lab.table("The requests with a session each, and with one for all", columns, table)
    global_session.close()

    lab.say(f"{sessions} sessions, one after the other")
    opened = []
    event.listen(engine, "connect", lambda *_: opened.append("one"))

    def use_session() -> None:
        with session_local() as db:
            db.execute(text("SELECT 1"))

    def use_connection() -> None:
        connection = psycopg2.connect(lab.dsn())
        connection.cursor().execute("SELECT 1")
        connection.close()

    loop = lab.time(use_session, sessions)
    took = lab.time_in_turn({"session": use_session, "connection": use_connection}, 21)

    out, in_use, again, kept, failed = found["one for all"]
    lab.judge(
        "2.12",
        "a global session keeps its connection, shows stale data, and is a leak",
        holds={
            "keeping its connection": out > 0,
            "stale data that is still in use": in_use != "2nd",
            "stale data that is loaded again": again != "3rd",
            "failing after one mistake": failed == 6,
        },
        measured=f"{out} connection out between requests; the 2nd title read as {in_use}, the 3rd as "
        f"{again}; {failed} of 6 requests failed after one mistake",
        why="Nothing ends its transaction, so it holds its connection, and stays failed after an error. "
        "Its identity map returns an object as long as something refers to it, with its old values; a "
        "commit expires them. What is loaded again is fresh.",
    )
    each = found["one each"]
    lab.judge(
        "2.10",
        "each request should have a session of its own",
        holds=each == (0, "2nd", "3rd", 1, 1) and found["one for all"] != each,
        measured=f"two requests at once, one of which rolls back: {each[3]} row kept with a session "
        f"each, {kept} with one for all; {each[4]} and {failed} of 6 requests failed after one mistake",
        why="A session is the state of one unit of work: its transaction and its objects. Two requests in "
        "one session share them, so one's rollback undoes the other's work.",
    )
    lab.judge(
        "0.34",
        f"{sessions} sessions in a loop are cheap",
        holds=len(opened) <= 1 and took["session"].median < took["connection"].median,
        measured=f"{len(opened)} connections opened, {loop.total / sessions * 1e3:.2f} ms a session with "
        f"its query; a connection and the same query: {took['connection']}",
        why="A session is a Python object, which borrows a connection that is open already.",
    )
