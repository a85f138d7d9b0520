"""A load test on a machine that goes away: run Locust, and upload its files to S3.

    python -m poolkit.loadtest.results_uploader s3://BUCKET/RUN [options] -- locust --master --csv run …

Locust works in an empty folder. Every file in it is uploaded under the prefix once a minute, and
again when Locust has ended, for whatever reason. SIGTERM, with which ECS stops a task, reaches
Locust as Ctrl-C; after half of the grace period it gets a second one, which ends its waiting for
users and workers.

`started.json` is uploaded before the load begins, which also proves that the bucket exists and can
be written to. `finished.json` is uploaded last; a prefix that has one is never loaded again.

`DATABASE_SECRET_ARN` with `DATABASE_HOST` and `DATABASE_NAME` becomes Locust's `DATABASE_URL`, so
that no task definition contains a password.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from poolkit.errors import (
    ConfigurationError,
    LoadFailedError,
    PoolkitError,
    ResultsUploadError,
    how_to_install,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

STARTED: Final = "started.json"
FINISHED: Final = "finished.json"
UPLOAD_EVERY_S: Final = 60.0
GRACE_S: Final = 60.0
"""The time for Locust's reports after the signal to end; Fargate gives a task 120 s."""
TRY_AGAIN_S: Final = 30.0
REFUSED: Final = 2
_S3_ERRORS: Final = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "not allowed; the role needs s3:ListBucket, s3:GetObject and s3:PutObject there",
    "ExpiredToken": "the AWS credentials have expired",
    "InvalidAccessKeyId": "AWS does not accept the credentials",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options and the command to run."""

    url: str
    command: tuple[str, ...]
    wait: bool = False
    """Stay after the load has ended. A service that ends is started again and would load again."""


def read_options(words: Sequence[str]) -> Options:
    """Return the options.

    Raises:
        ConfigurationError: there is no command, or it contains a password.
    """
    own, command = list(words), []
    if has_command := "--" in words:
        separator = own.index("--")
        own, command = own[:separator], own[separator + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m poolkit.loadtest.results_uploader", allow_abbrev=False
    )
    parser.add_argument("url", metavar="s3://BUCKET/RUN")
    parser.add_argument("--wait", action="store_true", help="stay until stopped, as a service must")
    parser.add_argument(
        "--options", default="", help="more arguments for the command, split as a shell would"
    )
    given = parser.parse_args(own)
    try:
        command += shlex.split(given.options)
    except ValueError as error:
        raise ConfigurationError(f"--options {given.options!r}: {error}") from None
    if not has_command or not command:
        raise ConfigurationError("wanted the command to run behind --, such as: -- locust --master")
    if any(word.partition("=")[0] == "--database-url" for word in command):
        raise ConfigurationError(
            "--database-url contains a password, and the command is uploaded with the results; set "
            "DATABASE_URL, or DATABASE_SECRET_ARN with DATABASE_HOST and DATABASE_NAME"
        )
    return Options(url=given.url, command=tuple(command), wait=given.wait)


def database_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return Locust's environment: user and password of a secret become part of DATABASE_URL.

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


class ResultsBucket:
    """One run's prefix in a bucket; AWS_ENDPOINT_URL and AWS_REGION are honoured.

    Every method raises `ResultsUploadError`, in one line, when S3 refuses or cannot be reached.

    Raises:
        ConfigurationError: the URL is not `s3://BUCKET/RUN`, or boto3 is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme, _, rest = self.url.partition("://")
        self.bucket, _, self.prefix = rest.partition("/")
        if scheme != "s3" or not self.bucket or not self.prefix:
            raise ConfigurationError(f"wanted s3://BUCKET/RUN, found {self.url!r}")
        try:
            import boto3  # noqa: PLC0415 - 100 ms, and an extra
        except ImportError:
            raise ConfigurationError(
                f"uploading results to S3 needs boto3; install it with: {how_to_install('aws')}"
            ) from None
        from botocore.config import Config  # noqa: PLC0415 - the same

        self._uploaded: dict[str, tuple[int, int]] = {}
        with self._one_line_errors():
            # Fargate names the region in a variable that boto3 does not read.
            region = os.environ.get("AWS_REGION") or None
            config = Config(connect_timeout=5, retries={"mode": "standard", "max_attempts": 4})
            self._client = boto3.client("s3", region_name=region, config=config)

    def has(self, name: str) -> bool:
        """Return whether a file exists."""
        key = f"{self.prefix}/{name}"
        with self._one_line_errors():
            # Listing instead of a HEAD, which gives no reason when it is refused.
            found = self._client.list_objects_v2(Bucket=self.bucket, Prefix=key)
        return any(each["Key"] == key for each in found.get("Contents", ()))

    def read(self, name: str) -> dict[str, Any]:
        """Return the content of `started.json` or `finished.json`; empty when there is none."""
        if not self.has(name):
            return {}
        with self._one_line_errors():
            found = self._client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}")
            body = found["Body"].read()
        try:
            content = json.loads(body)
        except ValueError:
            content = None
        return content if isinstance(content, dict) else {}

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `started.json` or `finished.json`."""
        body = json.dumps(content, indent=1).encode()
        with self._one_line_errors():
            self._client.put_object(
                Bucket=self.bucket,
                Key=f"{self.prefix}/{name}",
                Body=body,
                ContentType="application/json",
            )

    def upload(self, folder: Path) -> dict[str, int]:
        """Upload the files that are new or have changed; return all files with their bytes."""
        sizes = {}
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name, state = file.relative_to(folder).as_posix(), file.stat()
            sizes[name] = state.st_size
            version = (state.st_size, state.st_mtime_ns)
            if self._uploaded.get(name) != version:
                with self._one_line_errors():
                    self._client.upload_file(str(file), self.bucket, f"{self.prefix}/{name}")
                self._uploaded[name] = version
        return sizes

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        from boto3.exceptions import Boto3Error  # noqa: PLC0415 - an extra
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - the same

        try:
            yield
        except ClientError as error:
            found = error.response.get("Error", {})
            code = str(found.get("Code", ""))
            text = _S3_ERRORS.get(code, f"{code}: {found.get('Message', '')}")
            raise ResultsUploadError(f"{self.url}: {text}") from None
        except (BotoCoreError, Boto3Error, OSError) as error:
            raise ResultsUploadError(f"{self.url}: {error}") from None


class StopSignal:
    """SIGTERM or Ctrl-C: noted once, and passed on to Locust as Ctrl-C."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.since: float | None = None
        """When it arrived (`time.monotonic()`); None until then."""
        self.process: subprocess.Popen[bytes] | None = None
        """The process that gets each further signal."""
        self._insisted = False

        def on_signal(*_: object) -> None:
            if self.since is None:
                self.since = time.monotonic()
                self.arrived.set()
                if self.process is not None:
                    self.process.send_signal(signal.SIGINT)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)

    def insist(self, process: subprocess.Popen[bytes]) -> None:
        """End a slow process: a second Ctrl-C after half of GRACE_S, SIGKILL after all of it.

        Locust may wait for users (`--stop-timeout`) or workers; a second Ctrl-C ends that.
        """
        waited = 0.0 if self.since is None else time.monotonic() - self.since
        if waited > GRACE_S:
            _log(f"it did not end within {GRACE_S:g} s and is killed")
            os.killpg(process.pid, signal.SIGKILL)
        elif waited > GRACE_S / 2 and not self._insisted:
            self._insisted = True
            process.send_signal(signal.SIGINT)


@dataclass
class ResultsUploader:
    """One run of the command, with the upload of its files."""

    options: Options
    results: ResultsBucket
    stop: StopSignal
    started: dict[str, Any] = field(default_factory=dict)

    def run(self) -> int:
        """Run the command, upload its files, and return its exit status.

        Raises:
            PoolkitError: nothing was loaded, or the files could not be uploaded; one line.
        """
        environ = database_environ(os.environ)
        if self.results.has(FINISHED):
            raise ResultsUploadError(
                f"{self.results.url} has a finished run ({FINISHED}), which is not run again; "
                "choose another name for this one"
            )
        before = self.results.read(STARTED).get("attempt", 0)
        self.started = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": list(self.options.command),
            "attempt": before + 1 if isinstance(before, int) else 1,
        }
        self.results.write(STARTED, self.started)
        with tempfile.TemporaryDirectory(prefix="poolkit-load-") as work:
            folder = Path(work)
            status = self._run_command(folder, environ)
            wrote = any(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            if status != 0 and self.stop.since is None and not wrote:
                # Not marked as finished: once the mistake is corrected, the same name can be used.
                raise LoadFailedError(
                    f"{self.options.command[0]} ended with status {status} and wrote no file, so "
                    "nothing was loaded; its output is above"
                )
            self._upload_results(folder, status)
        return status

    def _run_command(self, folder: Path, environ: Mapping[str, str]) -> int:
        try:
            # A session of its own: Ctrl-C on a terminal would reach it twice.
            process = subprocess.Popen(
                self.options.command, cwd=folder, env=environ, start_new_session=True
            )
        except OSError as error:
            raise ConfigurationError(f"{self.options.command[0]}: {error}") from None
        self.stop.process = process
        if self.stop.since is not None:  # it arrived before there was a process
            process.send_signal(signal.SIGINT)
        next_upload = time.monotonic() + UPLOAD_EVERY_S
        while True:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(1.0)
                return status if status >= 0 else 128 - status
            self.stop.insist(process)
            if time.monotonic() > next_upload:
                next_upload = time.monotonic() + UPLOAD_EVERY_S
                try:
                    self.results.upload(folder)
                except ResultsUploadError as error:
                    _log(f"not uploaded for now: {error}")

    def _upload_results(self, folder: Path, status: int) -> None:
        """Upload the files and `finished.json`; a service tries until it works or is stopped."""
        while True:
            try:
                files = self.results.upload(folder)
                stopped = self.stop.since is not None
                ended = datetime.now(UTC).isoformat(timespec="seconds")
                marker = {"ended": ended, "status": status, "stopped": stopped, "files": files}
                self.results.write(FINISHED, self.started | marker)
            except ResultsUploadError as error:
                if not self.options.wait or self.stop.since is not None:
                    raise
                _log(f"not uploaded yet, trying again every {TRY_AGAIN_S:g} s: {error}")
                self.stop.arrived.wait(TRY_AGAIN_S)
            else:
                early = ", stopped early" if stopped else ""
                _log(
                    f"ended with status {status}{early}; {len(files)} files are in {self.results.url}"
                )
                return


def _log(text: str) -> None:
    print(f"poolkit.loadtest.results_uploader: {text}", file=sys.stderr, flush=True)  # noqa: T201


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit status; 2 if nothing was loaded or uploaded."""
    stop = StopSignal()
    wait = False
    try:
        options = read_options(words)
        results = ResultsBucket(options.url)
        # A mistake found before the load must not look like a running service. The exception is a
        # run that has finished: started again, the service would only be refused again.
        wait = options.wait and results.has(FINISHED)
        status = ResultsUploader(options, results, stop).run()
        wait = options.wait
    except PoolkitError as error:
        _log(str(error))
        status = REFUSED
    if wait and stop.since is None:
        _log("waiting to be stopped")
        stop.arrived.wait()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
