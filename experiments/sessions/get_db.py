"""What must get_db do: commit, roll back, close?

You may have read that the dependency commits after the handler, rolls back on an error, and closes at the
end (2.9). In general one should always commit or roll back explicitly (2.23).

FastAPI runs a dependency with `yield` as a context manager around the handler, and so does this file. One
handler inserts a row and succeeds, one inserts a row and fails. Afterwards the rows are counted, and the
connections that are out. `--set isolation_level=AUTOCOMMIT` commits each statement.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from poolkit.experiment import Lab, experiment

Maker = async_sessionmaker[AsyncSession]


async def as_in_the_text(session_maker: Maker) -> AsyncIterator[AsyncSession]:
    async with session_maker() as session:
        try:
            yield session
            await session.commit()
        except Exception:
            await session.rollback()
            raise
        finally:
            await session.close()


async def without_commit(session_maker: Maker) -> AsyncIterator[AsyncSession]:
    async with session_maker() as session:
        yield session


async def with_commit_alone(session_maker: Maker) -> AsyncIterator[AsyncSession]:
    async with session_maker() as session:
        yield session
        await session.commit()


async def with_begin(session_maker: Maker) -> AsyncIterator[AsyncSession]:
    async with session_maker.begin() as session:
        yield session


DEPENDENCIES = {
    "commit, rollback, close": as_in_the_text,
    "no commit": without_commit,
    "commit only": with_commit_alone,
    "sessionmaker.begin()": with_begin,
}


async def succeed(db: AsyncSession) -> None:
    await db.execute(text("INSERT INTO notes VALUES ('kept')"))


async def fail(db: AsyncSession) -> None:
    await db.execute(text("INSERT INTO notes VALUES ('undone')"))
    raise LookupError("no such user")


@experiment(
    question="What must get_db do: commit, roll back, close?",
    rows=("2.9", "2.23"),
    seconds=1,
)
def run(lab: Lab, *, isolation_level: str = "READ COMMITTED") -> None:
    found = asyncio.run(answer(lab, isolation_level))
    columns = ("get_db", "row of a success", "row of a failure", "connections out")
    lab.table(
        "One request that succeeds, and one that fails",
        columns,
        [(k, *v) for k, v in found.items()],
    )
    as_told = (1, 0, 0)
    text_kept, text_undone, text_out = found["commit, rollback, close"]
    lab.judge(
        "2.9",
        "with commit, rollback and close, a success is kept, a failure undone, the connection returned",
        holds=found["commit, rollback, close"] == as_told,
        measured=f"{text_kept} row kept of a success, {text_undone} of a failure, {text_out} "
        "connections out",
        why="The commit stands after the yield and runs only if the handler did not raise. Then the "
        "end of the block closes the session, which rolls back what is open and returns the "
        "connection.",
    )
    lab.judge(
        "2.23",
        "one has to commit or roll back explicitly",
        holds={
            "the commit": found["no commit"] != as_told,
            "the rollback": found["commit only"] != as_told,
        },
        measured=f"{found['no commit'][0]} row kept of a success without commit, "
        f"{found['commit only'][1]} of a failure without rollback",
        why="Without a commit, the end of the session rolls back, and the work of a request that "
        "answered 200 is lost without an error. The same rollback makes the explicit one "
        "unnecessary, as long as the session is closed. sessionmaker.begin() does both.",
    )


async def answer(lab: Lab, isolation_level: str) -> dict[str, tuple[int, int, int]]:
    engine = create_async_engine(lab.url("asyncpg"), isolation_level=isolation_level)
    session_maker = async_sessionmaker(engine, expire_on_commit=False)
    found = {}
    try:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE notes (what text)"))
        for name, get_db in DEPENDENCIES.items():
            for handler in (succeed, fail):
                with suppress(LookupError):
                    async with asynccontextmanager(get_db)(session_maker) as db:
                        await handler(db)
            out = engine.pool.checkedout()
            async with engine.begin() as connection:
                rows = (await connection.scalars(text("DELETE FROM notes RETURNING what"))).all()
            found[name] = (rows.count("kept"), rows.count("undone"), out)
    finally:
        await engine.dispose()
    return found
