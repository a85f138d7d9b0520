"""When does a FastAPI request give its connection back?

You may have read that the code after a dependency's `yield` closes the session when the endpoint's
function ends (0.22), or after the response (2.11).

Here a real server streams its response, and the client stops reading in the middle: how many
connections are out of the pool? Then the code after `yield` commits, and the database refuses the
commit: what does the client receive? `scope` is an argument of `Depends`.
"""

import http.client
from collections.abc import Iterator
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

    @app.get("/depends")
    def titles(db: Annotated[Session, Depends(get_db, scope=scope)]) -> StreamingResponse:
        return StreamingResponse(in_two_parts(db.scalars(select(Article.title)).all()))

    @app.get("/depends-function")
    def titles_sooner(
        db: Annotated[Session, Depends(get_db, scope="function")],
    ) -> StreamingResponse:
        return StreamingResponse(in_two_parts(db.scalars(select(Article.title)).all()))

    @app.get("/with")
    def titles_with() -> StreamingResponse:
        with session_local() as db:
            titles = db.scalars(select(Article.title)).all()
        return StreamingResponse(in_two_parts(titles))

    def commit_db() -> Iterator[Session]:
        with session_local() as db:
            yield db
            db.commit()

    @app.post("/depends", status_code=201)
    def add(db: Annotated[Session, Depends(commit_db, scope=scope)]) -> None:
        db.add(Article(title="One"))

    @app.post("/depends-function", status_code=201)
    def add_sooner(db: Annotated[Session, Depends(commit_db, scope="function")]) -> None:
        db.add(Article(title="One"))

    @app.post("/with", status_code=201)
    def add_with() -> None:
        with session_local.begin() as db:
            db.add(Article(title="One"))

    return app


@experiment(
    question="When does a FastAPI request give its connection back?",
    rows=("0.22", "2.11"),
    seconds=2,
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
    arms = {
        "/depends": f'Depends(get_db), scope="{scope}"',
        "/depends-function": 'Depends(get_db, scope="function")',
        "/with": "with SessionLocal() in the endpoint",
    }
    out, status = {}, {}
    lab.say("a client stops in the middle of each response")
    with lab.serve(make_app(session_local, scope, read_on)) as port:
        for path in arms:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            lab.at_end(client.close)
            client.request("GET", path)
            response = client.getresponse()
            response.read(3)
            out[path] = engine.pool.checkedout()
            read_on.set()
            response.read()
            lab.wait_until("a checkin", lambda: engine.pool.checkedout() == 0)
            read_on.clear()
            client.request("POST", path)
            status[path] = client.getresponse().status
    with session_local() as db:
        stored = db.scalar(select(func.count()).select_from(Article)) - 1
    lab.table(
        "A response that is read half, and a commit that fails",
        ("endpoint", "connections out", "status of the POST"),
        [(arm, out[path], status[path]) for path, arm in arms.items()],
    )
    lab.note(f"{stored} of {len(arms)} articles with a title that exists were stored")
    scopes = {scope: "/depends", "function": "/depends-function"}
    measured = "in the middle of the response: " + ", ".join(
        f'{out[path]} out with scope="{name}"' for name, path in scopes.items()
    )
    lab.judge(
        "0.22",
        "the session of Depends(get_db) is closed when the endpoint's function ends",
        holds={f'scope="{name}"': out[path] == 0 for name, path in scopes.items()},
        measured=measured,
        why="Since version 0.118, FastAPI runs the code after yield when the response has been sent. "
        "A slow client of a streamed response holds a connection as long as it reads. With "
        'scope="function" the code runs before the response, as after `with` in the endpoint.',
    )
    lab.judge(
        "2.11",
        "the session is closed after the response",
        holds={f'scope="{name}"': out[path] == 1 for name, path in scopes.items()},
        measured=f"{measured}; a commit that failed: status "
        + ", ".join(f'{status[path]} with scope="{name}"' for name, path in scopes.items()),
        why="What runs after the response cannot change it. A commit after yield that fails, as by "
        "a constraint that is checked at the commit, follows a response that promised success.",
    )
