"""A web server to load, Locust as a person starts it, and connections to be seen."""

import contextlib
import csv
import json
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from held_connections import connected
from processes import PATIENCE_S, RunningProcess, wait_until
from web_server import WebServer, serving

# After three seconds of silence a master ends the test, and a busy machine may hold a worker longer.
PATIENT = """
from locust import runners
runners.HEARTBEAT_LIVENESS = 8
"""
LOCUSTFILE = f"""{PATIENT}
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


@pytest.fixture
def server() -> Iterator[WebServer]:
    """A web server for one test."""
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def module_server() -> Iterator[WebServer]:
    """A web server for the runs that the tests of a module share."""
    with serving() as server:
        yield server


STUB = Path(__file__).with_name("stub_server.py")
NEVER_S = 3600


@pytest.fixture
def stub():
    """A function that starts a server which stalls at intervals; returns its process and URL."""
    with contextlib.ExitStack() as ending:

        def start(stall_s=0.0, every_s=NEVER_S):
            command = [sys.executable, str(STUB), str(stall_s), str(every_s)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            ending.enter_context(process)
            ending.callback(process.kill)
            return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"

        yield start


class LocustRun(RunningProcess):
    """Locust in a process of its own, in a folder of its own.

    A run that is to be ended, by its test or by what it finds, has --run-time 10m, so it can only end so.
    """

    def __init__(self, folder: Path, arguments: list[str], variables: dict[str, str]):
        clean = {"DATABASE_URL": None, "LOCUST_HOST": None}
        command = (sys.executable, "-m", "locust", *arguments)
        super().__init__(*command, cwd=folder, environ=clean | variables)
        self.folder = folder

    def wait_for(self, text: str, timeout_s: float = PATIENCE_S) -> re.Match[str]:
        """Wait until Locust has printed a text, in one line."""
        return super().wait_for(re.escape(text), timeout_s)

    def moment(self, text: str) -> float:
        """Return when Locust first printed a text, as Unix time."""
        line = next(line for line in self.text.splitlines() if text in line)
        written = line.removeprefix("[").partition("]")[0].partition("/")[0]
        return datetime.strptime(written, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()

    def rows(self, name: str = "run_connections.csv") -> list[dict[str, str]]:
        """Return the rows that one of its CSV files has by now, without an incomplete last line."""
        file = self.folder / name
        text = file.read_text() if file.exists() else ""
        return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))

    def rows_of(
        self, target: str = "Aggregated", name: str = "run_connections.csv"
    ) -> list[dict[str, str]]:
        """Return the rows of a target, without those of seconds in which no sample was taken."""
        return [one for one in self.rows(name) if one["Target"] == target and one["Connections"]]

    def wait_for_seconds(self, count: int, name: str = "run_connections.csv") -> None:
        """Wait until it has run for some more seconds by its own rows; it may stand still as well."""

        def seconds() -> int:
            return sum(one["Target"] == "Aggregated" for one in self.rows(name))

        # The first may come at once; between any two others is a second.
        wanted = seconds() + count + 1
        self.wait_until(lambda: seconds() >= wanted, f"{wanted} seconds")

    def document(self, name: str = "result") -> dict[str, Any]:
        """Return the document beside the file of --json-file."""
        return json.loads((self.folder / f"{name}_connections.json").read_text())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def stop(self) -> int:
        """Press Ctrl-C, and wait for the end."""
        return self.terminate(signal.SIGINT)


def wait_for_no_process(word: str) -> None:
    """Wait until no process has a word on its command line; those of --processes have it."""

    def none_is_left() -> bool:
        return not any(
            word in (one.info["cmdline"] or ()) and one.info["status"] != psutil.STATUS_ZOMBIE
            for one in psutil.process_iter(["cmdline", "status"])
        )

    wait_until(none_is_left, f"no process with {word}")


@pytest.fixture
def locust(tmp_path, server):
    """A function that starts Locust on the server; all runs are ended with the test."""
    runs: list[LocustRun] = []
    file = tmp_path / "visitors.py"
    file.write_text(LOCUSTFILE)

    def start(*arguments: str, url: str | None = None, **variables: str) -> LocustRun:
        if url is not None:
            variables["DATABASE_URL"] = url
        given = ["-f", str(file)] if "-f" not in arguments else []
        words = [*given, "--host", server.url, *arguments]
        runs.append(LocustRun(tmp_path, words, variables))
        return runs[-1]

    start.folder = tmp_path
    yield start
    for run in reversed(runs):
        # First as a person would, so that it ends its workers.
        if run.process.poll() is None:
            run.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.process.wait(30)
        run.kill()


@pytest.fixture
def held(database):
    """A function that opens connections, which are closed with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda name, count=1: stack.enter_context(connected(database, name, count))


@pytest.fixture(scope="session")
def free_port():
    """A function that finds a free port that stays free for a while.

    Some time passes until Locust listens there. The system gives out ports from 32768 on for any
    server or connection, so it is one of those below.
    """

    def find() -> int:
        while True:
            port = random.randrange(20_000, 32_768)
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                return port

    return find


@pytest.fixture
def refusing_port():
    """A port that refuses every connection: it is bound, and no server listens on it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def master_port(free_port):
    """The options for a master's port: to the usual one, another run's workers could connect."""
    port = str(free_port())
    return ("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port)
