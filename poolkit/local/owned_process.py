"""One process under a claim: in a session of its own, its output in a log, ended for sure."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from poolkit.errors import BinaryMissingError, ServerStartError, StateDirectoryError
from poolkit.local.accounts import Account
from poolkit.local.claim import Claim


class OwnedProcess:
    """A command that may be started and stopped several times under one claim.

    Args:
        command: the program and its arguments, seen by everybody: no password in it.
        claim: what ends it when this process ends.
        log: the file its output is appended to.
        environ: its whole environment, to which the claim's mark is added.
        cwd: its working directory.
        account: who it runs as; this process's own user if None.

    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        claim: Claim,
        log: Path,
        environ: Mapping[str, str],
        cwd: Path = Path("/"),
        account: Account | None = None,
    ) -> None:
        self._command = list(command)
        self._claim = claim
        self._log = log
        self._environ = dict(environ)
        self._cwd = cwd
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process's pid, which is also its session's and its process group's.

        Raises:
            ServerStartError: it does not run.

        """
        if self._process is None or self._process.poll() is not None:
            raise ServerStartError(f"{self._command[0]} does not run: start it first")
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs or was never started."""
        return None if self._process is None else self._process.poll()

    def is_running(self) -> bool:
        """Tell whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, says: bytes = b"") -> int:
        """Start it and return its pid; `says` is what it reads from its standard input.

        Raises:
            BinaryMissingError: there is no such program, or it cannot be run.
            StateDirectoryError: the log cannot be written.

        """
        try:
            log = self._log.open("ab")
        except OSError as error:
            raise StateDirectoryError(f"cannot write {self._log}: {error.strerror}") from None
        with log:
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE if says else subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._cwd,
                    env={**self._environ, **self._claim.environ},
                    start_new_session=True,
                    **(self._account.credentials() if self._account else {}),
                )
            except OSError as error:
                raise BinaryMissingError(
                    f"cannot run {self._command[0]} in {self._cwd}: {error.strerror}"
                ) from None
        self._claim.started(self._process.pid)
        self._say(says)
        return self._process.pid

    def _say(self, words: bytes) -> None:
        """Write to its standard input and close it."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            with self._process.stdin as pipe:
                pipe.write(words)
        except BrokenPipeError:
            # It ended without reading: whoever waits for it to be ready will see that.
            return

    def stop(self, number: int, *, grace_s: float) -> None:
        """Send it a signal; what still runs after `grace_s` seconds is ended by force."""
        if self._process is None:
            return
        self._claim.end_processes(self._process, stop_signal=number, grace_s=grace_s)
        self._process.wait()
        # Only now: an interrupted stop can be tried again.
        self._process = None
