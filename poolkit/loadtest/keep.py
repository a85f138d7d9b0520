"""A load test on a machine that goes away: Locust runs, and its files are kept in S3.

    python -m poolkit.loadtest.keep s3://BUCKET/RUN [options] -- locust --master --csv run …

Locust works in an empty folder, and every file that it leaves there goes to the prefix: once a
minute while it runs, and when it has ended, however that came about. SIGTERM, with which ECS
stops a task, ends Locust as Ctrl-C does: once more, it ends the waiting for users and workers.

`DATABASE_SECRET_ARN` with `DATABASE_HOST` and `DATABASE_NAME` becomes Locust's `DATABASE_URL`, so
that no task definition has a password.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from poolkit.errors import ConfigurationError, LoadFailedError, PoolkitError, ResultsNotKept
from poolkit.loadtest.results_bucket import FINISHED, STARTED, ResultsBucket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UPLOAD_EVERY_S: Final = 60.0
GRACE_S: Final = 60.0
"""How long Locust has for its reports after it was told to end; Fargate gives a task 120 s."""
TRY_AGAIN_S: Final = 30.0
REFUSED: Final = 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    url: str
    command: tuple[str, ...]
    wait: bool = False
    """Stay when the load has ended: who is started again when it ends would load again."""


def read_options(words: Sequence[str]) -> Options:
    """Return the options.

    Raises:
        ConfigurationError: there is no command, or one with a password in it.
    """
    own, separator, command = _split(words)
    parser = argparse.ArgumentParser(prog="python -m poolkit.loadtest.keep", allow_abbrev=False)
    parser.add_argument("url", metavar="s3://BUCKET/RUN")
    parser.add_argument("--wait", action="store_true", help="stay until stopped, as a service must")
    parser.add_argument("--options", default="", help="more words for the command, as in a shell")
    given = parser.parse_args(own)
    try:
        command += shlex.split(given.options)
    except ValueError as error:
        raise ConfigurationError(f"--options {given.options!r}: {error}") from None
    if not separator or not command:
        raise ConfigurationError("wanted the command to run behind --, such as: -- locust --master")
    if any(word.partition("=")[0] == "--database-url" for word in command):
        raise ConfigurationError(
            "--database-url has a password, and the command is kept with the results; set "
            "DATABASE_URL, or DATABASE_SECRET_ARN with DATABASE_HOST and DATABASE_NAME"
        )
    return Options(url=given.url, command=tuple(command), wait=given.wait)


def _split(words: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in words:
        return list(words), False, []
    place = words.index("--")
    return list(words[:place]), True, list(words[place + 1 :])


def database_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that Locust gets: with a secret, its user and password in a URL.

    Raises:
        ConfigurationError: the variables about the database contradict each other.
        CredentialsError: the secret cannot be read.
    """
    if not environ.get("DATABASE_SECRET_ARN"):
        return dict(environ)
    from poolkit.config.credentials import source_for  # noqa: PLC0415 - SQLAlchemy
    from poolkit.config.settings import Settings  # noqa: PLC0415 - the same

    settings = Settings.from_environ(environ, default_target="script")
    source = source_for(settings)
    assert source is not None  # noqa: S101  (a secret is one)
    found = source.fetch()
    url = settings.url.set(username=found.user, password=found.password)
    return {**environ, "DATABASE_URL": url.render_as_string(hide_password=False)}


class Stop:
    """SIGTERM and Ctrl-C: heard once, and passed on to Locust as Ctrl-C."""

    def __init__(self) -> None:
        self.since: float | None = None
        """When it was heard (`time.monotonic()`); None until then."""
        self._heard = threading.Event()
        self._insisted = False
        self._process: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def _hear(self, *_: object) -> None:
        if self.since is None:
            self.since = time.monotonic()
            self._heard.set()
            self._pass_on()

    def follow(self, process: subprocess.Popen[bytes]) -> None:
        """Pass it on to this process, at once when it was heard before."""
        self._process = process
        if self.since is not None:
            self._pass_on()

    def _pass_on(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    def insist(self, process: subprocess.Popen[bytes]) -> None:
        """End a process that takes its time: again after half of GRACE_S, then by SIGKILL.

        Locust may wait for users (`--stop-timeout`) or workers, and at a second Ctrl-C does not.
        """
        waited = 0.0 if self.since is None else time.monotonic() - self.since
        if waited > GRACE_S:
            _say(f"it did not end within {GRACE_S:g} s and is killed")
            os.killpg(process.pid, signal.SIGKILL)
        elif waited > GRACE_S / 2 and not self._insisted:
            self._insisted = True
            self._pass_on()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is heard; False if it was not in time."""
        return self._heard.wait(timeout_s)


@dataclass
class Keeper:
    """One run of the command."""

    options: Options
    results: ResultsBucket
    stop: Stop
    started: dict[str, Any] = field(default_factory=dict)

    def run(self) -> int:
        """Load, keep the files, and return Locust's exit status.

        Raises:
            PoolkitError: nothing was loaded, or the files could not be kept; one line says why.
        """
        environ = database_environ(os.environ)
        self._begin()
        with tempfile.TemporaryDirectory(prefix="poolkit-load-") as work:
            status = self._load(Path(work), environ)
            if status != 0 and self.stop.since is None and not _left_anything(Path(work)):
                # Not marked as finished: with the mistake repaired, it may be run.
                raise LoadFailedError(
                    f"{self.options.command[0]} ended with status {status} and left nothing, so "
                    "nothing was loaded; what it said is above"
                )
            self._keep(Path(work), status)
        return status

    def _begin(self) -> None:
        if self.results.has(FINISHED):
            raise ResultsNotKept(
                f"{self.results.url} has a finished run ({FINISHED}), which is not run again; "
                "give this one another name"
            )
        before = self.results.read(STARTED).get("attempt", 0)
        self.started = {
            "started": _now(),
            "command": list(self.options.command),
            "attempt": before + 1 if isinstance(before, int) else 1,
        }
        self.results.write(STARTED, self.started)

    def _load(self, folder: Path, environ: Mapping[str, str]) -> int:
        try:
            # A session of its own: Ctrl-C on a terminal would reach it twice.
            process = subprocess.Popen(
                self.options.command, cwd=folder, env=environ, start_new_session=True
            )
        except OSError as error:
            raise ConfigurationError(f"{self.options.command[0]}: {error}") from None
        self.stop.follow(process)
        due = time.monotonic() + UPLOAD_EVERY_S
        while True:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(1.0)
                return status if status >= 0 else 128 - status
            self.stop.insist(process)
            if time.monotonic() > due:
                due = time.monotonic() + UPLOAD_EVERY_S
                self._upload_meanwhile(folder)

    def _upload_meanwhile(self, folder: Path) -> None:
        try:
            self.results.upload(folder)
        except ResultsNotKept as error:
            _say(f"not kept for now: {error}")

    def _keep(self, folder: Path, status: int) -> None:
        """Upload until it works, or the time to stop has come."""
        while True:
            try:
                self._finish(self.results.upload(folder), status)
            except ResultsNotKept as error:
                if not self.options.wait or self.stop.since is not None:
                    raise
                _say(f"not kept yet, trying again every {TRY_AGAIN_S:g} s: {error}")
                self.stop.wait(TRY_AGAIN_S)
            else:
                return

    def _finish(self, files: dict[str, int], status: int) -> None:
        stopped = self.stop.since is not None
        marker = {"ended": _now(), "status": status, "stopped": stopped, "files": files}
        self.results.write(FINISHED, self.started | marker)
        early = ", stopped early" if stopped else ""
        _say(f"ended with status {status}{early}; {len(files)} files are in {self.results.url}")


def _left_anything(folder: Path) -> bool:
    return any(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _say(words: str) -> None:
    print(f"poolkit.loadtest.keep: {words}", file=sys.stderr, flush=True)  # noqa: T201 - the log


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit status.

    Locust's; or 2 when nothing was loaded, or its files could not be kept.
    """
    stop = Stop()
    wait = False
    try:
        options = read_options(words)
        results = ResultsBucket(options.url)
        # What is wrong before the load must not look like a service at work, except for what has
        # been loaded already: started again, it would only be refused again.
        wait = options.wait and results.has(FINISHED)
        status = Keeper(options, results, stop).run()
        wait = options.wait
    except PoolkitError as error:
        _say(str(error))
        status = REFUSED
    if wait and stop.since is None:
        _say("waiting to be stopped")
        stop.wait()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
