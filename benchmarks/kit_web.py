"""`GET /articles/{id}` on `poolkit.fastapi`, without the parts that the variable LEFT_OUT names.

The endpoint is that of bare_web.py. A part is left out by what a user leaves out, where there is
such a thing, or else by putting something empty in its place.
"""

import os
from contextlib import nullcontext
from typing import Annotated

from fastapi import Depends, FastAPI, Response
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from articles import service
from articles.models import Article
from articles.schemas import ArticleId, ArticleOut
from poolkit.fastapi import AsyncDatabase, Database, RequestLimits, add_problems, databases
from poolkit.fastapi.slots import Slots

PARTS = {
    "autocommit": "sessions in autocommit for reading",
    "checks": "the check at checkout",
    "metrics": "the pool's metrics",
    "admission": "admission in place of threads that wait",
    "deadline": "the limit for a server that does not answer",
    "errors": "the translation of errors",
    "limits": "limits of body and headers",
    "problems": "problem documents",
}
"""What can be left out; `checks` are left out by the preset's own variable."""

LEFT_OUT = set(os.environ.get("LEFT_OUT", "").split())

if "metrics" in LEFT_OUT:
    make, make_async = databases.make_engine, databases.make_async_engine
    databases.make_engine = lambda settings, _: make(settings)
    databases.make_async_engine = lambda settings, _: make_async(settings)
if "admission" in LEFT_OUT:

    async def admit(self):
        pass

    Slots.take, Slots.give_back = admit, lambda self, taken: None
if "deadline" in LEFT_OUT:
    databases.StatementDeadline.__init__ = lambda self, engine, seconds: None
    databases.StatementDeadline.sweep = lambda self, **_: None
if "errors" in LEFT_OUT:
    databases.translated = nullcontext

database, async_database = Database(), AsyncDatabase()
way = "session" if "autocommit" in LEFT_OUT else "read_session"
SessionDep = Annotated[Session, Depends(getattr(database, way), scope="function")]
AsyncSessionDep = Annotated[AsyncSession, Depends(getattr(async_database, way), scope="function")]
app = FastAPI(lifespan=database.lifespan)
async_app = FastAPI(lifespan=async_database.lifespan)
for each in (app, async_app):
    if "problems" not in LEFT_OUT:
        add_problems(each)
    if "limits" not in LEFT_OUT:
        each.add_middleware(RequestLimits)


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
