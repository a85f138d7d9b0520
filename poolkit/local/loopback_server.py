"""A server on a loopback port: the base of PostgreSQL, the broker and PgBouncer."""

import secrets
import signal
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from poolkit.errors import NotReadyError, PortInUseError, ProcessEndedError, ServerStartError
from poolkit.local.accounts import Account, private_directory, server_account
from poolkit.local.leftovers import clean_leftovers
from poolkit.local.ports import LOOPBACK, free_port, is_free
from poolkit.local.processes import OwnedProcess
from poolkit.local.readiness import exit_text

# A free port is found before the server binds it, so another process may be quicker.
_PORT_ATTEMPTS = 5


class _Started(NamedTuple):
    """What a first start makes and `close` removes."""

    command: list[str]
    process: OwnedProcess
    directory: Path


class LoopbackServer(ABC):
    """A server that runs for as long as it is open.

    A context manager: entering starts it, leaving stops it and removes its directory.

    Args:
        state_dir: where its files go, in a new directory of its own.
        port: the port to listen on; 0 for any free one.
    """

    name: ClassVar[str]
    """Its name in messages."""
    slug: ClassVar[str]
    """Its name in paths."""
    refuses_root: ClassVar[bool] = True
    stop_signal: ClassVar[int] = signal.SIGTERM
    kill_signal: ClassVar[int] = signal.SIGKILL
    start_timeout_s: ClassVar[float] = 20.0
    stop_timeout_s: ClassVar[float] = 5.0
    reason: "ClassVar[staticmethod[[str], str] | None]" = None
    """Returns the server's own reason for its end, from its output since the start."""

    def __init__(self, state_dir: Path, *, port: int = 0) -> None:
        self.host = LOOPBACK
        self._state_dir = state_dir
        self._port = port
        self._chooses_port = port == 0
        self._started: _Started | None = None
        self._password = secrets.token_urlsafe(24)

    @abstractmethod
    def _command(self, directory: Path) -> list[str]:
        """Return the program and its arguments, or raise BinaryMissingError."""

    @abstractmethod
    def _prepare(self, directory: Path) -> bytes:
        """Write its files for the present port; return its standard input."""

    @abstractmethod
    def _is_ready(self, directory: Path) -> bool:
        """Return whether the server works."""

    def _set_up(self) -> None:
        """Complete the first start, when the server is ready."""
        return

    @cached_property
    def account(self) -> Account:
        """The account that it runs under.

        Raises:
            UnprivilegedAccountError: it may not run as root, and there is no other account.
        """
        return server_account() if self.refuses_root else Account.own()

    @property
    def port(self) -> int:
        """The port that it listens on, the same from the first start on.

        Raises:
            ServerStartError: it was never started.
        """
        if not self._port:
            raise ServerStartError(f"{self.name} was never started: call start() first")
        return self._port

    @property
    def pid(self) -> int:
        """The server's pid.

        Raises:
            ServerStartError: it does not run.
        """
        return self._parts().process.pid

    @property
    def log(self) -> Path:
        """The server's log.

        Raises:
            ServerStartError: it was never started.
        """
        return self._parts().process.log

    def _parts(self) -> _Started:
        if self._started is None:
            raise ServerStartError(f"{self.name} was never started: call start() first")
        return self._started

    def start(self) -> Self:
        """Start the server and wait until it answers.

        The first call also cleans up what killed runs left behind. A later one starts it on the
        same port, with its files as `stop` or `kill` left them.

        Raises:
            BinaryMissingError: the program is not installed or does not run here.
            NotReadyError: it does not answer.
            PortInUseError: the port asked for is taken.
            ServerStartError: it ended before it was ready; the message says why.
            StateDirectoryError: there is no place for its files.
            UnprivilegedAccountError: it may not run as root, and there is no other account.
        """
        if self._started is not None:
            if not self._started.process.is_running():
                self._start_on_a_port(self._started)
            return self
        account = self.account
        clean_leftovers()
        directory = private_directory(self._state_dir, prefix=self.slug, account=account)
        process = OwnedProcess(
            what=f"{self.name} in {directory}",
            log=directory / "server.log",
            # None of this user's variables: PGDATA or LC_ALL would change what it does.
            environ={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            at_exit=self.close,
            account=account,
            directory=directory,
            stop_signal=self.kill_signal,
        )
        try:
            command = self._command(directory)
        except BaseException:
            process.release()
            raise
        self._started = _Started(command, process, directory)
        try:
            self._start_on_a_port(self._started)
            self._set_up()
        except BaseException:
            self.close()
            raise
        self._chooses_port = False
        return self

    def _start_on_a_port(self, started: _Started) -> None:
        """Start, on another port if the one that was free is taken by now."""
        for _ in range(_PORT_ATTEMPTS if self._chooses_port else 1):
            if self._chooses_port:
                self._port = free_port()
            try:
                if is_free(self.port):
                    return self._start_once(started)
            except ServerStartError:
                # It has ended; or did another process take the port?
                if is_free(self.port):
                    raise
        raise PortInUseError(
            f"port {self.port} of {self.host} is in use: stop what listens there, or choose "
            "another port (0 takes any that is free)"
        )

    def _start_once(self, started: _Started) -> None:
        command, process, directory = started
        stdin = self._prepare(directory)
        begin = process.log.stat().st_size if process.log.exists() else 0
        process.start(command, stdin=stdin)
        try:
            process.wait_until_ready(
                lambda _: process.is_running() and self._is_ready(directory),
                name=self.name,
                timeout_s=self.start_timeout_s,
            )
        except NotReadyError:
            self.kill()
            raise
        except ServerStartError:
            reason = type(self).reason
            if reason is None:
                raise
            with process.log.open("rb") as log:
                log.seek(begin)
                output = log.read().decode(errors="replace")
            raise ServerStartError(f"{self.name} did not start: {reason(output)}") from None

    def check(self) -> None:
        """Check that the server still runs.

        Raises:
            ProcessEndedError: it has ended by itself.
            ServerStartError: it was never started.
        """
        status = self._parts().process.exit_status
        if status is not None:
            raise ProcessEndedError(f"{self.name} ended by itself with {exit_text(status)}")

    def stop(self) -> None:
        """Stop the server, ending every connection; its files stay for the next start."""
        self._parts().process.stop(self.stop_signal, grace_s=self.stop_timeout_s)

    def kill(self) -> None:
        """Stop it at once, as in a crash."""
        self._parts().process.stop(self.kill_signal, grace_s=self.stop_timeout_s)

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove its files; without effect if it was never started."""
        if self._started is None:
            return
        # Released only after its end: the reaper finishes an interrupted stop.
        self.stop()
        self._started.process.release()
        self._started = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
