"""The HTTP API as data: every endpoint with its description and its function.

An endpoint depends on no framework. A deployable registers `API` with its own router and, for
each request, does this and no more (or the same with `perform_async`):

    operation = endpoint.handle(Request(path_parameters, query, body))
    with unit_of_work(engine) as connection:
        response = perform(connection, operation)
    send(response.status, response.headers, response.body)

`handle` reads and checks the request when it is called, before there is a connection: bad
input costs the pool nothing. `Response.body` is encoded when it is read, after the connection was
returned.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from articles import operations
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

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from articles.models import Article
    from articles.operations import Operation

# Named tuples: a frozen dataclass takes six times as long to make, at every cold start.
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Request(NamedTuple):
    """The parts of a request that an endpoint needs; values are decoded, `body` is raw."""

    path_parameters: Mapping[str, str] = _NOTHING
    query: Mapping[str, Sequence[str]] = _NOTHING
    body: bytes = b""


class Response(NamedTuple):
    """An answer: its status, its content before encoding, and its headers except the type."""

    status: int
    content: Mapping[str, Any]
    headers: Mapping[str, str] = _NOTHING

    @property
    def media_type(self) -> str:
        """The content type: every answer is JSON, except a problem document."""
        return "application/json"

    @property
    def body(self) -> bytes:
        """The content as JSON, encoded at each access."""
        return dump(self.content)


class Endpoint(NamedTuple):
    """A method and a path template with their function, and the facts that OpenAPI shows."""

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
        """Whether it only reads, in one statement, so that autocommit is enough."""
        return self.method == "GET"


def endpoint(
    method: str, path: str, **description: Any
) -> Callable[[Callable[[Request], Operation[Response]]], Endpoint]:
    """Return a decorator that makes an Endpoint; the docstring becomes its summary."""

    def make(handle: Callable[[Request], Operation[Response]]) -> Endpoint:
        # `python -OO` leaves no docstrings.
        summary = (handle.__doc__ or handle.__name__).removesuffix(".")
        return Endpoint(handle.__name__, method, path, summary, handle, **description)

    return make


_ARTICLE_ID = {"article_id": ARTICLE_SCHEMA["properties"]["id"]}
_DOCUMENT_ID = {"document_id": NEW_DOCUMENT_SCHEMA["properties"]["id"]}


@endpoint(
    "GET",
    "/articles",
    responses={200: PAGE_SCHEMA},
    problems=(422,),
    query_parameters=PAGE_PARAMETERS,
)
def list_articles(request: Request) -> Operation[Response]:
    """List articles, newest first."""
    page = PageRequest.from_query(request.query)

    def respond() -> Operation[Response]:
        found = yield from operations.list_articles(page)
        return Response(200, page_json(found))

    return respond()


@endpoint(
    "POST",
    "/articles",
    responses={201: ARTICLE_SCHEMA},
    problems=(400, 413, 422),
    request_schema=NEW_ARTICLE_SCHEMA,
)
def create_article(request: Request) -> Operation[Response]:
    """Create an article."""
    new = NewArticle.from_json(request.body)
    return _article_response(201, operations.create_article(new))


@endpoint(
    "GET",
    "/articles/{article_id}",
    responses={200: ARTICLE_SCHEMA},
    problems=(404, 422),
    path_parameters=_ARTICLE_ID,
)
def get_article(request: Request) -> Operation[Response]:
    """Read an article."""
    article_id = article_id_from(request.path_parameters["article_id"])
    return _article_response(200, operations.get_article(article_id))


@endpoint(
    "PATCH",
    "/articles/{article_id}",
    responses={200: ARTICLE_SCHEMA},
    problems=(400, 404, 409, 413, 422),
    request_schema=ARTICLE_UPDATE_SCHEMA,
    path_parameters=_ARTICLE_ID,
)
def update_article(request: Request) -> Operation[Response]:
    """Change an article, if it still has the version that was read."""
    change = ArticleUpdate.from_json(request.body)
    article_id = article_id_from(request.path_parameters["article_id"])
    return _article_response(200, operations.update_article(article_id, change))


def _article_response(status: int, operation: Operation[Article]) -> Operation[Response]:
    article = yield from operation
    headers = {"ETag": f'"{article.version}"'}
    if status == 201:
        headers["Location"] = f"/articles/{article.id}"
    return Response(status, article_json(article), headers)


@endpoint(
    "POST",
    "/documents",
    responses={200: DOCUMENT_SCHEMA, 201: DOCUMENT_SCHEMA},
    problems=(400, 413, 422),
    request_schema=NEW_DOCUMENT_SCHEMA,
)
def ingest_document(request: Request) -> Operation[Response]:
    """Store a document cut into chunks; 201 if it is new, 200 if its id exists."""
    new = NewDocument.from_json(request.body)

    def respond() -> Operation[Response]:
        ingested = yield from operations.ingest_document(new)
        if ingested.outcome != "created":
            return Response(200, document_json(ingested.document))
        headers = {"Location": f"/documents/{new.id}"}
        return Response(201, document_json(ingested.document), headers)

    return respond()


@endpoint(
    "GET",
    "/documents/{document_id}",
    responses={200: DOCUMENT_WITH_CHUNKS_SCHEMA},
    problems=(404, 422),
    path_parameters=_DOCUMENT_ID,
)
def get_document(request: Request) -> Operation[Response]:
    """Read a document and its chunks."""
    document_id = document_id_from(request.path_parameters["document_id"])

    def respond() -> Operation[Response]:
        found = yield from operations.get_document(document_id)
        return Response(200, document_json(found.document, found.chunks))

    return respond()


API: tuple[Endpoint, ...] = (
    list_articles,
    create_article,
    get_article,
    update_article,
    ingest_document,
    get_document,
)
