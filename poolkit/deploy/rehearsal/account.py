"""The account of a rehearsal: moto's server on a port of this machine, with its gaps filled."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import threading
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NUMBER: Final = "123456789012"
"""The number of moto's account."""


class _Replacements:
    """What replaces moto's functions; the process ends with the rehearsal, so they stay."""

    def setattr(self, target: object, name: str, value: object, raising: bool = True) -> None:  # noqa: FBT001, FBT002 - as pytest's MonkeyPatch has it
        """Set an attribute of moto's."""
        setattr(target, name, value)


class _Executions:
    """The threads in which change sets are executed, after the call that began them."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self.threads.append(thread)
        thread.start()


class RehearsalAccount:
    """An AWS account without anything in it, on this machine.

    Args:
        endpoint: the address of its server.
        region: the region of the stacks.
    """

    tasks: Any
    """The tasks of ECS (`moto_tasks.LocalTasks`); `project` is the code that they run."""

    def __init__(self, endpoint: str, region: str) -> None:
        self.variables = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "rehearsal",
            "AWS_SECRET_ACCESS_KEY": "rehearsal",
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
            # A profile of the user's would win over the keys, and lead to a real account.
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }
        self._endpoint, self._region = endpoint, region

    def client(self, service: str) -> Any:
        """Return a client of the account."""
        import boto3  # noqa: PLC0415 - 100 ms

        session: Any = boto3.Session("rehearsal", "rehearsal", region_name=self._region)
        return session.client(service, endpoint_url=self._endpoint)

    def statuses(self) -> dict[str, str]:
        """Return the status of each stack, by name."""
        stacks = self.client("cloudformation").describe_stacks()["Stacks"]
        return {stack["StackName"]: stack["StackStatus"] for stack in stacks}

    def make_bucket(self, name: str) -> None:
        """Create a bucket, which a project without a bootstrap stack has made by hand."""
        options = {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
        # The first region of S3 is the default, and refuses its own name.
        self.client("s3").create_bucket(
            Bucket=name, **{} if self._region == "us-east-1" else options
        )

    def push_image(self, repository: str, release: str, architecture: str = "arm64") -> str:
        """Put an image into a repository, as `docker push` does, and return its digest.

        Args:
            repository: its name.
            release: a text that makes the image differ from others; it becomes a tag, too.
            architecture: of the image index's one entry: arm64 or amd64.
        """
        entry = {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": f"sha256:{hashlib.sha256(release.encode()).hexdigest()}",
            "size": 1,
            "platform": {"os": "linux", "architecture": architecture},
        }
        kind = "application/vnd.oci.image.index.v1+json"
        manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]})
        pushed = self.client("ecr").put_image(
            repositoryName=repository,
            imageManifest=manifest,
            imageManifestMediaType=kind,
            imageTag=release,
        )
        return str(pushed["image"]["imageId"]["imageDigest"])


@contextmanager
def open_account(region: str, project: Path | None = None) -> Iterator[RehearsalAccount]:
    """Serve an empty account until the block ends.

    Args:
        region: the region of the stacks.
        project: the code that every image has; None is the working directory.
    """
    before = dict(os.environ)
    # A profile or an address of the user's must lead neither the server nor a step anywhere.
    for name in [name for name in before if name.startswith("AWS_")]:
        del os.environ[name]
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - a second, and an extra

    from poolkit.deploy.rehearsal.moto_gaps import fill_gaps  # noqa: PLC0415
    from poolkit.deploy.rehearsal.moto_tasks import LocalTasks  # noqa: PLC0415
    from poolkit.local.postgres import EmbeddedPostgres  # noqa: PLC0415

    # Requests, and types that it does not make, are no part of a rehearsal's output.
    for name in ("werkzeug", "moto", "samtranslator"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Tried to parse")
    warnings.filterwarnings("ignore", message="Exception")
    executions = _Executions()
    fill_gaps(_Replacements(), executions)  # type: ignore[no-untyped-call]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    account = RehearsalAccount("http://{}:{}".format(*server.get_host_and_port()), region)
    # The server itself asks for the region, when it translates a SAM template.
    os.environ.update(account.variables)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())

        @functools.cache
        def postgres() -> EmbeddedPostgres:
            return stack.enter_context(EmbeddedPostgres(Path(folder), durable=False))

        account.tasks = LocalTasks(executions, postgres, project or Path.cwd(), account.variables)  # type: ignore[no-untyped-call]
        account.tasks.fill(_Replacements())
        try:
            yield account
        finally:
            account.tasks.end()
            os.environ.clear()
            os.environ.update(before)
            for thread in executions.threads:
                thread.join(60)
            server.stop()
