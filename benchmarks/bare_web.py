"""`GET /articles/{id}` as FastAPI's and SQLAlchemy's own pages write it, to compare with.

The same schemas, the same function of the domain and the same pool size as the sample's web
services; only the engine and the dependency are by hand. BARE_PRE_PING=1 sets pool_pre_ping, the
usual way to survive a lost connection.
"""

import os
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, Response
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from articles import service
from articles.models import Article
from articles.schemas import ArticleId, ArticleOut

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
make_async_session = async_sessionmaker(async_engine, expire_on_commit=False)


def get_session() -> Iterator[Session]:
    with make_session() as session:
        yield session


async def get_async_session() -> AsyncIterator[AsyncSession]:
    async with make_async_session() as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session)]
AsyncSessionDep = Annotated[AsyncSession, Depends(get_async_session)]

app = FastAPI()
async_app = FastAPI()


@app.get("/articles/{article_id}", response_model=ArticleOut)
def get_article(article_id: ArticleId, session: SessionDep, response: Response) -> Article:
    article = service.get_article(session, article_id)
    response.headers["ETag"] = f'"{article.version}"'
    return article


@async_app.get("/articles/{article_id}", response_model=ArticleOut)
async def get_article_async(
    article_id: ArticleId, session: AsyncSessionDep, response: Response
) -> Article:
    article = await session.run_sync(service.get_article, article_id)
    response.headers["ETag"] = f'"{article.version}"'
    return article
