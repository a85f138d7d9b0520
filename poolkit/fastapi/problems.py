"""Every error of a FastAPI or Starlette application as a problem document (RFC 9457), and limits."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy import exc
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from poolkit.errors import NoThread, PoolkitError, TemporaryFailure
from poolkit.fastapi.threads import is_lack_of_threads
from poolkit.problems import (
    MEDIA_TYPE,
    PROBLEM_SCHEMA,
    Problem,
    input_error_of,
    invalid_input,
    malformed_json,
    method_not_allowed,
    no_such_path,
    not_json,
    problem_of,
    status_problem,
    too_large,
)

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = (
    "HeadRequests",
    "RequestLimits",
    "add_problems",
    "problem_response",
    "problem_responses",
)

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
    app.add_exception_handler(RuntimeError, _on_failure)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_middleware(_OneLineStartupFailure)
    if isinstance(app, FastAPI):
        _describe_problems(app)


async def _on_failure(request: Request, error: Exception) -> Response:
    if is_lack_of_threads(error):  # FastAPI found none for an endpoint that is a plain function
        error = NoThread(str(error))
    problem = problem_of(error)
    if problem.status == 500:
        raise error  # a bug: Starlette answers it with `_on_bug`, and the server logs its traceback
    # The client gets the public text; the log gets hosts, roles and the driver's message.
    kind = type(error).__name__
    logger.warning("%s %s: %s: %s", request.method, request.url.path, kind, error)
    return problem_response(problem)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    # The client hung up while it sent the body. It is no bug, and there is nobody to answer.
    return problem_response(status_problem(400, "the body ended before its length"))


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
        allowed = {
            method
            for method, scope in tried
            if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
        }
        if "GET" in allowed and _uses(request.app, HeadRequests):
            allowed.add("HEAD")
        return problem_response(method_not_allowed(allowed))
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
            return problem_response(not_json())
    return problem_response(invalid_input(map(input_error_of, found)))


def _describe_problems(app: FastAPI) -> None:
    """Make OpenAPI show the problems that are answered, a 422 of FastAPI's own among them."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        is_limited = _uses(app, RequestLimits)
        for operations in document.get("paths", {}).values():
            for operation in operations.values():
                if not isinstance(operation, dict) or "responses" not in operation:
                    continue
                responses, statuses = operation["responses"], [414, 431] if is_limited else []
                if "HTTPValidationError" in str(responses.get("422")):
                    responses["422"] = problem_responses(422)[422]
                if "requestBody" in operation:
                    statuses += [400, 413, 415] if is_limited else [400, 415]
                for status, response in problem_responses(*sorted(statuses)).items():
                    responses.setdefault(str(status), response)
        schemas = document.get("components", {}).get("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's own page on it says


def _uses(app: Starlette, middleware: object) -> bool:
    return any(each.cls is middleware for each in app.user_middleware)


class RequestLimits:
    """ASGI middleware that limits a request's path, headers and body.

    app.add_middleware(RequestLimits, body=1_048_576, headers=32_768)

    A body's declared length is checked before a byte of it is read, its real length as it comes.
    A body whose end servers may see in different places is refused: a length beside a transfer
    coding, or another coding than `chunked` alone. An upload that the client gave up is one line in
    the log of `poolkit.fastapi`, at the level info.

    A server reads all headers before an application sees them. `poolkit.fastapi.server` limits them
    there, and the time that they may take.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        body: int = 1_048_576,
        headers: int = 32_768,
        header_count: int = 100,
        target: int = 8_192,
    ) -> None:
        """Store the limits.

        Args:
            app: the ASGI application.
            body: bytes of a body; by default 1 MiB, which is what SQS and an ALB carry. More is 413.
            headers: bytes of all headers' names and values. More is 431.
            header_count: the number of headers. More is 431.
            target: bytes of path and query; RFC 9110 wants 8,000 at least. More is 414.
        """
        self.app = app
        self.body = body
        self.headers = headers
        self.header_count = header_count
        self.target = target

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on and count its bytes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        size, body_headers = 0, []
        for name, value in headers:
            size += len(name) + len(value)
            if name in {b"content-length", b"transfer-encoding"}:
                body_headers.append((name, value))
        path = scope.get("raw_path") or scope["path"]
        problem = None
        if len(path) + len(scope["query_string"]) > self.target:
            detail = f"path and query may have {self.target} bytes at most; send less"
            problem = status_problem(414, detail)
        elif size > self.headers:
            detail = f"the headers may have {self.headers} bytes at most; send less"
            problem = status_problem(431, detail)
        elif len(headers) > self.header_count:
            detail = f"there may be {self.header_count} headers at most; send fewer"
            problem = status_problem(431, detail)
        elif body_headers:
            problem = self._problem_of_body(body_headers)
        if problem is not None:
            await problem_response(problem)(scope, receive, send)
        elif body_headers:
            await self.app(scope, self._counting(scope, receive), send)
        else:
            await self.app(scope, receive, send)

    def _problem_of_body(self, headers: list[tuple[bytes, bytes]]) -> Problem | None:
        # What follows a body that is framed in an unusual way could be taken for the next
        # request, by a server or a proxy before it: the connection is closed.
        close = {"Connection": "close"}
        if len(headers) > 1:
            detail = "a body has one length or one transfer coding"
            return status_problem(400, detail, close)
        name, value = headers[0]
        if name == b"transfer-encoding":
            if value.strip().lower() == b"chunked":
                return None
            detail = "a body may have the transfer coding chunked, and no other"
            return status_problem(501, detail, close)
        if not value.isdigit():
            return status_problem(400, "the content length must be a number", close)
        return too_large(self.body) if len(value) > 18 or int(value) > self.body else None

    def _counting(self, scope: Scope, receive: Receive) -> Receive:
        size, is_whole = 0, False

        async def receive_and_count() -> Message:
            nonlocal size, is_whole
            message = await receive()
            if message["type"] == "http.disconnect":
                if not is_whole:
                    is_whole = True  # so that it is one line
                    text = "%s %s: the client hung up after %d bytes of the body"
                    logger.info(text, scope["method"], scope["path"], size)
                return message
            size += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if size > self.body:
                # The one kind of error that FastAPI lets through while it reads a body.
                raise HTTPException(413, too_large(self.body).detail)
            return message

        return receive_and_count


class HeadRequests:
    """ASGI middleware that answers HEAD wherever there is a GET (RFC 9110, 9.3.2).

        app.add_middleware(HeadRequests)

    The answer has GET's headers, its Content-Length included, and no body. FastAPI's own routes
    answer HEAD with 405. A route for HEAD goes first.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application see a GET, and leave the body of its answer out."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        routes = scope["app"].routes if "app" in scope else ()
        if any(route.matches(scope)[0] is Match.FULL for route in routes):
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # A copy: the server's own scope tells it to send no body either.
        await self.app({**scope, "method": "GET"}, receive, send_without_body)


class _OneLineStartupFailure:
    """ASGI middleware that reports a failed start for a known reason in one line.

    The server logs the message of `lifespan.startup.failed`, and Starlette puts a whole traceback
    there. A wrong setting or a missing database needs none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the application's coroutine for a request, which then costs nothing here."""
        if scope["type"] == "lifespan":
            return self._lifespan(scope, receive, send)
        return self.app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass every message on, and shorten a failure."""
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
