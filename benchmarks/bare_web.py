"""`GET /articles/{id}` by hand, to compare with: FastAPI, and a generator as dependency.

As FastAPI's and SQLAlchemy's own documentation write it, with Core and with the ORM, on psycopg2 in
threads and on asyncpg. BARE_PRE_PING=1 sets pool_pre_ping, the usual way to survive a lost
connection.
"""

import os
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy import BigInteger, Connection, Text, create_engine, make_url, select
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "articles"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    version: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class ArticleOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    title: str
    body: str
    version: int
    created_at: datetime
    updated_at: datetime


URL = make_url(os.environ["DATABASE_URL"])
PRE_PING = os.environ.get("BARE_PRE_PING") == "1"
# An engine opens its first connection when it is used, so a process only pays for one of them.
engine = create_engine(
    URL.set(drivername="postgresql+psycopg2"), pool_size=20, max_overflow=10, pool_pre_ping=PRE_PING
)
async_engine = create_async_engine(
    URL.set(drivername="postgresql+asyncpg"), pool_size=20, max_overflow=40, pool_pre_ping=PRE_PING
)
make_session = sessionmaker(engine)
make_async_session = async_sessionmaker(async_engine)
articles = Article.__table__
core_sync, orm_sync, core_async, orm_async = FastAPI(), FastAPI(), FastAPI(), FastAPI()


def get_connection() -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def get_session() -> Iterator[Session]:
    with make_session() as session:
        yield session


async def get_async_connection() -> AsyncIterator[AsyncConnection]:
    async with async_engine.connect() as connection:
        yield connection


async def get_async_session() -> AsyncIterator[AsyncSession]:
    async with make_async_session() as session:
        yield session


@core_sync.get("/articles/{article_id}")
def get_article(
    article_id: int, connection: Annotated[Connection, Depends(get_connection)]
) -> ArticleOut:
    row = connection.execute(select(articles).where(articles.c.id == article_id)).one_or_none()
    if row is None:
        raise HTTPException(404)
    return ArticleOut.model_validate(row)


@orm_sync.get("/articles/{article_id}", response_model=ArticleOut)
def get_article_entity(
    article_id: int, session: Annotated[Session, Depends(get_session)]
) -> Article:
    article = session.get(Article, article_id)
    if article is None:
        raise HTTPException(404)
    return article


@core_async.get("/articles/{article_id}")
async def get_article_async(
    article_id: int, connection: Annotated[AsyncConnection, Depends(get_async_connection)]
) -> ArticleOut:
    found = await connection.execute(select(articles).where(articles.c.id == article_id))
    row = found.one_or_none()
    if row is None:
        raise HTTPException(404)
    return ArticleOut.model_validate(row)


@orm_async.get("/articles/{article_id}", response_model=ArticleOut)
async def get_article_entity_async(
    article_id: int, session: Annotated[AsyncSession, Depends(get_async_session)]
) -> Article:
    article = await session.get(Article, article_id)
    if article is None:
        raise HTTPException(404)
    return article
