"""The supervisor of the processes under load: started, watched, and ended all together."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

from poolkit.errors import ProcessEndedError, StateDirectoryError
from poolkit.local.claim import Claim
from poolkit.local.leftovers import clean_leftovers
from poolkit.local.owned_process import OwnedProcess
from poolkit.local.readiness import Probe, end_of, exit_words, wait_until_ready
from poolkit.local.usage import Usage

_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """A process of the supervisor: its name, its log, and the process itself."""

    name: str
    log: Path
    pid: int
    process: OwnedProcess
    claim: Claim


class Supervisor:
    """Named processes, each in a session of its own, ended in reverse order of their start.

    A context manager: leaving it ends them all, on Ctrl-C, on SIGTERM (which it turns into
    SystemExit where it is entered in the main thread and nobody handles it yet), and on any
    exception. What SIGKILL does not let it end, the claims' keeper ends.

    Args:
        run_dir: the folder of the logs, `<name>.log`; it stays.
        grace_s: seconds between the polite signal and SIGKILL.

    """

    def __init__(self, run_dir: Path, *, grace_s: float = 10.0) -> None:
        self._run_dir = run_dir
        self._grace_s = grace_s
        self._running: dict[str, Supervised] = {}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        clean_leftovers()
        self._undo.enter_context(sigterm_exits())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._undo:
            self.stop_all()

    @property
    def names(self) -> list[str]:
        """The names of what was started and not stopped, in the order of their start."""
        return list(self._running)

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
            name: what it is called here; also its log's name.
            command: the program and its arguments.
            environ: variables on top of the inherited ones.
            inherited: this process's own if None.
            cwd: its working directory; this process's own if None.
            ready: how to see that it is ready; None does not wait.
            timeout_s: seconds it may take to be ready.

        Raises:
            BinaryMissingError: the program cannot be run.
            NotReadyError: it was not ready in time; the message quotes its log's last line.
            ServerStartError: it ended before it was ready; the same.
            StateDirectoryError: its log cannot be written.
            ValueError: the name is taken, or cannot be a file's name.

        """
        variables = {**(os.environ if inherited is None else inherited), **(environ or {})}
        started = self._launch(name, command, environ=variables, cwd=cwd or Path.cwd())
        self._running[name] = started
        try:
            if ready is not None:
                wait_until_ready(
                    started.process, ready, name=name, log=started.log, timeout_s=timeout_s
                )
        except BaseException:
            self.stop(name)
            raise
        return started

    def _launch(
        self, name: str, command: Sequence[str], *, environ: Mapping[str, str], cwd: Path
    ) -> Supervised:
        log = self._log_of(name)
        claim = Claim(what=f"{name} ({command[0]})").at_exit(self.stop_all)
        process = OwnedProcess(command, claim=claim, log=log, environ=environ, cwd=cwd)
        try:
            pid = process.start()
        except BaseException:
            process.stop(signal.SIGKILL, grace_s=self._grace_s)
            claim.release()
            raise
        return Supervised(name=name, log=log, pid=pid, process=process, claim=claim)

    def _log_of(self, name: str) -> Path:
        """Return the path of a new process's log, its folder made if need be."""
        if name in self._running:
            raise ValueError(f"a process named {name} runs already: stop it first")
        if not re.fullmatch(r"[\w.@:-]+", name):
            raise ValueError(f"{name!r} cannot name a process: use letters, digits and . _ - @ :")
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateDirectoryError(
                f"cannot make the run folder {self._run_dir}: {error.strerror}"
            ) from None
        return self._run_dir / f"{name}.log"

    def check(self) -> None:
        """Look whether all still run.

        Raises:
            ProcessEndedError: one has ended by itself; the message quotes its log's last line.

        """
        for name, found in self._running.items():
            if (status := found.process.exit_status) is not None:
                raise ProcessEndedError(
                    f"{name} ended by itself with {exit_words(status)}; {end_of(found.log)}"
                )

    def wait(self) -> NoReturn:
        """Wait until one ends by itself, or a signal comes.

        Raises:
            ProcessEndedError: one has ended; the message quotes its log's last line.

        """
        while True:
            self.check()
            time.sleep(_POLL_S)

    def usage(self, name: str) -> Usage:
        """Measure a process and its descendants; zero when it has ended.

        Raises:
            KeyError: no process has this name.

        """
        return Usage.of_tree(self._running[name].pid)

    def stop(self, name: str) -> None:
        """End a process and everything it started; the log stays.

        It gets SIGTERM by itself first, so that a server can end its workers in its own
        way; what then still runs gets SIGTERM too, and after the grace SIGKILL.

        Raises:
            KeyError: no process has this name.

        """
        found = self._running[name]
        # Released only when all has ended: the keeper finishes what is interrupted here.
        found.process.stop(signal.SIGTERM, grace_s=self._grace_s)
        found.claim.release()
        del self._running[name]

    def stop_all(self) -> None:
        """End all, the last started first, whatever happens to any of them."""
        with contextlib.ExitStack() as rest:
            for name in self._running:
                rest.callback(self.stop, name)


@contextlib.contextmanager
def sigterm_exits() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that `with` blocks and `finally` clauses run.

    Changes nothing outside the main thread, or where SIGTERM has a handler already.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
