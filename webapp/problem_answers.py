"""Every error as problem details (RFC 9457); the database's own with Retry-After."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from articles.errors import ArticlesError, InputError, InvalidInput
from articles.problems import (
    MEDIA_TYPE,
    Problem,
    method_not_allowed,
    no_such_path,
    plain_problem,
    problem_of,
)
from poolkit.errors import TemporaryFailure

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

logger = logging.getLogger("webapp")


def add_problems(app: FastAPI) -> None:
    """Register the handlers; none of them blocks, for FastAPI runs plain functions in a thread."""
    app.add_exception_handler(ArticlesError, _on_domain_error)
    app.add_exception_handler(TemporaryFailure, _on_database_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


def problem_answer(error: BaseException) -> Response:
    """Return the answer to an error, see `problem_of`."""
    return _answer(problem_of(error))


def _answer(problem: Problem) -> Response:
    return Response(problem.body(), problem.status, problem.headers, MEDIA_TYPE)


async def _on_domain_error(request: Request, error: Exception) -> Response:
    return problem_answer(error)


async def _on_database_error(request: Request, error: Exception) -> Response:
    logger.warning("%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
    return problem_answer(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for it)
    if error.status_code == 404:
        return _answer(no_such_path(request.url.path))
    if error.status_code == 405:
        return _answer(method_not_allowed(request.method, _methods_at(request)))
    return _answer(plain_problem(error.status_code, error.detail, error.headers))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    """Answer for routes of a user's own that have typed parameters; the sample has none."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  (registered for it)
    found = (
        InputError(str(e["msg"]), pointer="#/" + "/".join(str(part) for part in e["loc"][1:]))
        for e in error.errors()
    )
    return problem_answer(InvalidInput(tuple(found)))


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after the answer, and the server logs its traceback.
    return problem_answer(error)


def _methods_at(request: Request) -> set[str]:
    """Collect the methods of every route at this path; Starlette names the first one's only."""
    methods: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= route.methods or set()
    return methods
