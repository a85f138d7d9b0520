"""A web service in a process of its own, over real HTTP, for tests of what may fail.

with serving("webapp.app:app", url) as served:
    assert served.get("/readyz") == 200
"""

import contextlib
import http.client
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from processes import RunningProcess, started


@dataclass(frozen=True)
class Served:
    """A running web service."""

    process: RunningProcess
    address: str

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any, bytes]:
        """Return status, headers and body of an answer over a connection of its own."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(
            self.address + path, method=method, data=content, headers=headers
        )
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
        prefix = f"poolkit_pool_{name}{{"
        lines = self.request("GET", "/metrics")[2].decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(prefix))

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
        "UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN": "60",
        "UVICORN_HTTP": "poolkit.fastapi.server:LimitedHttp",
    }
    return {name: value or None for name, value in {**cleared, **chosen, **environ}.items()}


@contextmanager
def serving(app: str, url: str, *options: str, **environ: str) -> Iterator[Served]:
    """Serve an application with uvicorn on a free port, and end it for sure."""
    with started(
        *(sys.executable, "-m", "uvicorn", app, "--port", "0", "--lifespan", "on", *options),
        environ=environment(url, **environ),
    ) as process:
        yield Served(process, process.wait_for(r"running on (http://\S+)")[1])
