"""A small server on a loopback port: what the broker and PgBouncer have in common."""

import signal
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from poolkit.errors import PortInUseError, ProcessEndedError, ServerStartError
from poolkit.local.accounts import Account
from poolkit.local.claim import Claim
from poolkit.local.directories import last_lines, private_directory
from poolkit.local.leftovers import clean_leftovers
from poolkit.local.owned_process import OwnedProcess
from poolkit.local.ports import LOOPBACK, free_port, is_free
from poolkit.local.readiness import exit_words, satisfies, wait_until_ready

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0
# A free port is found before the server binds it, so another process may be quicker.
_PORT_ATTEMPTS = 5


class LoopbackServer(ABC):
    """A server that runs for as long as it is open.

    A context manager: entering starts it, leaving stops it and removes its directory.

    Args:
        state_dir: where its files go, in a new directory of its own.
        port: the port to listen on; 0 for any free one.

    """

    name: ClassVar[str]

    def __init__(self, state_dir: Path, *, port: int = 0) -> None:
        self.host = LOOPBACK
        self.port = port
        self._chooses_port = port == 0
        self._state_dir = state_dir
        self._running: tuple[Claim, OwnedProcess, Path] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host}:{self.port}>"

    @abstractmethod
    def _program(self) -> Path:
        """Find the program, or raise BinaryMissingError."""

    @abstractmethod
    def _account(self) -> Account:
        """Choose who it runs as, or raise UnprivilegedAccountError."""

    @abstractmethod
    def _arguments(self, directory: Path) -> list[str]:
        """Return the command's arguments."""

    @abstractmethod
    def _prepare(self, directory: Path) -> bytes:
        """Write its files for the port of now; return what it reads from standard input."""

    @abstractmethod
    def _answers(self) -> bool:
        """Ask it whether it works."""

    @property
    def pid(self) -> int:
        """The server's pid.

        Raises:
            ServerStartError: it does not run.

        """
        return self._parts()[1].pid

    @property
    def log(self) -> Path:
        """The file with what the server says since its last start.

        Raises:
            ServerStartError: it was never started.

        """
        return self._parts()[2] / "server.log"

    def _parts(self) -> tuple[Claim, OwnedProcess, Path]:
        if self._running is None:
            raise ServerStartError(f"{self.name} was never started: call start() first")
        return self._running

    def start(self) -> Self:
        """Start the server and wait until it answers; after a stop, on the same port.

        Raises:
            BinaryMissingError: the program is not installed or does not run here.
            NotReadyError: it does not answer.
            PortInUseError: the port asked for is taken.
            ServerStartError: it ended at once; the message says why.
            StateDirectoryError: there is no place for its files.
            UnprivilegedAccountError: it may not run as root, and there is no other account.

        """
        if self._running is None:
            self._running = self._settle()
        try:
            if not self._running[1].is_running():
                self._start_on_a_port()
        except BaseException:
            self.close()
            raise
        self._chooses_port = False
        return self

    def _settle(self) -> tuple[Claim, OwnedProcess, Path]:
        """Make the directory, the claim and the process to be."""
        program, account = self._program(), self._account()
        clean_leftovers()
        directory = private_directory(
            self._state_dir, prefix=type(self).__name__.lower(), account=account
        )
        claim = Claim(what=f"{self.name} in {directory}", directory=directory).at_exit(self.close)
        process = OwnedProcess(
            [str(program), *self._arguments(directory)],
            claim=claim,
            log=directory / "server.log",
            environ={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            account=account,
        )
        return claim, process, directory

    def _start_on_a_port(self) -> None:
        """Start, on another port if the one that was free has been taken meanwhile."""
        if not self._chooses_port and not is_free(self.port):
            raise self._port_in_use()
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._chooses_port:
                self.port = free_port()
            try:
                return self._start_once()
            except PortInUseError:
                if not self._chooses_port or attempt == _PORT_ATTEMPTS:
                    raise
        return None

    def _start_once(self) -> None:
        _, process, directory = self._parts()
        self.log.unlink(missing_ok=True)
        process.start(says=self._prepare(directory))
        try:
            wait_until_ready(
                process,
                satisfies(self._answers),
                name=self.name,
                log=self.log,
                timeout_s=_START_TIMEOUT_S,
            )
        except ServerStartError:
            if "Address already in use" not in last_lines(self.log, count=50):
                raise
            raise self._port_in_use() from None

    def _port_in_use(self) -> PortInUseError:
        return PortInUseError(
            f"port {self.port} of {self.host} is in use: stop what listens there, or choose "
            "another port (0 takes any that is free)"
        )

    def check(self) -> None:
        """Look whether the server still runs.

        Raises:
            ProcessEndedError: it has ended, though nobody stopped it.
            ServerStartError: it was never started.

        """
        status = self._parts()[1].exit_status
        if status is not None:
            raise ProcessEndedError(f"{self.name} ended by itself with {exit_words(status)}")

    def stop(self) -> None:
        """Stop the server, ending every connection."""
        self._stop(signal.SIGTERM)

    def kill(self) -> None:
        """Stop it at once, as in a crash."""
        self._stop(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def _stop(self, number: int) -> None:
        self._parts()[1].stop(number, grace_s=_STOP_TIMEOUT_S)

    def close(self) -> None:
        """Stop it and remove its files; nothing happens if it was never started."""
        if self._running is None:
            return
        # Released only when it has ended: the keeper finishes what is interrupted here.
        self.stop()
        self._running[0].release()
        self._running = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
