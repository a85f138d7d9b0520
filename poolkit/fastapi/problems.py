"""Every error of a FastAPI or Starlette application as a problem document (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy import exc
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from poolkit.errors import PoolkitError, TemporaryFailure
from poolkit.problems import (
    MEDIA_TYPE,
    PROBLEM_SCHEMA,
    Problem,
    input_error_of,
    invalid_input,
    malformed_json,
    method_not_allowed,
    no_such_path,
    problem_of,
    status_problem,
    too_large,
)

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ("RequestLimits", "add_problems", "problem_response", "problem_responses")

logger = logging.getLogger("poolkit.fastapi")

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


def problem_response(problem: Problem) -> Response:
    """Return a problem as a response, for an exception handler of your own.

    @app.exception_handler(NotFound)
    async def on_not_found(request: Request, error: NotFound) -> Response:
        return problem_response(status_problem(404, str(error)))
    """
    return Response(problem.body(), problem.status, problem.headers, MEDIA_TYPE)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of problems: `@app.get(..., responses=problem_responses(404))`."""
    content = {MEDIA_TYPE: {"schema": dict(PROBLEM_SCHEMA)}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }


def add_problems(app: Starlette) -> None:
    """Answer errors with problem documents, and report a failed start in one line.

    Temporary failures of the pool and the database are 503 with Retry-After, and a warning in the
    log of `poolkit.fastapi`: also those of an engine that does not come from poolkit. HTTPException
    keeps its status, detail and headers. Any other exception is a 500 without its text, and the
    server logs it. Handlers of your own for your own exceptions go before these.
    """
    # Handlers are coroutines although they do not wait: a plain function would run in a thread.
    app.add_exception_handler(TemporaryFailure, _on_failure)
    app.add_exception_handler(exc.TimeoutError, _on_failure)
    app.add_exception_handler(exc.DBAPIError, _on_failure)
    app.add_exception_handler(exc.InvalidRequestError, _on_failure)  # a PendingRollbackError, too
    app.add_exception_handler(Exception, _on_bug)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_middleware(_OneLineStartupFailure)
    if isinstance(app, FastAPI):
        _describe_problems(app)


async def _on_failure(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem.status == 500:
        raise error  # a bug: Starlette answers it with `_on_bug`, and the server logs its traceback
    # The client gets the public text; the log gets hosts, roles and the driver's message.
    kind = type(error).__name__
    logger.warning("%s %s: %s: %s", request.method, request.url.path, kind, error)
    return problem_response(problem)


async def _on_bug(request: Request, error: Exception) -> Response:
    return problem_response(problem_of(error))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    status = error.status_code
    detail: Any = error.detail  # in FastAPI's own HTTPException any JSON
    if status < 400:
        return Response(status_code=status, headers=headers)  # such as 304: not an error
    if detail != HTTPStatus(status).phrase:
        if isinstance(detail, str):
            return problem_response(status_problem(status, detail, headers))
        # FastAPI takes any JSON as detail; RFC 9457 wants a text, and other members beside it.
        more = detail if isinstance(detail, Mapping) else {"content": detail}
        problem = status_problem(status, HTTPStatus(status).phrase, headers)
        more = {name: value for name, value in more.items() if name not in problem.as_json()}
        return problem_response(problem._replace(extensions=more))
    # Starlette's own: no route has the path, or none of them has the method.
    if status == 404:
        return problem_response(no_such_path())
    if status == 405:
        # Each method is tried, because the exception names the methods of one route only.
        tried = [(method, dict(request.scope, method=method)) for method in _METHODS]
        return problem_response(
            method_not_allowed(
                method
                for method, scope in tried
                if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
            )
        )
    return problem_response(status_problem(status, detail, headers))


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    found = error.errors()
    for each in found:
        if each["type"] == "json_invalid":
            reason = f"not JSON: {each['ctx']['error']} at character {each['loc'][-1]}"
            return problem_response(malformed_json(reason))
        if tuple(each["loc"]) == ("body",) and isinstance(error.body, bytes):
            # FastAPI does not parse a body of another type; it validates the bytes.
            detail = "the body must be JSON, with the content type application/json"
            return problem_response(status_problem(415, detail))
    return problem_response(invalid_input(map(input_error_of, found)))


def _describe_problems(app: FastAPI) -> None:
    """Make OpenAPI show a problem where FastAPI would show its own body of a 422."""
    generate = app.openapi
    problem = problem_responses(422)[422]

    def openapi() -> dict[str, Any]:
        document = generate()
        for operations in document.get("paths", {}).values():
            for operation in operations.values():
                responses = operation.get("responses", {}) if isinstance(operation, dict) else {}
                if "HTTPValidationError" in str(responses.get("422")):
                    responses["422"] = problem
        schemas = document.get("components", {}).get("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's own page on it says


class RequestLimits:
    """ASGI middleware that limits a request's body and headers, in bytes.

    app.add_middleware(RequestLimits, body=1_048_576, headers=32_768)

    A body's declared length is checked before a byte of it is read, its real length as it comes.
    """

    def __init__(self, app: ASGIApp, *, body: int = 1_048_576, headers: int = 32_768) -> None:
        """Store the limits: by default 1 MiB, which is what SQS and an ALB carry, and 32 KiB."""
        self.app = app
        self.body = body
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 431 or 413, or pass the request on and count its bytes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # A number, or "chunked" and the like for a length that is not known. No header: no body.
        size, declared = 0, b""
        for name, value in scope["headers"]:
            size += len(name) + len(value)
            if name in {b"content-length", b"transfer-encoding"}:
                declared = value
        if size > self.headers:
            detail = f"the headers may have {self.headers} bytes at most; send less"
            await problem_response(status_problem(431, detail))(scope, receive, send)
        elif declared.isdigit() and int(declared) > self.body:
            await problem_response(too_large(self.body))(scope, receive, send)
        elif declared:
            await self.app(scope, self._counting(receive), send)
        else:
            await self.app(scope, receive, send)

    def _counting(self, receive: Receive) -> Receive:
        size = 0

        async def receive_and_count() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.body:
                # The one kind of error that FastAPI lets through while it reads a body.
                raise HTTPException(413, too_large(self.body).detail)
            return message

        return receive_and_count


class _OneLineStartupFailure:
    """ASGI middleware that reports a failed start for a known reason in one line.

    The server logs the message of `lifespan.startup.failed`, and Starlette puts a whole traceback
    there. A wrong setting or a missing database needs none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass every message on, and shorten the failure of a lifespan."""
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        failures: list[Message] = []

        async def hold_failure(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                failures.append(message)
            else:
                await send(message)

        try:
            await self.app(scope, receive, hold_failure)
        except BaseException as error:
            if not failures:
                raise
            if not isinstance(error, PoolkitError):
                await send(failures[0])
                raise
            await send({"type": "lifespan.startup.failed", "message": f"cannot start: {error}"})
