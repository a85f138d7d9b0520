"""A start that fails for a known reason says so in one line, not in a traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.errors import PoolkitError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class OneLineStartupFailure:
    """ASGI middleware around the lifespan.

    The server logs what `lifespan.startup.failed` says; Starlette puts a whole traceback
    there. A setting that is wrong or a database that is not there needs none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on but the failure of a lifespan."""
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
