"""Every error as problem details (RFC 9457), and 413 before too large a body is read."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from articles.problems import (
    MEDIA_TYPE,
    Problem,
    method_not_allowed,
    no_such_path,
    plain_problem,
    problem_of,
)
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from articles.errors import ArticlesError, InputError, InvalidInput, TooLarge
from poolkit.errors import TemporaryFailure

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from webapp.database import Resources

logger = logging.getLogger("webapp")


def add_problems(app: FastAPI) -> None:
    """Register the exception handlers.

    `problem_of` decides the answer. The handlers are coroutines although none of them waits:
    FastAPI runs a plain function in a thread.
    """

    # Starlette answers an `Exception` last, raises it again, and the server logs its traceback.
    @app.exception_handler(Exception)
    @app.exception_handler(ArticlesError)
    async def on_error(request: Request, error: Exception) -> Response:
        return _response(problem_of(error))

    @app.exception_handler(TemporaryFailure)
    async def on_temporary_failure(request: Request, error: TemporaryFailure) -> Response:
        # The client gets the public text; the log gets hosts, roles and the driver's message.
        kind = type(error).__name__
        logger.warning("%s %s: %s: %s", request.method, request.url.path, kind, error)
        return _response(problem_of(error))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return _response(no_such_path(request.url.path))
        if error.status_code != 405:
            return _response(plain_problem(error.status_code, error.detail, error.headers))
        # Starlette names the methods of the first route at this path only.
        methods: set[str] = set()
        for route in request.app.routes:
            match, _ = route.matches(request.scope)
            if match is not Match.NONE:
                methods |= route.methods or set()
        return _response(method_not_allowed(request.method, methods))

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        # For routes of your own that have typed parameters; the sample has none.
        found = (
            InputError(str(e["msg"]), pointer="#/" + "/".join(str(part) for part in e["loc"][1:]))
            for e in error.errors()
        )
        return _response(problem_of(InvalidInput(tuple(found))))


def _response(problem: Problem) -> Response:
    return Response(problem.body(), problem.status, problem.headers, MEDIA_TYPE)


class BodyLimit:
    """ASGI middleware: a body's declared length is checked at once, its real one as it comes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 413 if the declared length is over the limit; else count the bytes."""
        declared = None
        if scope["type"] == "http":
            # A number, or "chunked" and the like for a length that is not known. No header: no body.
            lengths = (b"content-length", b"transfer-encoding")
            declared = next((value for name, value in scope["headers"] if name in lengths), None)
        if not declared:
            await self.app(scope, receive, send)
            return
        resources: Resources = scope["app"].state.resources
        limit = resources.web.max_body_bytes
        if declared.isdigit() and int(declared) > limit:
            await _response(problem_of(TooLarge(limit)))(scope, receive, send)
            return
        size = 0

        async def receive_and_count() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                # The one kind of error that FastAPI lets through while it reads a body.
                raise HTTPException(413, str(TooLarge(limit)))
            return message

        await self.app(scope, receive_and_count, send)
