"""The endpoints of `articles.api` as FastAPI routes."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from starlette.responses import Response

from articles import api
from webapp.database import DatabaseDependency
from webapp.openapi import endpoint_description


def add_articles(app: FastAPI) -> None:
    """Register every endpoint of the API."""
    for endpoint in api.API:
        app.add_api_route(
            endpoint.path,
            _route(endpoint),
            methods=[endpoint.method],
            name=endpoint.name,
            response_class=Response,
            **endpoint_description(endpoint),
        )


def _route(endpoint: api.Endpoint) -> Callable[..., Awaitable[Response]]:
    has_body = endpoint.request_schema is not None

    async def answer(request: Request, database: DatabaseDependency) -> Response:
        body = await request.body() if has_body else b""
        operation = endpoint.handle(api.Request(request.path_params, _query(request), body))
        result = await database.run(operation, autocommit=endpoint.safe)
        return Response(result.body, result.status, result.headers, result.media_type)

    return answer


def _query(request: Request) -> Mapping[str, Sequence[str]]:
    text: Any = request.scope["query_string"]
    return parse_qs(text.decode("latin-1"), keep_blank_values=True) if text else {}
