"""An ASGI application with SQLAlchemy under Mangum, in a Lambda function.

    from poolkit.mangum import make_handler

    app = FastAPI(lifespan=lifespan)  # makes the engine, and disposes of it at the end
    handler = make_handler(app)

Mangum runs the lifespan once for each event, so an engine that is made there is made, connected and
disposed of for each request. This handler runs it once for each execution environment: the start
in the init phase, the end at SIGTERM and before a snapshot (SnapStart); a restored copy starts
again. An engine made at the top of a module is passed as `engines`, and disposed of at the same moments.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from mangum import Mangum
from mangum.protocols import LifespanCycle

from poolkit.execution_environment import at_end
from poolkit.problems import MEDIA_TYPE, problem_of

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from mangum.types import ASGI
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ("LambdaApplication", "TemporaryFailures", "make_handler")


def make_handler(
    app: ASGI, *, engines: Sequence[Engine | AsyncEngine] = (), **mangum_options: Any
) -> LambdaApplication:
    """Start the application, and return the function's handler.

    Args:
        app: the ASGI application, such as a FastAPI.
        engines: those that the application's lifespan does not dispose of by itself.
        mangum_options: Mangum's own, such as `api_gateway_base_path`.

    Raises:
        LifespanFailure: the application's startup has failed, and so does the init phase.
    """
    handler = LambdaApplication(app, engines=engines, **mangum_options)
    handler.start()
    at_end(handler.stop, after_restore=handler.restore)
    return handler


class LambdaApplication:
    """An ASGI application in one execution environment; `make_handler` makes and starts it."""

    def __init__(
        self, app: ASGI, *, engines: Sequence[Engine | AsyncEngine] = (), **mangum_options: Any
    ) -> None:
        self._app = app
        self._engines = engines
        self._lifespan: LifespanCycle | None = None
        self._mangum = Mangum(self._call, lifespan="off", **mangum_options)
        # The loop that Mangum has set, for each request and for what belongs to it: a connection
        # of asyncpg works in no other.
        self._loop = asyncio.get_event_loop()

    def __call__(self, event: Any, context: Any) -> dict[str, Any]:
        """Answer an event of an HTTP API, a REST API, a function URL or a load balancer."""
        return self._mangum(event, context)

    def start(self) -> None:
        """Run the application's startup."""
        self._lifespan = LifespanCycle(self._app, "auto")
        self._lifespan.__enter__()

    def stop(self) -> None:
        """Run the application's shutdown, and dispose of the engines."""
        if self._loop.is_running():
            # SIGTERM in the middle of a request. Lambda sends it between requests, but for a
            # function that ran into its timeout, whose connections the server ends.
            return
        lifespan, self._lifespan = self._lifespan, None
        if lifespan is not None:
            lifespan.__exit__(None, None, None)
        for engine in self._engines:
            disposal = engine.dispose()
            if disposal is not None:  # an AsyncEngine's
                self._loop.run_until_complete(disposal)

    def restore(self) -> None:
        """Start again in a copy of a snapshot, with a random seed of its own."""
        random.seed()
        self.start()

    async def _call(self, scope: Any, receive: Any, send: Any) -> None:
        if self._lifespan is not None:
            # What the lifespan has yielded; Mangum adds it only where it runs the lifespan itself.
            scope["state"] = self._lifespan.lifespan_state.copy()
        await self._app(scope, receive, send)


class TemporaryFailures:
    """ASGI middleware that answers a failure of the database or the pool with 503.

        app.add_middleware(TemporaryFailures)

    With `Retry-After` and a problem document, as `poolkit.problems.problem_of` describes. For
    applications without `poolkit.fastapi`, which does the same and more. Other errors pass.
    """

    def __init__(self, app: ASGI) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Call the application; if it raises before it answers, answer for it."""
        has_begun = False

        async def send_and_note(message: MutableMapping[str, Any]) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            problem = problem_of(error)
            if has_begun or scope["type"] != "http" or problem.status != 503:
                raise
            body = problem.body()
            headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body))}
            encoded = [
                (name.lower().encode(), value.encode())
                for name, value in {**headers, **problem.headers}.items()
            ]
            await send({"type": "http.response.start", "status": 503, "headers": encoded})
            await send({"type": "http.response.body", "body": body})
