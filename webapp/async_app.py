"""The asynchronous web service: `uvicorn webapp.async_app:app`."""

from typing import Annotated, Any

from fastapi import Depends, Response
from sqlalchemy.ext.asyncio import AsyncSession

from articles import service
from articles.models import Article, Document
from articles.schemas import (
    ArticleId,
    ArticleOut,
    ArticleUpdate,
    DocumentId,
    DocumentOut,
    DocumentWithChunks,
    Limit,
    NewArticle,
    NewDocument,
    Page,
)
from poolkit.fastapi import AsyncDatabase, operations, problem_responses
from webapp.application import PreconditionDep, new_application

database = AsyncDatabase()
SessionDep = Annotated[AsyncSession, Depends(database.session, scope="function")]
ReadSessionDep = Annotated[AsyncSession, Depends(database.read_session, scope="function")]

app = new_application(database)


@app.get("/articles", response_model=Page)
async def list_articles(
    session: ReadSessionDep, limit: Limit = 20, before: ArticleId | None = None
) -> dict[str, Any]:
    """List articles, newest first."""
    # One more than the page holds shows whether there is another page.
    found = await session.run_sync(service.list_articles, limit=limit + 1, before=before)
    items, more = found[:limit], found[limit:]
    return {"items": items, "next_before": items[-1].id if more else None}


@app.post("/articles", status_code=201, response_model=ArticleOut)
async def create_article(new: NewArticle, session: SessionDep, response: Response) -> Article:
    """Create an article."""
    article = await session.run_sync(service.create_article, title=new.title, body=new.body)
    response.headers["Location"] = f"/articles/{article.id}"
    response.headers["ETag"] = f'"{article.version}"'
    return article


@app.get("/articles/{article_id}", response_model=ArticleOut, responses=problem_responses(404))
async def get_article(
    article_id: ArticleId, session: ReadSessionDep, response: Response
) -> Article:
    """Read an article."""
    article = await session.run_sync(service.get_article, article_id)
    response.headers["ETag"] = f'"{article.version}"'
    return article


@app.patch(
    "/articles/{article_id}", response_model=ArticleOut, responses=problem_responses(404, 409, 412)
)
async def update_article(
    article_id: ArticleId,
    change: ArticleUpdate,
    precondition: PreconditionDep,
    session: SessionDep,
    response: Response,
) -> Article:
    """Change an article, if it still has the version that was read."""
    article = await session.run_sync(
        service.update_article, article_id, **change.model_dump(), precondition=precondition
    )
    response.headers["ETag"] = f'"{article.version}"'
    return article


@app.post(
    "/documents",
    status_code=201,
    response_model=DocumentOut,
    responses={200: {"model": DocumentOut}},
)
async def ingest_document(new: NewDocument, session: SessionDep, response: Response) -> Document:
    """Store a document cut into chunks; 201 if it is new, 200 if its id exists."""
    document, is_new = await session.run_sync(service.ingest_document, **new.model_dump())
    response.headers["Location"] = f"/documents/{document.id}"
    if not is_new:
        response.status_code = 200
    return document


@app.get(
    "/documents/{document_id}", response_model=DocumentWithChunks, responses=problem_responses(404)
)
async def get_document(document_id: DocumentId, session: ReadSessionDep) -> Document:
    """Read a document and its chunks."""
    return await session.run_sync(service.get_document, document_id)


# Last, because paths are tried in order.
app.include_router(operations(database))
