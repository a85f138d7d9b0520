"""The Lambda handler as a face of the API: HTTP in, HTTP out, real-shaped events in between."""

import base64
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from awslambdaric.lambda_context import LambdaContext
from behaviour.face import Answer, encoded

from lambda_handler.configuration import FunctionSettings
from lambda_handler.execution_environment import ExecutionEnvironment
from lambda_handler.http_api import make_handler
from poolkit.lambda_fleet.events import http_api_event as event
from poolkit.lambda_fleet.http_protocol import Request

# Powertools' loggers live as long as the process and are known by their service's name.
_numbers = itertools.count()


class LambdaFace:
    """The handler in this process; `invoke` takes an event, `request` an HTTP request."""

    def __init__(self, handler: Any, environment: ExecutionEnvironment, log: io.StringIO) -> None:
        self._handler = handler
        self.environment = environment
        self._log = log

    def logs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def invoke(self, event: Any, timeout_s: float = 30.0) -> dict[str, Any]:
        # Through JSON and back, as the runtime interface client does it.
        event = json.loads(json.dumps(event))
        return json.loads(json.dumps(self._handler(event, new_context(timeout_s))))

    def request(self, method, path, *, query=None, body=None, headers=None) -> Answer:
        return answer_of(self.invoke(http_api_event(method, path, query, body, headers)))


def http_api_event(method, path, query=None, body=None, headers=None) -> dict[str, Any]:
    """Make the event that an HTTP API makes of a request; a body that is not bytes is JSON."""
    raw = encoded(body) or b""
    text = query if isinstance(query, str) else urlencode(query or {}, doseq=True)
    sent = {"host": "abc.execute-api.us-east-1.amazonaws.com", "user-agent": "tests"}
    if body is not None:
        sent["content-type"] = _content_type(raw)
    sent |= {name.lower(): value for name, value in (headers or {}).items()}
    target = f"{path}?{text}" if text else path
    request = Request(
        method=method.encode(),
        target=target.encode("latin-1"),
        headers=[(name.encode(), value.encode()) for name, value in sent.items()],
        body=raw,
        http_version="1.1",
    )
    request_id = f"JKJaXmPLvHcESHA{next(_numbers)}="
    made = event(request, request_id=request_id, trace_id="Root=1-5e6722a7", source_ip="192.0.2.1")
    return json.loads(made)


def _content_type(body: bytes) -> str:
    # What is called JSON is handed over as text, in which API Gateway has replaced what was
    # not UTF-8 by U+FFFD; what is called binary arrives as it was sent.
    try:
        body.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "application/json"


def answer_of(result: Mapping[str, Any]) -> Answer:
    """Read what the function returned as API Gateway does."""
    headers = {name.lower(): value for name, value in result["headers"].items()}
    body = result.get("body") or ""
    raw = base64.b64decode(body) if result.get("isBase64Encoded") else body.encode()
    return Answer(result["statusCode"], headers, raw)


def new_context(timeout_s: float = 30.0) -> LambdaContext:
    """Make the very object that the runtime interface client gives to a handler."""
    arn = "arn:aws:lambda:us-east-1:123456789012:function:articles"
    deadline_ms = int((time.time() + timeout_s) * 1000)
    return LambdaContext(
        f"8476a536-e9f4-11e8-9739-{next(_numbers):012}", None, None, deadline_ms, arn
    )


@contextmanager
def open_face(
    database_url: str, make: Callable[..., Any] = make_handler, **environ: str
) -> Iterator[LambdaFace]:
    """Give the face of a function whose environment variables are these.

    `make` makes its handler: that of the HTTP API, unless it is another one's.
    """
    variables = {"DATABASE_URL": database_url, **environ}
    variables.setdefault("POWERTOOLS_SERVICE_NAME", f"face-{next(_numbers)}")
    log = io.StringIO()
    environment = ExecutionEnvironment.open(variables)
    try:
        handler = make(environment, FunctionSettings.from_environ(variables), log)
        yield LambdaFace(handler, environment, log)
    finally:
        environment.dispose()
