"""When does a FastAPI request give its connection back?

You may have read that the code after a dependency's `yield` closes the session when the endpoint's
function ends (0.22), or after the response (2.11).

Here a real server streams its response, and the client stops reading in the middle: how many
connections are out of the pool? Then the code after `yield` commits, and the database refuses the
commit: what does the client receive? `scope` is an argument of `Depends`.
"""

import http.client
from collections.abc import Iterator
from contextlib import closing
from threading import Event
from typing import Annotated, Literal

from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import UniqueConstraint, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from poolkit.experiment import Lab, experiment


class Base(DeclarativeBase):
    """The base of the models."""


class Article(Base):
    """A model, as the texts have it. PostgreSQL checks its titles at the commit."""

    __tablename__ = "articles"
    __table_args__ = (UniqueConstraint("title", deferrable=True, initially="DEFERRED"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


def make_app(
    session_local: sessionmaker[Session], scope: Literal["request", "function"], read_on: Event
) -> FastAPI:
    app = FastAPI()

    def in_two_parts(titles: list[str]) -> Iterator[str]:
        yield ", ".join(titles)
        read_on.wait(60)
        yield "."

    def get_db() -> Iterator[Session]:
        db = session_local()
        try:
            yield db
        finally:
            db.close()

    @app.get("/dependency")
    def titles(db: Annotated[Session, Depends(get_db, scope=scope)]) -> StreamingResponse:
        return StreamingResponse(in_two_parts(db.scalars(select(Article.title)).all()))

    @app.get("/with")
    def titles_with() -> StreamingResponse:
        with session_local() as db:
            titles = db.scalars(select(Article.title)).all()
        return StreamingResponse(in_two_parts(titles))

    def get_db_and_commit() -> Iterator[Session]:
        with session_local() as db:
            yield db
            db.commit()

    @app.post("/dependency", status_code=201)
    def add(db: Annotated[Session, Depends(get_db_and_commit, scope=scope)]) -> None:
        db.add(Article(title="One"))

    @app.post("/with", status_code=201)
    def add_with() -> None:
        with session_local.begin() as db:
            db.add(Article(title="One"))

    return app


@experiment(
    question="When does a FastAPI request give its connection back?",
    rows=("0.22", "2.11"),
    seconds=1,
)
def run(lab: Lab, *, scope: str = "request") -> None:
    engine = create_engine(lab.url())
    lab.at_end(engine.dispose)
    Base.metadata.create_all(engine)
    session_local = sessionmaker(engine)
    with session_local.begin() as db:
        db.add(Article(title="One"))
    read_on = Event()
    lab.at_end(read_on.set)
    scopes = {f'scope="{scope}"': scope, 'scope="function"': "function"}
    arms = {name: (each, "/dependency") for name, each in scopes.items()}
    arms["with SessionLocal()"] = ("function", "/with")

    out, status = {}, {}
    for arm, (its_scope, path) in arms.items():
        lab.say(f"{arm}: a client stops in the middle of the response")
        read_on.clear()
        with (
            lab.serve(make_app(session_local, its_scope, read_on)) as port,
            closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client,
        ):
            client.request("GET", path)
            response = client.getresponse()
            response.read(3)
            out[arm] = engine.pool.checkedout()
            read_on.set()
            response.read()
            lab.wait_until("the connection is back", lambda: engine.pool.checkedout() == 0)
            client.request("POST", path)
            status[arm] = client.getresponse().status
    with session_local() as db:
        stored = db.scalar(select(func.count()).select_from(Article)) - 1

    columns = ("the endpoint's session", "connections out", "answer to the POST")
    rows = [(arm, out[arm], status[arm]) for arm in arms]
    lab.table("A response that is half read, and a commit that fails", columns, rows)
    held = ", ".join(f"{out[name]} out with {name}" for name in scopes)
    lab.judge(
        "0.22",
        "the session of Depends(get_db) is closed when the endpoint's function ends",
        holds={name: out[name] == 0 for name in scopes},
        measured=f"in the middle of the response: {held}",
        why="Since version 0.118, FastAPI runs the code after `yield` when the response has been "
        "sent. A client that reads a streamed response slowly holds a connection as long. With "
        'scope="function", the code runs before the response; so does the end of a `with` block.',
    )
    answers = ", ".join(f"{status[name]} with {name}" for name in scopes)
    lab.judge(
        "2.11",
        "the session is closed after the response",
        holds={name: out[name] == 1 for name in scopes},
        measured=f"in the middle of the response: {held}; {stored} of {len(arms)} articles were "
        f"stored, with the answers {answers}",
        why="What runs after the response cannot change it. If the code after `yield` commits, and "
        "the commit fails, the client has received a success. PostgreSQL checks a deferred "
        "constraint at the commit, and finds conflicts of serializable transactions there.",
    )
