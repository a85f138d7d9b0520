"""A tiny application on `poolkit.fastapi`, synchronous and asynchronous, as a user writes it.

Its one table is `notes`, which each test makes.
"""

from typing import Annotated, Any

from fastapi import Depends, FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from poolkit.fastapi import AsyncDatabase, Database, RequestLimits, add_problems, operations

CREATE_TABLE = "CREATE TABLE notes (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text)"


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class NewNote(BaseModel):
    text: str


class NoteOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    text: str


def new_application(database: Database | AsyncDatabase, **options: Any) -> FastAPI:
    app = FastAPI(lifespan=database.lifespan, **options)
    add_problems(app)
    app.add_middleware(RequestLimits)
    app.include_router(operations(database))
    return app


# -- with plain functions -------------------------------------------------------------------

database = Database()
SessionDep = Annotated[Session, Depends(database.session, scope="function")]
ReadSessionDep = Annotated[Session, Depends(database.read_session, scope="function")]
app = new_application(database)


@app.post("/notes", status_code=201, response_model=NoteOut)
def create_note(new: NewNote, session: SessionDep) -> Note:
    note = Note(text=new.text)
    session.add(note)
    session.flush()
    return note


@app.get("/notes", response_model=list[NoteOut])
def list_notes(session: ReadSessionDep) -> Any:
    return session.scalars(select(Note).order_by(Note.id)).all()


@app.get("/locked")
def wait_for_lock(session: SessionDep) -> str:
    session.execute(select(func.pg_advisory_xact_lock(1)))
    return "got it"


# -- with coroutines ------------------------------------------------------------------------

async_database = AsyncDatabase()
AsyncSessionDep = Annotated[AsyncSession, Depends(async_database.session, scope="function")]
AsyncReadSessionDep = Annotated[
    AsyncSession, Depends(async_database.read_session, scope="function")
]
async_app = new_application(async_database)


@async_app.post("/notes", status_code=201, response_model=NoteOut)
async def create_note_async(new: NewNote, session: AsyncSessionDep) -> Note:
    note = Note(text=new.text)
    session.add(note)
    await session.flush()
    return note


@async_app.get("/notes", response_model=list[NoteOut])
async def list_notes_async(session: AsyncReadSessionDep) -> Any:
    return (await session.scalars(select(Note).order_by(Note.id))).all()


@async_app.get("/locked")
async def wait_for_lock_async(session: AsyncSessionDep) -> str:
    await session.execute(select(func.pg_advisory_xact_lock(1)))
    return "got it"
