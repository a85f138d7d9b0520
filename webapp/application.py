"""The application that both web services are, apart from their endpoints."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request, Response
from pydantic.json_schema import SkipJsonSchema

from articles.errors import NotFound, PreconditionFailed, StaleVersion
from poolkit.fastapi import (
    AsyncDatabase,
    Database,
    HeadRequests,
    RequestLimits,
    WatchHolds,
    add_problems,
    problem_response,
    problem_responses,
)
from poolkit.preconditions import matches
from poolkit.problems import Problem, status_problem


# A coroutine although it does not wait: a plain function would run in a thread.
async def _precondition(
    if_match: Annotated[
        list[str] | SkipJsonSchema[None],  # a header cannot be null
        Header(description="Entity tags that the article may have, or `*`."),
    ] = None,
) -> Callable[[int], bool] | None:
    """Return what the header If-Match asks of a version."""
    if if_match is None:
        return None
    return lambda version: matches(",".join(if_match), f'"{version}"')


PreconditionDep = Annotated[Callable[[int], bool] | None, Depends(_precondition)]


def new_application(database: Database | AsyncDatabase) -> FastAPI:
    """Return an application that answers every error with a problem document (RFC 9457)."""
    app = FastAPI(
        title="Articles",
        version="1",
        lifespan=database.lifespan,
        # A redirect would turn "no such path" into another answer than other deployables give.
        redirect_slashes=False,
        redoc_url=None,
        responses=problem_responses(503),
    )
    app.add_middleware(HeadRequests)
    app.add_middleware(RequestLimits)
    app.add_middleware(WatchHolds)
    add_problems(app)

    @app.exception_handler(NotFound)
    async def on_not_found(request: Request, error: NotFound) -> Response:
        return problem_response(status_problem(404, str(error)))

    @app.exception_handler(StaleVersion)
    async def on_stale_version(request: Request, error: StaleVersion) -> Response:
        current = {"current_version": error.current}
        kind = "/problems/stale-version"
        return problem_response(Problem(409, "Stale version", str(error), kind, extensions=current))

    @app.exception_handler(PreconditionFailed)
    async def on_precondition_failed(request: Request, error: PreconditionFailed) -> Response:
        current = {"current_version": error.current}
        problem = status_problem(412, str(error))
        return problem_response(problem._replace(extensions=current))

    return app
