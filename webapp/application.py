"""The application that both web services are, apart from their endpoints."""

from fastapi import FastAPI, Request, Response

from articles.errors import NotFound, StaleVersion
from poolkit.fastapi import (
    AsyncDatabase,
    Database,
    RequestLimits,
    add_problems,
    problem_response,
    problem_responses,
)
from poolkit.problems import Problem, status_problem


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
    app.add_middleware(RequestLimits)
    add_problems(app)

    @app.exception_handler(NotFound)
    async def on_not_found(request: Request, error: NotFound) -> Response:
        return problem_response(status_problem(404, str(error)))

    @app.exception_handler(StaleVersion)
    async def on_stale_version(request: Request, error: StaleVersion) -> Response:
        current = {"current_version": error.current}
        kind = "/problems/stale-version"
        return problem_response(Problem(409, "Stale version", str(error), kind, extensions=current))

    return app
