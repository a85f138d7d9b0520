"""What can be read from a row after the commit, and after the end of its session?

You may have read that a handler selects rows in `with SessionLocal() as session` and returns them
(1.31), and that async sessions need `expire_on_commit=False` (2.8).

Here rows are read after a commit, with and without `expire_on_commit`, in a Session and in an
AsyncSession; and after the end of the `with` block, with their related rows.
"""

import asyncio

from sqlalchemy import ForeignKey, create_engine, event, select
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    selectinload,
    sessionmaker,
)
from sqlalchemy.orm.exc import DetachedInstanceError

from poolkit.experiment import Lab, experiment


class Base(DeclarativeBase):
    """The base of the models."""


class User(Base):
    """A model, as the texts have it."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    articles: Mapped[list["Article"]] = relationship()


class Article(Base):
    """A row that is related to a user."""

    __tablename__ = "articles"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    title: Mapped[str]


async def read_after_commit(dsn: str, expire_on_commit: bool, refresh: bool) -> str:  # noqa: FBT001
    engine = create_async_engine(dsn)
    try:
        async with async_sessionmaker(engine, expire_on_commit=expire_on_commit)() as session:
            user = await session.get_one(User, 1)
            await session.commit()
            if refresh:
                await session.refresh(user)
            return user.name
    except MissingGreenlet as error:
        return type(error).__name__
    finally:
        await engine.dispose()


@experiment(
    question="What can be read from a row after the commit, and after the end of its session?",
    rows=("1.31", "2.8"),
    seconds=1,
)
def run(lab: Lab, *, refresh: int = 0, load: str = "lazy") -> None:
    engine = create_engine(lab.url())
    lab.at_end(engine.dispose)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(User(name="Ada", articles=[Article(title="Notes")]))
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))

    table, is_read, queries = [], {}, {}
    for expire in (True, False):
        with sessionmaker(engine, expire_on_commit=expire)() as session:
            user = session.get_one(User, 1)
            session.commit()
            before = len(statements)
            name = user.name
            queries[expire], out = len(statements) - before, engine.pool.checkedout()
        is_read["Session", expire] = name == "Ada"
        table.append(("Session", expire, name, queries[expire], out))
        name = asyncio.run(read_after_commit(lab.url("asyncpg"), expire, bool(refresh)))
        is_read["AsyncSession", expire] = name == "Ada"
        table.append(("AsyncSession", expire, name, "", ""))
    columns = ("session", "expire_on_commit", "read after the commit", "queries", "connections out")
    lab.table("user.name after session.commit()", columns, table)
    lab.judge(
        "2.8",
        "a row can be read after the commit only with expire_on_commit=False",
        holds={
            kind: is_read[kind, False] and not is_read[kind, True]
            for kind in ("AsyncSession", "Session")
        },
        measured=f"AsyncSession: {table[1][2]} with the default, {table[3][2]} without; Session: "
        f"{queries[True]} more query with the default, {queries[False]} without",
        why="A commit expires all rows of the session by default, and the next access to an "
        "attribute selects the row again. A Session does so silently: it borrows a connection "
        "again, and holds it. An AsyncSession cannot wait for a query in an attribute's access.",
    )

    with Session(engine) as session:
        query = select(User)
        if load == "eager":
            query = query.options(selectinload(User.articles))
        users = session.execute(query).scalars().all()
    out = engine.pool.checkedout()
    names = [user.name for user in users]
    try:
        titles = str([article.title for user in users for article in user.articles])
    except DetachedInstanceError as error:
        titles = type(error).__name__
    lab.judge(
        "1.31",
        "a handler may select rows in a `with` block of a session, and use them after it",
        holds={
            "the rows": out == 0 and names == ["Ada"],
            "their related rows": out == 0 and titles == "['Notes']",
        },
        measured=f"{out} connections out after the block; names {names}, articles {titles}",
        why="The end of the block returns the connection and detaches the rows. They keep what was "
        "loaded. A relationship that was not loaded needs a query, so it needs a session.",
    )
