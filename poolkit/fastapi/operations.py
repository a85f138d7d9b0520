"""The routes for an orchestrator and a monitor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from poolkit.errors import TemporaryFailure
from poolkit.fastapi.problems import problem_response, problem_responses
from poolkit.problems import problem_of

if TYPE_CHECKING:
    from poolkit.fastapi.databases import AsyncDatabase, Database

__all__ = ("operations",)


def operations(*databases: Database | AsyncDatabase) -> APIRouter:
    """Return a router with `/healthz`, `/readyz` and `/metrics` for one or more databases.

        app.include_router(operations(database))

    `/healthz` answers as long as the process does; the database is not asked, because a restart
    does not mend it. `/readyz` is 503 without a database, and while every connection is in use.
    `/metrics` has the pools' counters (`poolkit.prometheus`) and needs prometheus-client.
    """
    router = APIRouter()

    @router.get("/healthz", summary="Whether the process answers")
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @router.get(
        "/readyz",
        summary="Whether there is a database, and a connection to it free",
        response_class=PlainTextResponse,
        responses=problem_responses(503),
    )
    async def readyz() -> Response:
        try:
            await asyncio.gather(*(database.check() for database in databases))
        except TemporaryFailure as error:
            return problem_response(problem_of(error))
        return PlainTextResponse("ready\n")

    @router.get(
        "/metrics",
        summary="The connection pools' counters, for Prometheus",
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        # Not at the top: an application with metrics of its own need not have the package.
        from poolkit.prometheus import CONTENT_TYPE, exposition  # noqa: PLC0415

        text = exposition({database.name: database.snapshot() for database in databases})
        return Response(text, media_type=CONTENT_TYPE)

    return router
