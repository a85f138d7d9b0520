"""The routes: the endpoints of `articles.api`, then /healthz, /readyz and /metrics.

OpenAPI shows the JSON Schemas that the endpoints check, and nothing that FastAPI would guess.
"""

from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from itertools import accumulate
from typing import Any, Final
from urllib.parse import parse_qs

from articles.problems import MEDIA_TYPE, PROBLEM_SCHEMA
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.responses import Response

from articles import api
from poolkit.config.metrics import BUCKETS, Histogram, PoolSnapshot
from webapp.database import DatabaseDependency, Resources

_TEXT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


def add_articles(app: FastAPI) -> None:
    """Register every endpoint of the API, and the schema that all problems share."""
    for endpoint in api.API:
        described = (("path", endpoint.path_parameters), ("query", endpoint.query_parameters))
        extra: dict[str, Any] = {
            "parameters": [
                {"name": name, "in": place, "required": place == "path", "schema": schema}
                for place, schemas in described
                for name, schema in schemas.items()
            ]
        }
        if endpoint.request_schema is not None:
            content = {"application/json": {"schema": endpoint.request_schema}}
            extra["requestBody"] = {"required": True, "content": content}
        successes: dict[int | str, dict[str, Any]] = {
            status: {
                "description": HTTPStatus(status).phrase,
                "content": {"application/json": {"schema": schema}},
            }
            for status, schema in endpoint.responses.items()
        }
        app.add_api_route(
            endpoint.path,
            _route(endpoint),
            methods=[endpoint.method],
            name=endpoint.name,
            operation_id=endpoint.name,
            summary=endpoint.summary,
            response_class=Response,
            status_code=min(endpoint.responses),
            responses=successes | _problems(*endpoint.problems, 503),
            openapi_extra=extra,
        )
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _route(endpoint: api.Endpoint) -> Callable[..., Awaitable[Response]]:
    has_body = endpoint.request_schema is not None

    async def answer(request: Request, database: DatabaseDependency) -> Response:
        body = await request.body() if has_body else b""
        text: bytes = request.scope["query_string"]
        query = parse_qs(text.decode("latin-1"), keep_blank_values=True) if text else {}
        operation = endpoint.handle(api.Request(request.path_params, query, body))
        result = await database.run(operation, autocommit=endpoint.safe)
        return Response(result.body, result.status, result.headers, result.media_type)

    return answer


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of answers that are problem details."""
    described: dict[int | str, dict[str, Any]] = {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }
    seconds = {"description": "seconds", "schema": {"type": "integer"}}
    described[503]["headers"] = {"Retry-After": seconds}
    return described


def add_operations(app: FastAPI) -> None:
    """Register the routes for an orchestrator and a monitor."""

    @app.get(
        "/healthz",
        response_class=Response,
        responses=_TEXT,
        summary="Whether the process answers; the database is not asked",
    )
    async def healthz() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get(
        "/readyz",
        response_class=Response,
        responses=_TEXT | _problems(503),
        summary="Whether there is a database, and a connection to it free",
    )
    async def readyz(database: DatabaseDependency) -> Response:
        await database.check()
        return Response("ready\n", media_type="text/plain")

    @app.get(
        "/metrics",
        response_class=Response,
        responses=_TEXT,
        summary="The connection pool's counters, for Prometheus",
    )
    async def metrics(request: Request) -> Response:
        resources: Resources = request.app.state.resources
        registry = CollectorRegistry(auto_describe=False)
        registry.register(PoolCollector(resources.settings.target, resources.database.snapshot()))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class PoolCollector(Collector):
    """One snapshot of one pool as Prometheus metrics `poolkit_pool_...`; times in seconds.

    The counters are this process's. With `--processes` each process counts for itself, and a
    scrape reaches any one of them.
    """

    GAUGES: Final = {
        "size": "Connections that the pool keeps open when idle.",
        "checked_out": "Connections in use.",
        "overflow": "Connections open beyond the size.",
        "waiting": "Callers that have asked for a connection and do not have it yet.",
    }
    COUNTERS: Final = {
        "checkouts": "Checkouts that got a connection.",
        "checkout_timeouts": "Checkouts that gave up after pool_timeout.",
        "opened": "Connections opened.",
        "closed": "Connections closed.",
        "connect_failures": "Attempts to open a connection that failed.",
    }
    HISTOGRAMS: Final = {
        "checkout_wait": "How long checkouts waited for their connection.",
        "connect_time": "How long opening a connection took.",
    }

    def __init__(self, target: str, snapshot: PoolSnapshot) -> None:
        self._labels = [target]
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, each with the label `target`."""
        for kind, texts in (
            (GaugeMetricFamily, self.GAUGES),
            (CounterMetricFamily, self.COUNTERS),
        ):
            for name, text in texts.items():
                single = kind(f"poolkit_pool_{name}", text, labels=["target"])
                single.add_metric(self._labels, getattr(self._snapshot, name))
                yield single
        bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
        for name, text in self.HISTOGRAMS.items():
            family = HistogramMetricFamily(f"poolkit_pool_{name}_seconds", text, labels=["target"])
            histogram: Histogram = getattr(self._snapshot, name)
            # In Prometheus each bucket includes the smaller ones.
            cumulative = map(float, accumulate(histogram.counts))
            family.add_metric(
                self._labels, list(zip(bounds, cumulative, strict=True)), histogram.total
            )
            yield family
