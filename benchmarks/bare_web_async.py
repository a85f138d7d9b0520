"""As bare_web_sync.py, with asyncpg."""

import os
from collections.abc import AsyncIterator
from typing import Annotated

from bare_web_sync import Article, ArticleOut, articles
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import make_url, select
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

engine = create_async_engine(
    make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg"),
    pool_size=20,
    max_overflow=40,
    pool_pre_ping=os.environ.get("BARE_PRE_PING") == "1",
)
make_session = async_sessionmaker(engine)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with make_session() as session:
        yield session


async def get_connection() -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:
        yield connection


core = FastAPI()
orm = FastAPI()


@core.get("/articles/{article_id}")
async def get_article(
    article_id: int, connection: Annotated[AsyncConnection, Depends(get_connection)]
) -> ArticleOut:
    found = await connection.execute(select(articles).where(articles.c.id == article_id))
    row = found.one_or_none()
    if row is None:
        raise HTTPException(404)
    return ArticleOut.model_validate(row)


@orm.get("/articles/{article_id}", response_model=ArticleOut)
async def get_article_entity(
    article_id: int, session: Annotated[AsyncSession, Depends(get_session)]
) -> Article:
    article = await session.get(Article, article_id)
    if article is None:
        raise HTTPException(404)
    return article
