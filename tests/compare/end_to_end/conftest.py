"""Runs of `poolkit compare` and `poolkit up` as a user starts them, observed from outside."""

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from processes import ROOT, RunningProcess, runs, wait_until
from small_disks import small_disk

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
        with contextlib.suppress(psutil.Error):
            self.processes |= {root, *root.children(recursive=True)}
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                sockets = process.net_connections(kind="tcp")
                self.ports |= {s.laddr.port for s in sockets if s.status == psutil.CONN_LISTEN}

    def running(self) -> list[psutil.Process]:
        return [process for process in self.processes if runs(process)]


def is_of_another_test(pid: int | None) -> bool:
    """Return whether a process was started by a test that pytest-xdist runs beside this one."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return False
    try:
        return any(parent.pid == os.getppid() for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return True


class Command(RunningProcess):
    """A `poolkit` command in a session of its own; what belongs to it is noted while it runs."""

    def __init__(self, arguments: tuple[str, ...], *, cwd: Path, temporary: Path, **environ: str):
        self.token = secrets.token_hex(8)
        cleared = dict.fromkeys(name for name in os.environ if name.startswith("DATABASE_"))
        super().__init__(
            *(POOLKIT, *arguments),
            cwd=cwd,
            environ={**cleared, "TMPDIR": str(temporary), TOKEN: self.token, **environ},
            new_session=True,
        )
        self.seen = Seen()
        self._next_line = 0

    @property
    def said(self) -> list[str]:
        return self.stdout.splitlines()

    @property
    def errors(self) -> list[str]:
        return self.stderr.splitlines()

    def look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen.look(psutil.Process(self.pid))

    def wait_until_it_says(self, pattern: str) -> str:
        """Wait for a line after those of the last wait; processes are noted at every line."""
        match, self._next_line = self._search(pattern, self._next_line, PATIENCE_S, self.look)
        return match.string

    def find(self, *words: str) -> psutil.Process:
        """Return the process of the run whose command line has all the words."""
        for process in self.children():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if all(word in line for word in words):
                    return process
        raise AssertionError(f"no process {words}")

    def send(self, number: int) -> None:
        self.look()
        self.signal_group(number)

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.send(number)
        return self.wait(PATIENCE_S)

    @property
    def error(self) -> str:
        return self.stderr.removesuffix("\n")

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
        # A port that was free again may serve another test by now.
        listening = {
            c.laddr.port
            for c in psutil.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and not is_of_another_test(c.pid)
        }
        found = []
        for process in {*marked, *self.seen.running()}:
            # One may end between the two questions.
            with contextlib.suppress(psutil.NoSuchProcess):
                if runs(process):
                    found.append(f"{process.pid} {process.cmdline()}")
        return found + [f"port {port}" for port in sorted(ports & listening)]

    def ends_with(self, status: int, number: int | None = None) -> None:
        """Send a signal, and check the exit status and that nothing is left."""
        assert self.end(number) == status, self.error
        assert self.left() == []

    def wait_until_nothing_is_left(self) -> None:
        """Wait for what others clean up after a command that was killed."""
        wait_until(lambda: not self.left(), lambda: f"nothing is left: {self.left()}")

    def kill_all(self) -> None:
        for process in self.seen.running():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.kill()


@pytest.fixture(scope="session")
def open_dir() -> Iterator[Path]:
    """A directory that other accounts can pass through, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="poolkit-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def temporary(open_dir: Path) -> Path:
    """A temporary directory for the records of these runs alone."""
    path = open_dir / "tmp"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture(scope="module")
def start(temporary: Path) -> Iterator[Callable[..., Command]]:
    """A function that starts a `poolkit` command in the kit's own project, or another."""
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


def web(name: str, app: str = "plain:app") -> str:
    lines = (f"[tool.poolkit.targets.{name}]", 'kind = "web"', f'app = "{app}"', 'preset = "web"')
    return "\n".join([*lines, "database = false", ""])


@pytest.fixture
def stranger(open_dir: Path) -> Iterator[Callable[..., Path]]:
    """A function that makes another project: tables and files.

    Without tables it has a web service that needs no database.
    """
    project = Path(tempfile.mkdtemp(prefix="project-", dir=open_dir))
    project.chmod(0o755)
    # What PostgreSQL's data directory is copied from takes seconds to make.
    (project / ".poolkit").mkdir()
    (project / ".poolkit" / "cache").symlink_to(ROOT / ".poolkit" / "cache")

    def make(tables: str = web("web"), **files: str) -> Path:
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
    """A file system with room for 100 KiB: enough to begin with, and soon full."""
    directory = Path(tempfile.mkdtemp(prefix="disk-", dir=open_dir))
    with small_disk(directory, "1m"):
        (directory / "full").write_bytes(bytes(2**20 - 100 * 2**10))
        yield directory


@pytest.fixture
def read_only_disk(open_dir: Path) -> Iterator[Path]:
    """A directory that not even root can write to."""
    directory = Path(tempfile.mkdtemp(prefix="read-only-", dir=open_dir))
    with small_disk(directory, "1m", read_only=True):
        yield directory
