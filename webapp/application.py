"""The application: the same for every engine but for how its database is opened."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from poolkit.config.metrics import PoolMetrics
from poolkit.config.settings import Settings
from webapp.articles_routes import add_articles
from webapp.body_limit import BodyLimit
from webapp.configuration import WebSettings
from webapp.database import OpenDatabase, Resources
from webapp.openapi import describe
from webapp.operations_routes import add_operations
from webapp.problem_answers import add_problems
from webapp.startup import OneLineStartupFailure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping


def make_application(
    target: str, open_database: OpenDatabase, *, environ: Mapping[str, str] | None = None
) -> FastAPI:
    """Return the application; settings are read, and the engine made, in its lifespan.

    Args:
        target: the preset's target, and the only one that `POOLKIT_TARGET` may name.
        open_database: makes the engine, and disposes of it at the end.
        environ: by default the process's own environment, as it is when the lifespan begins.
    """
    app = FastAPI(
        title="Articles",
        version="1",
        lifespan=_lifespan(target, open_database, environ),
        # A redirect would turn "no such path" into another answer than other deployables give.
        redirect_slashes=False,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit)
    app.add_middleware(OneLineStartupFailure)
    add_problems(app)
    add_operations(app)
    add_articles(app)
    describe(app)
    return app


def _lifespan(
    target: str, open_database: OpenDatabase, environ: Mapping[str, str] | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        variables = os.environ if environ is None else environ
        web = WebSettings.from_environ(variables)
        settings = Settings.from_environ(
            variables, default_target=target, allowed_targets=(target,)
        )
        async with open_database(settings, PoolMetrics()) as database:
            app.state.resources = Resources(database=database, settings=settings, web=web)
            yield

    return lifespan
