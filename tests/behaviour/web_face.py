"""The two web services as faces: real uvicorn on a real socket, in a thread of this process."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from behaviour.face import Answer, Query, encoded

from webapp.application import make_application
from webapp.database import OpenDatabase, open_async_database, open_threaded_database


class WebFace:
    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        content = encoded(body)
        default = {} if content is None else {"content-type": "application/json"}
        answer = self._client.request(
            method, path, params=query, content=content, headers={**default, **(headers or {})}
        )
        return Answer(answer.status_code, dict(answer.headers), answer.content)


@contextmanager
def open_web_face(database_url: str, **environ: str) -> Iterator[WebFace]:
    with _served("web", open_threaded_database, database_url, environ) as face:
        yield face


@contextmanager
def open_web_async_face(database_url: str, **environ: str) -> Iterator[WebFace]:
    with _served("web_async", open_async_database, database_url, environ) as face:
        yield face


@contextmanager
def _served(
    target: str, open_database: OpenDatabase, url: str, environ: Mapping[str, str]
) -> Iterator[WebFace]:
    variables = {
        "POOLKIT_ENVIRONMENT": "dev",
        "POOLKIT_ECHO": "false",
        "DATABASE_URL": url,
        **environ,
    }
    app = make_application(target, open_database, environ=variables)
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=0, lifespan="on", ws="none", log_config=None, timeout_graceful_shutdown=30
        )
    )
    thread = threading.Thread(target=server.run, name=f"face {target}")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the web service did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield WebFace(client)
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive(), "the web service did not end"
