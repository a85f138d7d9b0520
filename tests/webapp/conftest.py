"""The web service as it is deployed: `python -m webapp` in a process of its own."""

import contextlib
import http.client
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from processes import RunningProcess, started

ROOT = Path(__file__).parents[2]
TARGETS = {"web": (), "web_async": ("--async",)}


@dataclass(frozen=True)
class Served:
    """A running web service."""

    process: RunningProcess
    address: str
    target: str

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any, bytes]:
        """Return status, headers and body of an answer over a connection of its own."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, method=method, data=content)
        try:
            with urllib.request.urlopen(request, timeout=100) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, answer.headers, answer.read()

    def get(self, path: str) -> int:
        """Return the status of a GET."""
        return self.request("GET", path)[0]

    def metric(self, name: str) -> float:
        """Return a metric of the pool, such as `opened_total`."""
        prefix = f'poolkit_pool_{name}{{target="{self.target}"}} '
        lines = self.request("GET", "/metrics")[2].decode().splitlines()
        return next(float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix))

    def start(self, *request: Any) -> "Started":
        """Send a request from a thread, for what happens meanwhile."""
        return Started(self, request)

    def terminate(self, timeout_s: float = 60) -> int:
        """Send SIGTERM, and return the exit status."""
        return self.process.terminate(timeout_s=timeout_s)


class Started:
    """A request under way."""

    def __init__(self, served: Served, request: tuple[Any, ...]) -> None:
        self._answer: Any = None
        self._thread = threading.Thread(target=self._send, args=(served, request))
        self._thread.start()

    def _send(self, served: Served, request: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._answer = served.request(*request)

    def ended(self) -> None:
        """Wait until there is an answer, or until the connection is gone without one."""
        self._thread.join(100)
        assert not self._thread.is_alive(), "the request hangs"

    def answer(self) -> tuple[int, Any, bytes]:
        """Wait for the answer."""
        self._thread.join(100)
        assert self._answer is not None, "no answer came"
        return self._answer


Serve: TypeAlias = Callable[..., AbstractContextManager[Served]]


def environment(url: str, **environ: str) -> dict[str, str | None]:
    """Return the variables of a web service under test, beside those of this process."""
    cleared = dict.fromkeys(k for k in os.environ if k.startswith(("DATABASE_", "POOLKIT_PO")))
    chosen = {
        "POOLKIT_ENVIRONMENT": "dev",
        "POOLKIT_ECHO": "false",
        "DATABASE_URL": url,
        # So long that only a test that sets them meets them, however slow the machine is.
        "POOLKIT_CONNECT_TIMEOUT": "60",
        "POOLKIT_STATEMENT_TIMEOUT": "90000",
        "POOLKIT_POOL_TIMEOUT": "60",
        "WEBAPP_GRACEFUL_TIMEOUT": "60",
    }
    return {name: value or None for name, value in {**cleared, **chosen, **environ}.items()}


@contextmanager
def serving(target: str, url: str, *options: str, **environ: str) -> Iterator[Served]:
    """Start `python -m webapp` on a free port, and end it for sure."""
    with started(
        *(sys.executable, "-m", "webapp", "--port", "0", *TARGETS[target], *options),
        environ=environment(url, **environ),
    ) as process:
        yield Served(process, process.wait_for(r"listening on (\S+)")[1], target)


@pytest.fixture(params=TARGETS)
def target(request) -> str:
    """Name each web target in turn."""
    return request.param


@pytest.fixture
def serve(target) -> Serve:
    """Return the function that starts the target's web service."""
    return lambda url, *options, **environ: serving(target, url, *options, **environ)
