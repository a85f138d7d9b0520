"""The routes for an orchestrator and a monitor."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Depends, HTTPException, Request
from starlette.responses import PlainTextResponse, Response

from poolkit.errors import TemporaryFailure
from poolkit.fastapi.problems import problem_response, problem_responses
from poolkit.problems import problem_of

if TYPE_CHECKING:
    from poolkit.fastapi.databases import AsyncDatabase, Database

__all__ = ("operations",)

_ESCAPED_ASCII: Final = re.compile(rb"%[0-7]")


def operations(*databases: Database | AsyncDatabase) -> APIRouter:
    """Return a router with `/healthz`, `/readyz` and `/metrics` for one or more databases.

        app.include_router(operations(database))

    `/healthz` answers as long as the process can work; the database is not asked, because a restart
    does not mend it. It is 503 when no thread can be started and none is idle, which a restart
    does mend. `/readyz` is 503 without a database, while every connection is in use, and while the
    server is read-only, unless `target_session_attrs` admits a standby.
    `/metrics` has the pools' counters (`poolkit.prometheus`) and needs prometheus-client.

    Their paths must be written plainly: `/%6detrics` is a 404, because a proxy that hides
    `/metrics` from the public compares the text and lets it pass.
    """
    router = APIRouter(dependencies=[Depends(_refuse_other_spellings)])

    @router.get(
        "/healthz",
        summary="Whether the process works",
        response_class=PlainTextResponse,
        responses=problem_responses(503),
    )
    async def healthz() -> Response:
        try:
            for database in databases:
                await database.check_threads()
        except TemporaryFailure as error:
            return problem_response(problem_of(error))
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

        text = exposition(
            {database.name: database.snapshot() for database in databases},
            {database.name: database.call_sites() for database in databases},
        )
        return Response(text, media_type=CONTENT_TYPE)

    return router


async def _refuse_other_spellings(request: Request) -> None:
    # Servers decode the path that is routed. What a proxy compared is the raw one, which servers
    # for Lambda leave out. An escape of ASCII is always another spelling here: of a letter, or
    # of the slash between a prefix and the name.
    if _ESCAPED_ASCII.search(request.scope.get("raw_path") or b""):
        raise HTTPException(404)
