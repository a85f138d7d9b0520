"""The HTTP API as data: which endpoints there are, and what each does.

An endpoint knows no framework. A deployable registers `API` with its own router and, for
each request, does this and no more (or the same with `perform_async`):

    operation = endpoint.handle(Request(path_parameters, query, body))
    with unit_of_work(engine) as connection:
        response = perform(connection, operation)
    send(response.status, response.headers, response.body)

`handle` reads and checks the request when it is called, before there is a connection: bad
input costs the pool nothing. `Response.body` is encoded when it is asked for, after the
connection went back.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from articles.contract import (
    ARTICLE_SCHEMA,
    ARTICLE_UPDATE_SCHEMA,
    DOCUMENT_SCHEMA,
    DOCUMENT_WITH_CHUNKS_SCHEMA,
    NEW_ARTICLE_SCHEMA,
    NEW_DOCUMENT_SCHEMA,
    PAGE_PARAMETERS,
    PAGE_SCHEMA,
    ArticleUpdate,
    NewArticle,
    NewDocument,
    PageRequest,
    article_id_from,
    article_json,
    document_id_from,
    document_json,
    dump,
    page_json,
)
from articles.operations import (
    Operation,
    create_article,
    get_article,
    get_document,
    ingest_document,
    list_articles,
    update_article,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from articles.models import Article


# Named tuples: a frozen dataclass takes six times as long to make, at every cold start.
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Request(NamedTuple):
    """What an endpoint needs to know of a request; values are decoded, `body` is raw."""

    path_parameters: Mapping[str, str] = _NOTHING
    query: Mapping[str, Sequence[str]] = _NOTHING
    body: bytes = b""


class Response(NamedTuple):
    """An answer: its status, its content before encoding, and its headers but for the type."""

    status: int
    content: Mapping[str, Any]
    headers: Mapping[str, str] = _NOTHING

    @property
    def media_type(self) -> str:
        """The content type: every answer that is no problem is JSON."""
        return "application/json"

    @property
    def body(self) -> bytes:
        """The content as JSON, encoded anew each time."""
        return dump(self.content)


class Endpoint(NamedTuple):
    """A method and a path template, what they do, and how OpenAPI describes it."""

    name: str
    method: str
    path: str
    summary: str
    handle: Callable[[Request], Operation[Response]]
    responses: Mapping[int, Mapping[str, Any]]
    """The JSON Schema of each successful status."""
    problems: tuple[int, ...]
    """The statuses of the problems that the endpoint itself may answer with."""
    request_schema: Mapping[str, Any] | None = None
    path_parameters: Mapping[str, Mapping[str, Any]] = _NOTHING
    query_parameters: Mapping[str, Mapping[str, Any]] = _NOTHING

    @property
    def safe(self) -> bool:
        """Whether it only reads, in one statement, so that autocommit will do."""
        return self.method == "GET"


def _list_articles(request: Request) -> Operation[Response]:
    return _page_response(PageRequest.from_query(request.query))


def _page_response(page: PageRequest) -> Operation[Response]:
    return Response(200, page_json((yield from list_articles(page))))


def _create_article(request: Request) -> Operation[Response]:
    return _article_response(201, create_article(NewArticle.from_json(request.body)))


def _get_article(request: Request) -> Operation[Response]:
    return _article_response(200, get_article(_article_id(request)))


def _update_article(request: Request) -> Operation[Response]:
    change = ArticleUpdate.from_json(request.body)
    return _article_response(200, update_article(_article_id(request), change))


def _article_response(status: int, operation: Operation[Article]) -> Operation[Response]:
    article = yield from operation
    headers = {"ETag": f'"{article.version}"'}
    if status == 201:
        headers["Location"] = f"/articles/{article.id}"
    return Response(status, article_json(article), headers)


def _ingest_document(request: Request) -> Operation[Response]:
    return _ingest_response(NewDocument.from_json(request.body))


def _ingest_response(new: NewDocument) -> Operation[Response]:
    ingested = yield from ingest_document(new)
    status = 201 if ingested.outcome == "created" else 200
    location = {"Location": f"/documents/{new.id}"} if status == 201 else {}
    return Response(status, document_json(ingested.document), location)


def _get_document(request: Request) -> Operation[Response]:
    return _document_response(document_id_from(request.path_parameters["document_id"]))


def _document_response(document_id: str) -> Operation[Response]:
    found = yield from get_document(document_id)
    return Response(200, document_json(found.document, found.chunks))


def _article_id(request: Request) -> int:
    return article_id_from(request.path_parameters["article_id"])


_ARTICLE_ID = {"article_id": ARTICLE_SCHEMA["properties"]["id"]}
_DOCUMENT_ID = {"document_id": NEW_DOCUMENT_SCHEMA["properties"]["id"]}

API: tuple[Endpoint, ...] = (
    Endpoint(
        name="list_articles",
        method="GET",
        path="/articles",
        summary="List articles, newest first",
        handle=_list_articles,
        responses={200: PAGE_SCHEMA},
        problems=(422,),
        query_parameters=PAGE_PARAMETERS,
    ),
    Endpoint(
        name="create_article",
        method="POST",
        path="/articles",
        summary="Create an article",
        handle=_create_article,
        responses={201: ARTICLE_SCHEMA},
        problems=(400, 413, 422),
        request_schema=NEW_ARTICLE_SCHEMA,
    ),
    Endpoint(
        name="get_article",
        method="GET",
        path="/articles/{article_id}",
        summary="Read an article",
        handle=_get_article,
        responses={200: ARTICLE_SCHEMA},
        problems=(404, 422),
        path_parameters=_ARTICLE_ID,
    ),
    Endpoint(
        name="update_article",
        method="PATCH",
        path="/articles/{article_id}",
        summary="Change an article, if it still has the version that was read",
        handle=_update_article,
        responses={200: ARTICLE_SCHEMA},
        problems=(400, 404, 409, 413, 422),
        request_schema=ARTICLE_UPDATE_SCHEMA,
        path_parameters=_ARTICLE_ID,
    ),
    Endpoint(
        name="ingest_document",
        method="POST",
        path="/documents",
        summary="Store a document cut into chunks; 201 if it is new, 200 if its id is known",
        handle=_ingest_document,
        responses={200: DOCUMENT_SCHEMA, 201: DOCUMENT_SCHEMA},
        problems=(400, 413, 422),
        request_schema=NEW_DOCUMENT_SCHEMA,
    ),
    Endpoint(
        name="get_document",
        method="GET",
        path="/documents/{document_id}",
        summary="Read a document and its chunks",
        handle=_get_document,
        responses={200: DOCUMENT_WITH_CHUNKS_SCHEMA},
        problems=(404, 422),
        path_parameters=_DOCUMENT_ID,
    ),
)
