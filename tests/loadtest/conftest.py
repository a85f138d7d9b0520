"""A web server to load, Locust as a person starts it, and connections to be seen."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from held_connections import connected

LOCUSTFILE = """
from locust import FastHttpUser, constant, task

from poolkit import loadtest

loadtest.register()
loadtest.register()

class Visitor(FastHttpUser):
    wait_time = constant(0.05)

    @task
    def visit(self):
        self.client.get("/")
"""


class Server(ThreadingHTTPServer):
    """Answers at once, and remembers when."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.moments: list[float] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.moments.append(time.monotonic())
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    """Serve on a free port."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


PATIENCE_S = 45.0
"""For what takes a moment: two busy cores start Locust in ten seconds, and a test has 120."""


class LocustRun:
    """Locust in a process of its own; what it says is in `log`."""

    def __init__(self, folder: Path, name: str, arguments: list[str], variables: dict[str, str]):
        self.folder = folder
        self.log = folder / f"{name}.log"
        clean = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "LOCUST_HOST")}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "locust", *arguments],
                cwd=folder,
                env=clean | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_until(self, condition, timeout_s: float = PATIENCE_S):
        """Wait until a condition gives something true, and return it."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)
        return found

    def wait_for(self, words: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until Locust has said something."""
        self.wait_until(lambda: words in self.said, timeout_s)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end, and return the exit status."""
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """End it if it still runs: first as a person would, so that it ends its workers."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture
def locust(tmp_path, server):
    """Give a function that starts Locust on the server; all are ended with the test."""
    runs: list[LocustRun] = []
    file = tmp_path / "visitors.py"
    file.write_text(LOCUSTFILE)

    def start(*arguments: str, url: str | None = None, **variables: str) -> LocustRun:
        if url is not None:
            variables["DATABASE_URL"] = url
        given = ["-f", str(file)] if "-f" not in arguments else []
        words = [*given, "--host", server.url, *arguments]
        runs.append(LocustRun(tmp_path, f"locust-{len(runs)}", words, variables))
        return runs[-1]

    yield start
    for run in reversed(runs):
        run.end()


@pytest.fixture
def held(database):
    """Give a function that opens connections, to be closed with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda name, count=1: stack.enter_context(connected(database, name, count))


@pytest.fixture
def free_port():
    """Give a function that finds a port where nobody listens."""

    def find() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return listener.getsockname()[1]

    return find
