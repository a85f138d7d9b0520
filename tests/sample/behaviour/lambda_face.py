"""The Lambda handler as a face of the API: HTTP in, HTTP out, real-shaped events in between."""

import base64
import importlib
import io
import itertools
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import snapshot_restore_py
from behaviour.face import Answer
from lambda_events import http_api_event, new_context

from poolkit.execution_environment import ExecutionEnvironment

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


def answer_of(result: Mapping[str, Any]) -> Answer:
    """Read what the function returned as API Gateway does."""
    headers = {name.lower(): value for name, value in result["headers"].items()}
    body = result.get("body") or ""
    raw = base64.b64decode(body) if result.get("isBase64Encoded") else body.encode()
    return Answer(result["statusCode"], headers, raw)


@contextmanager
def open_face(
    database_url: str, module: str = "lambda_handler.app", **environ: str
) -> Iterator[LambdaFace]:
    """Give the face of a function whose environment variables are these.

    `module` is imported anew, as each execution environment does it in its init phase.
    """
    variables = {"DATABASE_URL": database_url, **environ}
    variables.setdefault("POWERTOOLS_SERVICE_NAME", f"face-{next(_numbers)}")
    function = _imported_anew(module, variables)
    log = io.StringIO()
    function.logger.registered_handler.setStream(log)
    try:
        yield LambdaFace(function.handler, function.environment, log)
    finally:
        function.environment.dispose()


def _imported_anew(module: str, variables: Mapping[str, str]) -> Any:
    """Import a function's module with these variables; its hooks are taken back."""
    sigterm = signal.getsignal(signal.SIGTERM)
    registries = snapshot_restore_py.get_before_snapshot(), snapshot_restore_py.get_after_restore()
    before = [list(registry) for registry in registries]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        sys.modules.pop(module, None)
        try:
            return importlib.import_module(module)
        finally:
            signal.signal(signal.SIGTERM, sigterm)
            for registry, content in zip(registries, before, strict=True):
                registry[:] = content
