"""FastAPI and SQLAlchemy as their own pages show them: the application to compare a drill with.

The engine has the usual careful settings: `pool_pre_ping`, and a pool of 20+10. Everything else is
a default. It writes to a table of its own, which the drill makes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import QueuePool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

TABLE = "poolkit_drill_notes"
CREATE_TABLE = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} "
    "(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text NOT NULL, body text NOT NULL)"
)


class Base(DeclarativeBase):
    """The base of the one model."""


class Note(Base):
    """A row of the drill's table."""

    __tablename__ = TABLE

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    body: Mapped[str]


class NewNote(BaseModel):
    """The body of a request that writes."""

    title: str
    body: str


class NoteOut(NewNote):
    """A note as it is answered."""

    model_config = ConfigDict(from_attributes=True)

    id: int


class Database:
    """The engine and its sessions, as globals of a module would be."""

    engine: Engine
    make_session: sessionmaker[Session]


def get_session() -> Iterator[Session]:
    """Yield a session for one request."""
    with Database.make_session() as session:
        yield session


def application() -> FastAPI:
    """Return the application; the variable DATABASE_URL names its database."""
    url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg2")
    Database.engine = create_engine(url, pool_size=20, max_overflow=10, pool_pre_ping=True)
    Database.make_session = sessionmaker(Database.engine)
    app = FastAPI()

    @app.post("/notes", status_code=201)
    def create_note(new: NewNote, session: Annotated[Session, Depends(get_session)]) -> NoteOut:
        note = Note(title=new.title, body=new.body)
        session.add(note)
        session.commit()
        return NoteOut.model_validate(note)

    @app.get("/notes/{note_id}")
    def read_note(note_id: int, session: Annotated[Session, Depends(get_session)]) -> NoteOut:
        note = session.get(Note, note_id)
        if note is None:
            raise HTTPException(404)
        return NoteOut.model_validate(note)

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok"

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        # Under the name of poolkit's own metric, so that one reader serves all targets.
        pool = Database.engine.pool
        used = pool.checkedout() if isinstance(pool, QueuePool) else 0
        return f'poolkit_pool_checked_out{{target="bare"}} {used}\n'

    return app
