"""The application, the same for every engine: only the way its database is opened differs."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from poolkit.config.metrics import PoolMetrics
from poolkit.config.settings import Settings
from poolkit.errors import PoolkitError
from webapp.configuration import WebSettings
from webapp.database import OpenDatabase, Resources
from webapp.problem_answers import BodyLimit, add_problems
from webapp.routes import add_articles, add_operations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send


def make_application(
    target: str, open_database: OpenDatabase, *, environ: Mapping[str, str] | None = None
) -> FastAPI:
    """Return the application. Its lifespan, not this function, reads settings and makes the engine.

    Args:
        target: the preset's target, and the only one that `POOLKIT_TARGET` may name.
        open_database: makes the engine, and disposes of it at the end.
        environ: by default the process's own environment, as it is when the lifespan begins.
    """

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

    app = FastAPI(
        title="Articles",
        version="1",
        lifespan=lifespan,
        # A redirect would turn "no such path" into another answer than other deployables give.
        redirect_slashes=False,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit)
    app.add_middleware(OneLineStartupFailure)
    add_problems(app)
    add_operations(app)
    add_articles(app)
    return app


class OneLineStartupFailure:
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
