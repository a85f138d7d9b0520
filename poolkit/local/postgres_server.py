"""One PostgreSQL server's files and process, from the first start to the removal."""

import signal
import time
from collections.abc import Mapping
from pathlib import Path

from poolkit.errors import PortInUseError, ProcessEndedError, ServerStartError
from poolkit.local.accounts import server_account
from poolkit.local.claim import Claim
from poolkit.local.directories import last_lines, private_directory
from poolkit.local.owned_process import OwnedProcess
from poolkit.local.ports import LOOPBACK, free_port
from poolkit.local.postgres_binaries import find_binaries
from poolkit.local.postgres_cluster import configure, make_cluster, reason, server_settings
from poolkit.local.readiness import exit_words

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0
_POLL_S = 0.02
# Ports are chosen before the server binds them, so another process may be quicker.
_PORT_ATTEMPTS = 5


class PostgresServer:
    """A data directory and the postmaster that runs on it.

    Raises:
        BinaryMissingError: the programs are not installed or do not run here.
        StateDirectoryError: there is no place for the files.
        UnprivilegedAccountError: this is root, and there is no other account to take.

    """

    def __init__(self, state_dir: Path) -> None:
        self._account = server_account()
        self._directory = private_directory(state_dir, prefix="postgres", account=self._account)
        self._data = self._directory / "data"
        self.log = self._directory / "server.log"
        self.port = 0
        self._claim = Claim(
            what=f"PostgreSQL in {self._directory}",
            directory=self._directory,
            stop_signal=signal.SIGQUIT,
        )
        try:
            self._binaries = find_binaries(self._account, copy_to=self._directory / "programs")
        except BaseException:
            self._claim.release()
            raise
        self._process = OwnedProcess(
            [self._binaries.postgres, "-D", str(self._data)],
            claim=self._claim,
            log=self.log,
            # Nothing of this user's: PGDATA and LC_ALL would change what the server does.
            environ={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            account=self._account,
        )
        self._claim.at_exit(self.close)

    @property
    def pid(self) -> int:
        """The postmaster's pid.

        Raises:
            ServerStartError: it does not run.

        """
        return self._process.pid

    def make(
        self,
        *,
        cache: Path,
        password: str,
        port: int,
        max_connections: int,
        durable: bool,
        settings: Mapping[str, str],
    ) -> None:
        """Make the data directory and start on it; `port` 0 takes any that is free.

        Raises:
            PortInUseError: the port asked for is taken.
            ServerStartError: the server did not start; the message says why.
            StateDirectoryError: the files cannot be written.

        """
        account, binaries = self._account, self._binaries
        make_cluster(self._data, binaries=binaries, account=account, cache=cache, log=self.log)
        for attempt in range(_PORT_ATTEMPTS):
            self.port = port or free_port()
            wanted = server_settings(
                port=self.port, max_connections=max_connections, durable=durable, settings=settings
            )
            configure(
                self._data,
                settings=wanted,
                password=password,
                binaries=binaries,
                account=account,
                log=self.log,
            )
            try:
                self.start()
            except PortInUseError:
                if port or attempt == _PORT_ATTEMPTS - 1:
                    raise
            else:
                return

    def start(self) -> None:
        """Start the postmaster and wait until it takes connections.

        Raises:
            PortInUseError: somebody else listens on its port.
            ServerStartError: it ended, or was not ready in time.

        """
        if self._process.is_running():
            return
        said = self.log.stat().st_size if self.log.exists() else 0
        self._process.start()
        self._wait_until_ready(said)

    def _wait_until_ready(self, said: int) -> None:
        """Wait for the line "ready" that the postmaster writes to its pid file."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_ready():
            if not self._process.is_running():
                raise self._start_failure(said)
            if time.monotonic() > deadline:
                self.stop(signal.SIGQUIT)
                raise ServerStartError(
                    f"PostgreSQL was not ready after {_START_TIMEOUT_S:.0f} s; the end of its "
                    f"log:\n{last_lines(self.log)}"
                )
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        """Read the pid file: line 1 the pid, line 8 the state (utils/pidfile.h)."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            len(lines) >= 8
            and self._process.is_running()
            and lines[0] == str(self._process.pid)
            and lines[7].strip() == "ready"
        )

    def _start_failure(self, said: int) -> ServerStartError | PortInUseError:
        """Put what the server said since byte `said` of its log into an exception."""
        with self.log.open("rb") as log:
            log.seek(said)
            output = log.read().decode(errors="replace")
        if "Address already in use" in output:
            return PortInUseError(
                f"port {self.port} of {LOOPBACK} is in use: stop what listens there, or choose "
                "another port (0 takes any that is free)"
            )
        return ServerStartError(f"PostgreSQL did not start: {reason(output)}")

    def check(self) -> None:
        """Look whether the postmaster still runs.

        Raises:
            ProcessEndedError: it has ended, though nobody stopped it.
        """
        status = self._process.exit_status
        if status is not None:
            raise ProcessEndedError(f"PostgreSQL ended by itself with {exit_words(status)}")

    def stop(self, number: int) -> None:
        """Stop the postmaster with SIGINT (fast) or SIGQUIT (immediate), for sure."""
        self._process.stop(number, grace_s=_STOP_TIMEOUT_S)

    def close(self) -> None:
        """Stop the server and remove its files."""
        # Released only when it has ended: the keeper finishes what is interrupted here.
        self.stop(signal.SIGINT)
        self._claim.release()
