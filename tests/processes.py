"""The one way in which tests start processes, wait for what they do, and end them.

    with started(sys.executable, "-m", "uvicorn", "webapp.app:app", "--port", "0") as process:
        address = process.wait_for(r"running on (\\S+)")[1]
        assert process.terminate() == 0

Output is read while it comes, so a process never blocks on a full pipe and a failed test can
show everything that was printed.
"""

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import psutil

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".poolkit" / "cache"
"""Kept between sessions, like pytest's own cache: the template of PostgreSQL's data directory."""
PATIENCE_S = 120.0
"""The limit of every wait. Only what hangs takes as long: two busy cores may need half a minute
for what takes a moment, and pytest's own limit of 300 s is above it."""

Finished: TypeAlias = subprocess.CompletedProcess[str]


def wait_until(
    condition: Callable[[], Any], what: object = "", timeout_s: float = PATIENCE_S
) -> Any:
    """Return the first true result of `condition`, which is asked fifty times a second.

    Args:
        condition: what to wait for.
        what: names it when the wait fails; a callable is called then, for instance to read a log.
        timeout_s: seconds until the wait fails.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            text = what() if callable(what) else what or condition
            raise AssertionError(f"not within {timeout_s:g} s: {text}")
        time.sleep(0.02)
    return found


def runs(process: psutil.Process | int) -> bool:
    """Return whether a process has not ended. A zombie has."""
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return found.is_running() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_listening(port: int) -> bool:
    """Return whether a server accepts connections on this port of the loopback address."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process stand still until the block ends."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def environment(variables: Mapping[str, str | None], *, clean: bool) -> dict[str, str]:
    """Return this process's variables and others on top of them.

    Args:
        variables: what to add; None removes one.
        clean: leave out first what the kit or a library of it reads.
    """
    prefixes = ("AWS_", "DATABASE_", "LAMBDA_", "LOCUST_", "POOLKIT_", "UVICORN_", "WORKER_")
    kept = {
        name: value
        for name, value in os.environ.items()
        # The session's own mark stays: it finds what a test leaves running.
        if not clean or not name.startswith(prefixes) or name.startswith("POOLKIT_TEST_")
    }
    return {name: value for name, value in {**kept, **variables}.items() if value is not None}


def run(
    *command: object,
    cwd: Path = ROOT,
    environ: Mapping[str, str | None] = MappingProxyType({}),
    clean: bool = False,
    typed: str = "",
    timeout_s: float = PATIENCE_S,
) -> Finished:
    """Run a command to its end and return its status and output, whatever the status is.

    Args:
        command: the program and its arguments.
        cwd: the working directory.
        environ: variables beside those of this process; see `environment`.
        clean: start from none that the kit reads.
        typed: its standard input.
        timeout_s: seconds until it is killed and the test fails.
    """
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment(environ, clean=clean),
        input=typed,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def run_python(*arguments: object, **options: Any) -> Finished:
    """Run this Python with arguments such as `"-c", code`; see `run`."""
    return run(sys.executable, *arguments, **options)


class RunningProcess:
    """A process whose output is collected while it runs.

    `stdout` and `stderr` are what it has written so far, `text` both in the order of arrival.
    """

    def __init__(
        self,
        *command: object,
        cwd: Path = ROOT,
        environ: Mapping[str, str | None] = MappingProxyType({}),
        clean: bool = False,
        new_session: bool = False,
    ) -> None:
        """Start the command.

        Args:
            command: the program and its arguments.
            cwd: the working directory.
            environ: variables beside those of this process; see `environment`.
            clean: start from none that the kit reads.
            new_session: give it a process group of its own, which `signal_group` reaches.
        """
        self.process = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env=environment(environ, clean=clean),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=new_session,
        )
        self.pid = self.process.pid
        self._written: list[tuple[str, str]] = []
        self._grew = threading.Condition()
        self._read_lines = 0
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True)
            for name in ("stdout", "stderr")
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        with getattr(self.process, name) as stream:
            for line in stream:
                with self._grew:
                    self._written.append((name, line))
                    self._grew.notify_all()
        with self._grew:
            self._grew.notify_all()

    @property
    def stdout(self) -> str:
        return "".join(line for name, line in self._written if name == "stdout")

    @property
    def stderr(self) -> str:
        return "".join(line for name, line in self._written if name == "stderr")

    @property
    def text(self) -> str:
        return "".join(line for _, line in self._written)

    @property
    def has_written_all(self) -> bool:
        """Whether its output is complete: it has ended, and so has all that inherited its pipes."""
        return not any(reader.is_alive() for reader in self._readers)

    def wait_for(self, pattern: str, timeout_s: float = PATIENCE_S) -> re.Match[str]:
        """Wait until its output has a line that matches, and return the first such match."""
        return self._search(pattern, 0, timeout_s)[0]

    def _search(
        self,
        pattern: str,
        begin: int,
        timeout_s: float,
        at_each_line: Callable[[], None] | None = None,
    ) -> tuple[re.Match[str], int]:
        """Return the first match from line `begin` on, and the number of the line after it."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._grew:
                complete = self.has_written_all
                lines = self._written[begin:]
            for _, line in lines:
                begin += 1
                if at_each_line is not None:
                    at_each_line()
                if match := re.search(pattern, line.rstrip("\n")):
                    return match, begin
            assert not complete, f"ended without {pattern!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {pattern!r} yet:\n{self.text}"
            with self._grew:
                if len(self._written) == begin:
                    self._grew.wait(0.2)

    def next_line(self, timeout_s: float = PATIENCE_S) -> str:
        """Return the next line of its standard output that this method has not returned yet."""

        def line() -> str:
            lines = self.stdout.splitlines(keepends=True)
            if self._read_lines < len(lines) and lines[self._read_lines].endswith("\n"):
                return lines[self._read_lines]
            assert not self.has_written_all, f"ended without another line:\n{self.text}"
            return ""

        found = str(wait_until(line, lambda: self.text, timeout_s))
        self._read_lines += 1
        return found.rstrip("\n")

    def wait_until(
        self, condition: Callable[[], Any], what: object = "", timeout_s: float = PATIENCE_S
    ) -> Any:
        """Return the first true result of `condition`; fail at once when the process has ended."""

        def found() -> Any:
            # Asked before the condition: what it did last is there when it has ended.
            ended = self.process.poll() is not None
            result = condition()
            assert result or not ended, f"ended before {what or condition}:\n{self.text}"
            return result

        return wait_until(found, lambda: f"{what or condition}\n{self.text}", timeout_s)

    def children(self) -> list[psutil.Process]:
        """Return all the processes below it."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def signal_group(self, number: int) -> None:
        """Send a signal to its whole group, as a terminal does for Ctrl-C."""
        os.killpg(self.pid, number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end and for the rest of its output; return the exit status."""
        status = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(timeout_s)
        return status

    def terminate(self, number: int = signal.SIGTERM, timeout_s: float = PATIENCE_S) -> int:
        """Send SIGTERM, or another signal, and return the exit status."""
        self.process.send_signal(number)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def started(*command: object, **options: Any) -> Iterator[RunningProcess]:
    """Start a process, and end it with the block; see `RunningProcess` for the options.

    It is asked to end with SIGTERM first, so that it can end what it started, and killed when
    it does not.
    """
    process = RunningProcess(*command, **options)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.process.wait(30)
        process.kill()


def token() -> str:
    """Return a name that no other test has."""
    return secrets.token_hex(6)
