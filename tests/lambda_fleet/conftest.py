"""What the fleet's tests share: starting one from a handler's source, and talking to it."""

import http.client
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from poolkit.lambda_fleet import FunctionConfig, LambdaFleet

WITH_CHILD = """
    import os, subprocess

    def handler(event, context):
        return [os.getpid(), subprocess.Popen(["sleep", "60"]).pid]
"""


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


@pytest.fixture
def task_root(tmp_path: Path) -> Path:
    """An empty directory for the code, apart from the logs."""
    root = tmp_path / "task"
    root.mkdir()
    return root


@pytest.fixture
def start(tmp_path: Path, task_root: Path) -> Iterator[Callable[..., LambdaFleet]]:
    """Start a fleet from the source of `app.py`; it is stopped after the test."""
    with ExitStack() as stack:

        def start_fleet(source: str, **options: Any) -> LambdaFleet:
            (task_root / "app.py").write_text(textwrap.dedent(source))
            # So long that only a test that sets them meets them, however slow the machine is.
            patient = {"handler": "app.handler", "timeout_s": 100, "init_limit_s": 100}
            config = FunctionConfig(task_root=task_root, **patient | options)
            return stack.enter_context(LambdaFleet(config, log_dir=tmp_path / "logs"))

        yield start_fleet


@pytest.fixture
def call() -> Callable[..., Answer]:
    """Send one HTTP request on a connection of its own."""

    def send(fleet, path="/", *, method="GET", body=None, headers=None) -> Answer:
        address = urlsplit(fleet.url).netloc
        with closing(http.client.HTTPConnection(address, timeout=110)) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())

    return send


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that are to be in flight at the same time."""
    with ThreadPoolExecutor(32) as executor:
        yield executor


@pytest.fixture
def process_state() -> Callable[[int], str]:
    """Return the state letter of a process (proc(5), stat): T is stopped; empty when it is gone."""

    def state(pid: int) -> str:
        try:
            letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if letter in "ZX" else letter

    return state
