"""A web server to load, Locust as a person starts it, and connections to be seen."""

import contextlib
import csv
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
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
    # With five, a sixth user would wait for a second each time that this process stands still.
    request_queue_size = 128

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


STUB = Path(__file__).with_name("stub_server.py")
NEVER_S = 3600


@pytest.fixture
def stub():
    """Give a function that starts a server which stalls so long, every so often: its process, URL."""
    with contextlib.ExitStack() as ending:

        def start(stall_s=0.0, every_s=NEVER_S):
            command = [sys.executable, str(STUB), str(stall_s), str(every_s)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            ending.enter_context(process)
            ending.callback(process.kill)
            return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"

        yield start


PATIENCE_S = 100.0
"""For what takes a moment: two busy cores may need half a minute for it, and a test has 300 s.

A run that is to be ended, by its test or by what it finds, has --run-time 10m, so it can only end so.
"""


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
        while True:
            # Looked at first: what it has said or written last is there when it has ended.
            ended = self.process.poll() is not None
            if found := condition():
                return found
            assert not ended, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def wait_for(self, words: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until Locust has said something."""
        self.wait_until(lambda: words in self.said, timeout_s)

    def moment(self, words: str) -> float:
        """Return when Locust first said something, as Unix time."""
        line = next(line for line in self.said.splitlines() if words in line)
        written = line.removeprefix("[").partition("]")[0].partition("/")[0]
        return datetime.strptime(written, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()

    def rows(self, name: str = "run_connections.csv") -> list[dict[str, str]]:
        """Return the rows that one of its CSV files has by now; of a line half written, none."""
        file = self.folder / name
        text = file.read_text() if file.exists() else ""
        return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))

    def rows_of(
        self, target: str = "Aggregated", name: str = "run_connections.csv"
    ) -> list[dict[str, str]]:
        """Return the rows of a target; those of seconds in which nobody could look are not among them."""
        return [one for one in self.rows(name) if one["Target"] == target and one["Connections"]]

    def wait_for_seconds(self, count: int, name: str = "run_connections.csv") -> None:
        """Wait until it has run for some seconds more, by its own rows; it may stand still as well."""

        def seconds() -> int:
            return sum(one["Target"] == "Aggregated" for one in self.rows(name))

        # The first may come at once; between any two others is a second.
        wanted = seconds() + count + 1
        self.wait_until(lambda: seconds() >= wanted)

    def wait_for_no_process(self, word: str) -> None:
        """Wait until there is none with a word on its command line; those of --processes have it."""
        deadline = time.monotonic() + PATIENCE_S
        while left := [
            one.pid
            for one in psutil.process_iter(["cmdline", "status"])
            if word in (one.info["cmdline"] or ()) and one.info["status"] != psutil.STATUS_ZOMBIE
        ]:
            assert time.monotonic() < deadline, f"processes left: {left}"
            time.sleep(0.05)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end, and return the exit status."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """Press Ctrl-C, and wait for the end."""
        self.interrupt()
        return self.wait()

    def end(self) -> None:
        """End it if it still runs: first as a person would, so that it ends its workers."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
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
    """Give a function that finds a port where nobody listens, and nobody will by chance.

    Some time passes until Locust listens there. Ports from 32768 on go to whoever wants any port, for
    a server or a connection; so it is one of those below.
    """

    def find() -> int:
        while True:
            port = random.randrange(20_000, 32_768)
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                return port

    return find


@pytest.fixture
def master_port(free_port):
    """Say the port of a master: with the usual one, another run's workers could come to it."""
    port = str(free_port())
    return ("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port)
