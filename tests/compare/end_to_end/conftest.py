"""Runs of `poolkit compare` and `poolkit up` as a user starts them, watched from outside."""

import contextlib
import os
import queue
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from small_disks import small_disk

ROOT = Path(__file__).parents[3]
POOLKIT = Path(sys.executable).with_name("poolkit")
TOKEN = "POOLKIT_TEST_RUN"
# Only what hangs takes so long; pytest's own limit for these tests is above it.
PATIENCE_S = 200.0


class Seen:
    """Processes and ports of a run, collected while it ran."""

    def __init__(self) -> None:
        self.processes: set[psutil.Process] = set()
        self.ports: set[int] = set()

    def look(self, root: psutil.Process) -> None:
        """Add what is there now."""
        with contextlib.suppress(psutil.Error):
            self.processes |= {root, *root.children(recursive=True)}
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                sockets = process.net_connections(kind="tcp")
                self.ports |= {s.laddr.port for s in sockets if s.status == psutil.CONN_LISTEN}

    def running(self) -> list[psutil.Process]:
        """Return what of it still runs."""
        return [process for process in self.processes if runs(process)]


def runs(process: psutil.Process) -> bool:
    """Tell whether it has not ended; one that nobody has waited for yet has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Command:
    """A `poolkit` command that runs in a session of its own, and what it says."""

    def __init__(self, arguments: tuple[str, ...], *, cwd: Path, temporary: Path, **environ: str):
        keep = {k: v for k, v in os.environ.items() if not k.startswith("DATABASE_")}
        self.token = secrets.token_hex(8)
        self.process = subprocess.Popen(
            [str(POOLKIT), *arguments],
            cwd=cwd,
            env={**keep, "TMPDIR": str(temporary), TOKEN: self.token, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.seen = Seen()
        self.said: list[str] = []
        self.errors: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.said), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, lines):
        for line in stream:
            lines.append(line.rstrip("\n"))
            self._lines.put(line)
        stream.close()

    def wait_until_it_says(self, pattern: str) -> str:
        """Wait for a line; processes and ports are noted at every line on the way."""
        root = psutil.Process(self.process.pid)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            # Asked first: what it said before it ended may still be on its way.
            has_said_all = not any(reader.is_alive() for reader in self._readers)
            try:
                line = self._lines.get(timeout=0.0 if has_said_all else 0.5)
            except queue.Empty:
                assert not has_said_all, (pattern, self.said, self.errors)
                continue
            self.seen.look(root)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"never said {pattern}: {self.said} {self.errors}")

    def find(self, *words: str) -> psutil.Process:
        """Return the process of the run whose command line has all the words."""
        root = psutil.Process(self.process.pid)
        for process in root.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if all(word in line for word in words):
                    return process
        raise AssertionError(f"no process {words}")

    def send(self, number: int) -> None:
        """Send a signal, as a terminal does it for Ctrl-C."""
        self.seen.look(psutil.Process(self.process.pid))
        os.killpg(self.process.pid, number)

    def end(self, number: int | None = None) -> int:
        """Send a signal, and wait for the end."""
        if number is not None:
            self.send(number)
        status = self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return status

    @property
    def error(self) -> str:
        """What it wrote to standard error."""
        return "\n".join(self.errors)

    def left(self, beside: "Command | None" = None) -> list[str]:
        """Return what is left of the run: processes, and ports that still answer.

        One that runs beside it may have been given a port that was this one's.
        """
        ports = self.seen.ports - (beside.seen.ports if beside else set())
        marked = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(TOKEN) == self.token and runs(process):
                    marked.append(process)
        listening = {
            c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN
        }
        found = [f"{p.pid} {p.cmdline()}" for p in {*marked, *self.seen.running()} if runs(p)]
        return found + [f"port {port}" for port in sorted(ports & listening)]

    def wait_until_nothing_is_left(self) -> None:
        """Wait for what others clean up; whoever ends in order leaves nothing to wait for."""
        deadline = time.monotonic() + 60
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == []

    def kill_all(self) -> None:
        """End whatever a failed test left."""
        for process in self.seen.running():
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def open_dir() -> Iterator[Path]:
    """Give a directory that other accounts can pass through, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="poolkit-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def temporary(open_dir: Path) -> Path:
    """Keep the records of what runs apart from everybody else's."""
    path = open_dir / "tmp"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture(scope="module")
def start(temporary: Path) -> Iterator[Callable[..., Command]]:
    """Give a function that starts a `poolkit` command in the kit's own project, or another."""
    started: list[Command] = []

    def start(*arguments: str, cwd: Path = ROOT, **environ: str) -> Command:
        started.append(Command(arguments, cwd=cwd, temporary=temporary, **environ))
        return started[-1]

    yield start
    for command in started:
        command.kill_all()


APP = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
"""
LOAD = """
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task
    def visit(self):
        self.client.get("/")
"""


@pytest.fixture
def stranger(open_dir: Path) -> Iterator[Callable[..., Path]]:
    """Give a function that makes a project of somebody else's: tables and files.

    Without tables it has a web service that needs no database.
    """
    project = Path(tempfile.mkdtemp(prefix="project-", dir=open_dir))
    project.chmod(0o755)
    # What PostgreSQL's data directory is copied from takes seconds to make.
    (project / ".poolkit").mkdir()
    (project / ".poolkit" / "cache").symlink_to(ROOT / ".poolkit" / "cache")

    def make(
        tables: str = '[tool.poolkit.targets.web]\nkind = "web"\napp = "plain:app"\n', **files
    ):
        files = {"plain": APP, "load": LOAD, **files}
        for name, text in files.items():
            (project / f"{name}.py").write_text(text)
        lines = [
            f'{line}\nlocustfile = "load.py"' if "kind" in line else line
            for line in tables.splitlines()
        ]
        (project / "pyproject.toml").write_text("\n".join(lines) + "\n")
        return project

    yield make
    shutil.rmtree(project)


@pytest.fixture
def disk(open_dir: Path) -> Iterator[Path]:
    """Give a file system with room for 100 KiB: enough to begin with, and soon full."""
    directory = Path(tempfile.mkdtemp(prefix="disk-", dir=open_dir))
    with small_disk(directory, "1m"):
        (directory / "full").write_bytes(bytes(2**20 - 100 * 2**10))
        yield directory


@pytest.fixture
def read_only_disk(open_dir: Path) -> Iterator[Path]:
    """Give a directory that not even root can write to."""
    directory = Path(tempfile.mkdtemp(prefix="read-only-", dir=open_dir))
    with small_disk(directory, "1m"):
        remount = ["mount", "-o", "remount,ro", str(directory)]
        subprocess.run(remount, check=True, capture_output=True)
        yield directory
