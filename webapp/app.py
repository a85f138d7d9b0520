"""The synchronous web service: `uvicorn webapp.app:app`."""

from typing import Annotated, Any

from fastapi import Depends, Response
from sqlalchemy.orm import Session

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
from poolkit.fastapi import Database, operations, problem_responses
from webapp.application import PreconditionDep, new_application

database = Database()
SessionDep = Annotated[Session, Depends(database.session, scope="function")]
ReadSessionDep = Annotated[Session, Depends(database.read_session, scope="function")]

app = new_application(database)


@app.get("/articles", response_model=Page)
def list_articles(
    session: ReadSessionDep, limit: Limit = 20, before: ArticleId | None = None
) -> dict[str, Any]:
    """List articles, newest first."""
    # One more than the page holds shows whether there is another page.
    found = service.list_articles(session, limit=limit + 1, before=before)
    items, more = found[:limit], found[limit:]
    return {"items": items, "next_before": items[-1].id if more else None}


@app.post("/articles", status_code=201, response_model=ArticleOut)
def create_article(new: NewArticle, session: SessionDep, response: Response) -> Article:
    """Create an article."""
    article = service.create_article(session, title=new.title, body=new.body)
    response.headers["Location"] = f"/articles/{article.id}"
    response.headers["ETag"] = f'"{article.version}"'
    return article


@app.get("/articles/{article_id}", response_model=ArticleOut, responses=problem_responses(404))
def get_article(article_id: ArticleId, session: ReadSessionDep, response: Response) -> Article:
    """Read an article."""
    article = service.get_article(session, article_id)
    response.headers["ETag"] = f'"{article.version}"'
    return article


@app.patch(
    "/articles/{article_id}", response_model=ArticleOut, responses=problem_responses(404, 409, 412)
)
def update_article(
    article_id: ArticleId,
    change: ArticleUpdate,
    precondition: PreconditionDep,
    session: SessionDep,
    response: Response,
) -> Article:
    """Change an article, if it still has the version that was read."""
    article = service.update_article(
        session, article_id, **change.model_dump(), precondition=precondition
    )
    response.headers["ETag"] = f'"{article.version}"'
    return article


@app.post(
    "/documents",
    status_code=201,
    response_model=DocumentOut,
    responses={200: {"model": DocumentOut}},
)
def ingest_document(new: NewDocument, session: SessionDep, response: Response) -> Document:
    """Store a document cut into chunks; 201 if it is new, 200 if its id exists."""
    document, is_new = service.ingest_document(session, **new.model_dump())
    response.headers["Location"] = f"/documents/{document.id}"
    if not is_new:
        response.status_code = 200
    return document


@app.get(
    "/documents/{document_id}", response_model=DocumentWithChunks, responses=problem_responses(404)
)
def get_document(document_id: DocumentId, session: ReadSessionDep) -> Document:
    """Read a document and its chunks."""
    return service.get_document(session, document_id)


# Last, because paths are tried in order.
app.include_router(operations(database))
