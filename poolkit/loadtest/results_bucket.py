"""Where the files of a load test end up: a prefix of an S3 bucket.

`started.json` is written before the load begins, which also shows that the bucket is there and may
be written to; `finished.json` when the files are there, and nothing runs under a prefix that has it.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from poolkit.errors import ConfigurationError, ResultsNotKept

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

STARTED: Final = "started.json"
FINISHED: Final = "finished.json"
_FORM: Final = "wanted s3://BUCKET/RUN"
_WORDS: Final = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "not allowed; the role needs s3:ListBucket, s3:GetObject and s3:PutObject there",
    "ExpiredToken": "the AWS credentials have expired",
    "InvalidAccessKeyId": "AWS does not know the credentials",
}


class ResultsBucket:
    """One run's prefix in a bucket; AWS_ENDPOINT_URL and AWS_REGION are honoured.

    Every method raises `ResultsNotKept`, in one line, when S3 refuses or cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.bucket, self.prefix = _parts(self.url)
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._client = self._connect()

    def _connect(self) -> Any:
        try:
            import boto3  # noqa: PLC0415 - 100 ms, and an extra
        except ImportError:
            raise ConfigurationError(
                "keeping results in S3 needs boto3; install it with: pip install 'poolkit[aws]'"
            ) from None
        from botocore.config import Config  # noqa: PLC0415 - the same

        with self._in_plain_words():
            # Fargate names the region in a variable that boto3 does not read.
            region = os.environ.get("AWS_REGION") or None
            config = Config(connect_timeout=5, retries={"mode": "standard", "max_attempts": 4})
            return boto3.client("s3", region_name=region, config=config)

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        with self._in_plain_words():
            # Listing instead of a HEAD, whose refusals have no words.
            found = self._client.list_objects_v2(Bucket=self.bucket, Prefix=self._key(name))
        return any(each["Key"] == self._key(name) for each in found.get("Contents", ()))

    def read(self, name: str) -> dict[str, Any]:
        """Return one of the two markers; empty when it is not there."""
        if not self.has(name):
            return {}
        with self._in_plain_words():
            body = self._client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        return found if isinstance(found, dict) else {}

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one of the two markers."""
        body = json.dumps(content, indent=1).encode()
        with self._in_plain_words():
            self._client.put_object(
                Bucket=self.bucket,
                Key=self._key(name),
                Body=body,
                ContentType="application/json",
            )

    def upload(self, folder: Path) -> dict[str, int]:
        """Upload what is new or changed since the last time; return all files with their bytes."""
        sizes = {}
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name, state = file.relative_to(folder).as_posix(), file.stat()
            sizes[name] = state.st_size
            version = (state.st_size, state.st_mtime_ns)
            if self._uploaded.get(name) != version:
                with self._in_plain_words():
                    self._client.upload_file(str(file), self.bucket, self._key(name))
                self._uploaded[name] = version
        return sizes

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    @contextmanager
    def _in_plain_words(self) -> Iterator[None]:
        from boto3.exceptions import Boto3Error  # noqa: PLC0415 - an extra
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - the same

        try:
            yield
        except ClientError as error:
            found = error.response.get("Error", {})
            code = str(found.get("Code", ""))
            said = _WORDS.get(code, f"{code}: {found.get('Message', '')}")
            raise ResultsNotKept(f"{self.url}: {said}") from None
        except (BotoCoreError, Boto3Error, OSError) as error:
            raise ResultsNotKept(f"{self.url}: {error}") from None


def _parts(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket or not prefix:
        raise ConfigurationError(f"{_FORM}, found {url!r}")
    return bucket, prefix
