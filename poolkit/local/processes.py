"""Processes that end with the one that started them: recorded, supervised, measured, stopped.

`OwnedProcess` is one command, with a record under which the reaper, or the next run, ends what this
process cannot. `Supervisor` runs many of them for a run.
"""

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Self

import psutil

from poolkit.errors import (
    BinaryMissingError,
    NotReadyError,
    ProcessEndedError,
    ServerStartError,
    StateDirectoryError,
)
from poolkit.local import leftovers
from poolkit.local.accounts import Account
from poolkit.local.readiness import Probe, Readiness, end_of, exit_text, last_lines_of
from poolkit.local.reaper import Reaper

_READY_POLL_S = 0.02
_reaper = Reaper()


def open_log(path: Path) -> BinaryIO:
    """Open a log to append to it. No other user can read it: programs log what they receive."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


class OwnedProcess:
    """A command in a session of its own that ends with this process; it may start and stop often.

    From the first moment a record tells the reaper what to end and to remove if this process is
    killed, until `release`.

    Args:
        what: its name in messages.
        log: the file to which its output is appended.
        environ: its whole environment, to which the variable is added by which it can be found.
        at_exit: is called if this interpreter exits before the release.
        cwd: its working directory.
        account: the account that it runs under; this process's own user if None.
        directory: is removed with it.
        stop_signal: the first signal that the reaper sends to it.
    """

    def __init__(
        self,
        *,
        what: str,
        log: Path,
        environ: Mapping[str, str],
        at_exit: Callable[[], None],
        cwd: Path = Path("/"),
        account: Account | None = None,
        directory: Path | None = None,
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        self.log = log
        self._what = what
        self._cwd = cwd
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None
        self._record = leftovers.new_record(what=what, directory=directory, stop_signal=stop_signal)
        self._environ = {**environ, leftovers.CLAIM_VARIABLE: self._record.token}
        leftovers.write_record(self._record)
        _reaper.engage()
        self._released = False
        owner = os.getpid()

        def stop_in_owner() -> None:
            # A fork inherits the exit handlers, but not the process.
            if os.getpid() == owner:
                at_exit()

        self._at_exit = atexit.register(stop_in_owner)

    @property
    def pid(self) -> int:
        """The process's pid, which is also its session's and its process group's.

        Raises:
            ServerStartError: it does not run.
        """
        if self._process is None or self._process.poll() is not None:
            raise ServerStartError(f"{self._what} does not run: start it first")
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs or was never started."""
        return None if self._process is None else self._process.poll()

    def is_running(self) -> bool:
        """Return whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, command: Sequence[str], *, stdin: bytes = b"") -> int:
        """Start it and return its pid.

        Args:
            command: the program and its arguments. Every user can list them: no password here.
            stdin: what it reads from its standard input.

        Raises:
            BinaryMissingError: the program does not exist, or cannot be run.
            StateDirectoryError: the log cannot be written.
        """
        try:
            log = open_log(self.log)
        except OSError as error:
            raise StateDirectoryError(f"cannot write {self.log}: {error.strerror}") from None
        # Ctrl-C between the start and its record would leave a process that is never ended.
        with log, signals_wait():
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._cwd,
                    env=self._environ,
                    start_new_session=True,
                    **(self._account.credentials() if self._account else {}),
                )
            except OSError as error:
                raise BinaryMissingError(
                    f"cannot run {command[0]} in {self._cwd}: {error.strerror}"
                ) from None
            first = leftovers.ProcessIdentity.of(self._process.pid)
            self._record = replace(self._record, process=first)
            leftovers.write_record(self._record)
        if self._process.stdin is not None:
            # If it has ended without reading, the wait for its readiness reports that.
            with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
                pipe.write(stdin)
        return self._process.pid

    def wait_until_ready(self, probe: Probe, *, name: str, timeout_s: float) -> None:
        """Call the probe until it returns True.

        Raises:
            NotReadyError: it did not within `timeout_s` seconds, or the process answers in a way
                that waiting does not change.
            ServerStartError: the process ended first.
        """
        deadline = time.monotonic() + timeout_s
        while not self._is_ready(probe, name):
            if (status := self.exit_status) is not None:
                raise ServerStartError(
                    f"{name} ended with {exit_text(status)} before it was ready; {end_of(self.log)}"
                )
            if time.monotonic() > deadline:
                text = f"{name} was not ready after {timeout_s:g} s"
                if not isinstance(probe, Readiness):
                    raise NotReadyError(f"{text}; {end_of(self.log)}")
                last = f"; the last thing seen: {probe.last}" if probe.last else ""
                raise NotReadyError(
                    f"{text}, which waited for {probe.awaited}{last}; {last_lines_of(self.log)}"
                )
            time.sleep(_READY_POLL_S)

    def _is_ready(self, probe: Probe, name: str) -> bool:
        try:
            return probe(self.log)
        except NotReadyError as error:
            raise NotReadyError(
                f"{name} is not ready: {error}; {last_lines_of(self.log)}"
            ) from None

    def stop(self, number: int, *, grace_s: float) -> None:
        """Send it a signal; end by force what still runs after `grace_s` seconds."""
        if self._process is None:
            return
        leftovers.end_processes(
            self._record, grace_s=grace_s, stop_signal=number, child=self._process
        )
        self._process.wait()
        # Only now: an interrupted stop can be tried again.
        self._process = None

    def release(self) -> None:
        """Remove the directory and the record, once all processes have ended. Idempotent."""
        if self._released:
            return
        self._released = True
        atexit.unregister(self._at_exit)
        leftovers.discard(self._record)
        _reaper.dismiss()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The memory and processor time of a process and its descendants at one moment.

    `cpu_s` counts the seconds since their start, those of ended descendants too as far as their
    parents waited for them. `rss_bytes` is the sum of the resident sets, so shared memory counts
    once for each process.
    """

    processes: int
    rss_bytes: int
    cpu_s: float

    @classmethod
    def of_tree(cls, pid: int) -> Self:
        """Measure the process `pid` and its descendants; zero if it has ended."""
        try:
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            tree = []
        processes, rss_bytes, cpu_s = 0, 0, 0.0
        for process in tree:
            # One that ends in this moment is left out whole.
            with contextlib.suppress(psutil.Error), process.oneshot():
                cpu, rss = process.cpu_times(), process.memory_info().rss
                processes += 1
                rss_bytes += rss
                cpu_s += cpu.user + cpu.system + cpu.children_user + cpu.children_system
        return cls(processes=processes, rss_bytes=rss_bytes, cpu_s=cpu_s)


Address = tuple[str, int]
"""The address and port of one end of a socket."""


def client_sockets(pids: Iterable[int]) -> dict[Address, Address]:
    """Return the TCP connections that processes and their descendants have opened.

    Connections that they accepted are left out. A process that ends meanwhile, or that belongs to
    another account, has none.

    Returns:
        The server's end of each connection, by the client's end.
    """
    sockets = []
    for pid in pids:
        tree: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
        for process in tree:
            with contextlib.suppress(psutil.Error, OSError):
                sockets += process.net_connections("tcp")
    listening = {each.laddr.port for each in sockets if each.status == psutil.CONN_LISTEN}
    return {
        _address(each.laddr): _address(each.raddr)
        for each in sockets
        if len(each.raddr) and each.laddr.port not in listening
    }


def _address(end: tuple[str, int]) -> Address:
    """Return an end of a socket; one that stands for an IPv4 address as that address."""
    address, port = end
    # A socket of IPv6 shows a peer of IPv4 as ::ffff:127.0.0.1, where the server sees 127.0.0.1.
    return address.removeprefix("::ffff:").partition("%")[0], port


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """A process of the supervisor: its name, its log, and the process itself."""

    name: str
    log: Path
    pid: int
    process: OwnedProcess


class Supervisor:
    """Named processes, each in a session of its own, ended in reverse order of their start.

    A context manager: leaving it ends them all, on Ctrl-C, on SIGTERM and on any exception.
    In the main thread it turns an unhandled SIGTERM into SystemExit. If it is killed by SIGKILL
    itself, the reaper ends them.

    Args:
        run_dir: the folder of the logs, `<name>.log`; it stays.
        grace_s: seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, run_dir: Path, *, grace_s: float = 10.0) -> None:
        self._run_dir = run_dir
        self._grace_s = grace_s
        self._running: dict[str, Supervised] = {}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        leftovers.clean_leftovers()
        self._undo.enter_context(sigterm_exits())
        return self

    def __exit__(self, *_: object) -> None:
        with self._undo:
            self.stop_all()

    @property
    def names(self) -> list[str]:
        """The names of the processes that were not stopped, in the order of their start."""
        return list(self._running)

    def pids(self, is_wanted: Callable[[str], bool]) -> list[int]:
        """Return the pids of the processes with such names; from any thread."""
        return [found.pid for found in list(self._running.values()) if is_wanted(found.name)]

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        inherited: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready: Probe | None = None,
        timeout_s: float = 30.0,
    ) -> Supervised:
        """Start a process and wait until it is ready.

        Args:
            name: also its log's name.
            command: the program and its arguments.
            environ: variables in addition to the inherited ones.
            inherited: the inherited variables; this process's own if None.
            cwd: its working directory; this process's own if None.
            ready: the probe of its readiness; None does not wait.
            timeout_s: seconds that it may take to be ready.

        Raises:
            BinaryMissingError: the program cannot be run.
            NotReadyError: it was not ready in time; the message quotes its log's last line.
            ServerStartError: it ended before it was ready; the message quotes the same.
            StateDirectoryError: its log cannot be written.
            ValueError: the name is taken, or cannot be a file's name.
        """
        if name in self._running:
            raise ValueError(f"a process named {name} runs already: stop it first")
        if not re.fullmatch(r"[\w.@:+-]+", name):
            raise ValueError(f"{name!r} cannot name a process: use letters, digits and . _ - @ : +")
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateDirectoryError(
                f"cannot make the run folder {self._run_dir}: {error.strerror}"
            ) from None
        log = self._run_dir / f"{name}.log"
        variables = {**(os.environ if inherited is None else inherited), **(environ or {})}
        process = OwnedProcess(
            what=f"{name} ({command[0]})",
            log=log,
            environ=variables,
            at_exit=self.stop_all,
            cwd=cwd or Path.cwd(),
        )
        try:
            pid = process.start(command)
        except BaseException:
            process.stop(signal.SIGKILL, grace_s=self._grace_s)
            process.release()
            raise
        self._running[name] = Supervised(name=name, log=log, pid=pid, process=process)
        try:
            if ready is not None:
                process.wait_until_ready(ready, name=name, timeout_s=timeout_s)
        except BaseException:
            self.stop(name)
            raise
        return self._running[name]

    def check(self) -> None:
        """Check that all still run.

        Raises:
            ProcessEndedError: one has ended by itself; the message quotes its log's last line.
        """
        for name, found in self._running.items():
            if (status := found.process.exit_status) is not None:
                raise ProcessEndedError(
                    f"{name} ended by itself with {exit_text(status)}; {end_of(found.log)}"
                )

    def stop(self, name: str) -> None:
        """End a process and everything it started; the log stays.

        The process alone gets SIGTERM first, so that a server can end its workers in its own
        way. What still runs then gets SIGTERM too, and after the grace SIGKILL.

        Raises:
            KeyError: no process has this name.
        """
        found = self._running[name]
        # Released only after the last end: the reaper finishes an interrupted stop.
        found.process.stop(signal.SIGTERM, grace_s=self._grace_s)
        found.process.release()
        del self._running[name]

    def stop_all(self) -> None:
        """End all, the last started first, even if one of them cannot be ended."""
        with contextlib.ExitStack() as rest:
            for name in self._running:
                rest.callback(self.stop, name)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Handle SIGINT and SIGTERM after the block instead of within it, in the main thread.

    Not by the signal mask: a process that is started in the block would inherit it. For the same
    reason, an ignored signal stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    handlers = {
        number: signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received_number in received:
            signal.raise_signal(received_number)


@contextlib.contextmanager
def owned_folder() -> Iterator[Path]:
    """A new temporary folder, which other accounts may enter and not list.

    It is removed at the end of the block, or by the reaper if this process is killed: after the
    servers that have their files in it.
    """
    with signals_wait():
        folder = Path(tempfile.mkdtemp(prefix="poolkit-"))
        # PostgreSQL does not run as root: the account that it gets reads its own files there.
        folder.chmod(0o711)
        what = f"the folder {folder}"
        record = leftovers.new_record(what=what, directory=folder, stop_signal=signal.SIGTERM)
        leftovers.write_record(record)
        _reaper.engage()
    try:
        yield folder
    finally:
        leftovers.discard(record)
        _reaper.dismiss()


@contextlib.contextmanager
def sigterm_exits() -> Iterator[None]:
    """SIGTERM raises SystemExit inside this context, so that `finally` clauses run.

    Without effect outside the main thread, or where SIGTERM has a handler already.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
