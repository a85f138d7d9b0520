"""The two web services as faces: real uvicorn on a real socket, in a thread of this process."""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import httpx2
import uvicorn
from behaviour.face import Answer, encoded
from fastapi import FastAPI

from poolkit.fastapi.server import LimitedHttp
from webapp.app import app as sync_app
from webapp.async_app import app as async_app


class WebFace:
    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def request(self, method, path, *, query=None, body=None, headers=None) -> Answer:
        content = encoded(body)
        sent = {} if content is None else {"content-type": "application/json"}
        sent |= headers or {}
        sent = {name: value for name, value in sent.items() if value is not None}
        answer = self._client.request(method, path, params=query, content=content, headers=sent)
        return Answer(answer.status_code, dict(answer.headers), answer.content)


@contextmanager
def open_web_face(database_url: str, **environ: str) -> Iterator[WebFace]:
    with _served(sync_app, database_url, environ) as face:
        yield face


@contextmanager
def open_web_async_face(database_url: str, **environ: str) -> Iterator[WebFace]:
    with _served(async_app, database_url, environ) as face:
        yield face


@contextmanager
def _served(app: FastAPI, url: str, environ: Mapping[str, str]) -> Iterator[WebFace]:
    variables = {"POOLKIT_ENVIRONMENT": "dev", "POOLKIT_ECHO": "false", "DATABASE_URL": url}
    options = {"lifespan": "on", "ws": "none", "log_config": None, "timeout_graceful_shutdown": 30}
    options["http"] = LimitedHttp
    server = uvicorn.Server(uvicorn.Config(app, port=0, **options))
    thread = threading.Thread(target=server.run, name="web face")
    # The lifespan reads them, which is over when the server has started.
    with mock.patch.dict(os.environ, variables | environ):
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the web service did not start"
            time.sleep(0.005)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield WebFace(client)
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive(), "the web service did not end"
