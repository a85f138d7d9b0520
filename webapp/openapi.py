"""The OpenAPI document: what the endpoints' own JSON Schemas say, and nothing guessed."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from articles.problems import MEDIA_TYPE, PROBLEM_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi import FastAPI

    from articles.api import Endpoint

_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def describe(app: FastAPI) -> None:
    """Add the schema that all problems share, once the document is first asked for."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def endpoint_description(endpoint: Endpoint) -> dict[str, Any]:
    """Return what `add_api_route` needs to know of an endpoint."""
    extra: dict[str, Any] = {"parameters": list(_parameters(endpoint))}
    if endpoint.request_schema is not None:
        extra["requestBody"] = {"required": True, "content": _json(endpoint.request_schema)}
    return {
        "operation_id": endpoint.name,
        "summary": endpoint.summary,
        "status_code": min(endpoint.responses),
        "responses": {
            **{status: _success(status, schema) for status, schema in endpoint.responses.items()},
            **problem_responses(*endpoint.problems, 503),
        },
        "openapi_extra": extra,
    }


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of answers that are problem details."""
    return {status: _problem(status) for status in statuses}


def _success(status: int, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": HTTPStatus(status).phrase, "content": _json(schema)}


def _problem(status: int) -> dict[str, Any]:
    described = {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": _PROBLEM}},
    }
    return described | ({"headers": _RETRY_AFTER} if status == 503 else {})


def _parameters(endpoint: Endpoint) -> Iterable[dict[str, Any]]:
    for name, schema in endpoint.path_parameters.items():
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    for name, schema in endpoint.query_parameters.items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
