"""What an orchestrator and a monitor ask: /healthz, /readyz, /metrics."""

from typing import Any, Final

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.responses import Response

from webapp.database import DatabaseDependency, Resources
from webapp.exposition import PoolCollector
from webapp.openapi import problem_responses

_TEXT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


def add_operations(app: FastAPI) -> None:
    """Register the three routes."""
    app.add_api_route(
        "/healthz",
        _healthz,
        response_class=Response,
        responses=_TEXT,
        summary="Whether the process answers; the database is not asked",
    )
    app.add_api_route(
        "/readyz",
        _readyz,
        response_class=Response,
        responses=_TEXT | problem_responses(503),
        summary="Whether there is a database, and a connection to it free",
    )
    app.add_api_route(
        "/metrics",
        _metrics,
        response_class=Response,
        responses=_TEXT,
        summary="The connection pool's counters, for Prometheus",
    )


async def _healthz() -> Response:
    return Response("ok\n", media_type="text/plain")


async def _readyz(database: DatabaseDependency) -> Response:
    await database.check()
    return Response("ready\n", media_type="text/plain")


async def _metrics(request: Request) -> Response:
    resources: Resources = request.app.state.resources
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PoolCollector(resources.settings.target, resources.database.snapshot()))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
