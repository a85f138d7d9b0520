"""413 for a body that is too large, before it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from articles.errors import TooLarge
from webapp.problem_answers import problem_answer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from webapp.database import Resources


class BodyLimit:
    """ASGI middleware: a body's declared length is checked at once, its real one as it comes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 413 where the declared length is over the limit; else count."""
        if scope["type"] != "http" or not (declared := _declared(scope)):
            await self.app(scope, receive, send)
            return
        resources: Resources = scope["app"].state.resources
        limit = resources.web.max_body_bytes
        if declared.isdigit() and int(declared) > limit:
            await problem_answer(TooLarge(limit))(scope, receive, send)
        else:
            await self.app(scope, _counting(receive, limit), send)


def _declared(scope: Scope) -> bytes | None:
    """Return the content length, "chunked" or the like for one not known, None for no body."""
    for name, value in scope["headers"]:
        if name in (b"content-length", b"transfer-encoding"):
            return bytes(value)
    return None


def _counting(receive: Receive, limit: int) -> Receive:
    size = 0

    async def receive_and_count() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            # The one kind of error that FastAPI lets through while it reads a body.
            raise HTTPException(413, str(TooLarge(limit)))
        return message

    return receive_and_count
