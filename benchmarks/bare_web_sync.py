"""`GET /articles/{id}` by hand, to compare with: FastAPI, psycopg2, a generator as dependency.

As FastAPI's and SQLAlchemy's own documentation write it, with Core and with the ORM.
BARE_PRE_PING=1 sets pool_pre_ping, the usual way to survive a lost connection.
"""

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy import BigInteger, Connection, Text, create_engine, select
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


engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=20,
    max_overflow=10,
    pool_pre_ping=os.environ.get("BARE_PRE_PING") == "1",
)
make_session = sessionmaker(engine)
articles = Article.__table__


def get_session() -> Iterator[Session]:
    with make_session() as session:
        yield session


def get_connection() -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


core = FastAPI()
orm = FastAPI()


@core.get("/articles/{article_id}")
def get_article(
    article_id: int, connection: Annotated[Connection, Depends(get_connection)]
) -> ArticleOut:
    row = connection.execute(select(articles).where(articles.c.id == article_id)).one_or_none()
    if row is None:
        raise HTTPException(404)
    return ArticleOut.model_validate(row)


@orm.get("/articles/{article_id}", response_model=ArticleOut)
def get_article_entity(
    article_id: int, session: Annotated[Session, Depends(get_session)]
) -> Article:
    article = session.get(Article, article_id)
    if article is None:
        raise HTTPException(404)
    return article
