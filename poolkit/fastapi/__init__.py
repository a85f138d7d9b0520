"""FastAPI and Starlette on an engine of poolkit: lifespan, sessions, problems, operations.

    database = Database()  # reads nothing yet: the lifespan does
    SessionDep = Annotated[Session, Depends(database.session, scope="function")]

    app = FastAPI(lifespan=database.lifespan)
    add_problems(app)
    app.add_middleware(RequestLimits)
    app.add_middleware(HeadRequests)
    app.add_middleware(WatchHolds)

    @app.get("/articles/{article_id}")
    def read_article(article_id: int, session: SessionDep) -> ArticleOut: ...

    app.include_router(operations(database))  # last, because paths are tried in order

`AsyncDatabase` is the same for `async def` and an `AsyncSession`. With Starlette alone the lifespan,
the problems and the limits work as they are, and `asynccontextmanager(database.session)(request)`
is a session.
"""

from poolkit.fastapi.databases import AsyncDatabase, Database
from poolkit.fastapi.holds import WatchHolds
from poolkit.fastapi.operations import operations
from poolkit.fastapi.problems import (
    HeadRequests,
    RequestLimits,
    add_problems,
    problem_response,
    problem_responses,
)

__all__ = (
    "AsyncDatabase",
    "Database",
    "HeadRequests",
    "RequestLimits",
    "WatchHolds",
    "add_problems",
    "operations",
    "problem_response",
    "problem_responses",
)
