"""Each request as a unit of work: which route holds a connection, and which after the response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.config.holds import unit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ("WatchHolds",)


class WatchHolds:
    """ASGI middleware that makes each request a unit of work, with its route's template as label.

        app.add_middleware(WatchHolds)

    It serves every engine whose checkouts are measured: those of `Database` and `AsyncDatabase`, of
    `make_engine` with metrics, and those that are attached. Add it last, so that it stands before all
    others: its end of a response is the last byte that the application sends.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count the connections that are still out after its response."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        with unit(lambda: _label(scope)) as work:

            async def send_and_count(message: Message) -> None:
                await send(message)
                kind = message["type"]
                if kind == "http.response.body" and not message.get("more_body", False):
                    work.responded()

            await self.app(scope, receive, send_and_count)


def _label(scope: Scope) -> str:
    """Return a request's method and its route's template, such as `GET /orders/{order_id}`."""
    method = scope.get("method", "WS")
    # FastAPI from 0.137 on keeps the route of an included router, with its prefix, here.
    included = scope.get("fastapi", {}).get("effective_route_context")
    for route in (included, scope.get("route")):
        template = getattr(route, "path_format", None)
        if template:
            return f"{method} {template}"
    if "endpoint" not in scope:
        return f"{method} (no route)"
    # Starlette alone keeps the parameters only.
    path = scope["path"]
    for name, value in scope.get("path_params", {}).items():
        path = path.replace(f"/{value}", f"/{{{name}}}", 1)
    return f"{method} {path}"
