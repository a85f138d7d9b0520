"""AWS's clients and code bucket, and AWS's refusals as one-line messages."""

from __future__ import annotations

import base64
import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from poolkit.errors import DeployError, how_to_install

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_REFUSED: Final = frozenset(
    {"InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "AuthFailure"}
)

_LONGEST_MESSAGE: Final = 2000


@dataclass
class Aws:
    """One region of one account, chosen by boto3's own settings and AWS_ENDPOINT_URL."""

    region: str = ""
    _session: Any = field(default=None, init=False, repr=False)

    def client(self, service: str, *, region: str = "") -> Any:
        """Return a client, of another region than this one if it is given.

        Raises:
            DeployError: no region is set, or boto3 is not installed.
        """
        try:
            import boto3  # noqa: PLC0415 - 100 ms, and an extra
            from botocore.config import Config  # noqa: PLC0415
        except ImportError:
            raise DeployError(
                f"deploying needs boto3; install it with: {how_to_install('infra')}"
            ) from None
        with in_plain_words(f"connecting to {service}"):
            if self._session is None:
                self._session = boto3.Session(region_name=self.region or None)
            config = Config(connect_timeout=5, retries={"mode": "standard", "max_attempts": 4})
            return self._session.client(service, region_name=region or None, config=config)

    @cached_property
    def cloudformation(self) -> Any:
        """The client that stacks are made with."""
        return self.client("cloudformation")

    @cached_property
    def account(self) -> str:
        """The number of the account. Raises `DeployError`."""
        with in_plain_words("asking for the account"):
            return str(self.client("sts").get_caller_identity()["Account"])


DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException"})
"""The codes of a call that no policy allows."""


@contextmanager
def in_plain_words(doing: str) -> Iterator[None]:
    """Turn boto3's exceptions inside the block into one line that says what to do.

    Raises:
        DeployError: instead of botocore's exceptions.
    """
    from botocore import exceptions, parsers  # noqa: PLC0415 - 60 ms

    try:
        yield
    except exceptions.ClientError as error:
        code, message = error_code(error), str(error.response["Error"].get("Message", ""))
        if code in _EXPIRED:
            message = (
                "the AWS credentials have expired; renew them, for example with `aws sso login`"
            )
        elif code in _REFUSED:
            message = f"AWS does not accept the credentials ({code}); check AWS_PROFILE"
        elif code in DENIED:
            message = f"not allowed: {message}"
        else:
            message = f"{code}: {message}"
        raise DeployError(f"{doing}: {_one_line(message)}") from None
    except exceptions.NoRegionError:
        raise DeployError(
            f"{doing}: no region; set AWS_REGION, or region in [stack] of the environment's file"
        ) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        raise DeployError(
            f"{doing}: no AWS credentials; set AWS_PROFILE, or run `aws sso login`"
        ) from None
    except parsers.ResponseParserError:  # which is no BotoCoreError
        raise DeployError(
            f"{doing}: the answer is not AWS's, but probably a proxy's page; check "
            "AWS_ENDPOINT_URL, HTTPS_PROXY and the network"
        ) from None
    except exceptions.BotoCoreError as error:
        raise DeployError(f"{doing}: {_one_line(str(error))}") from None


def _one_line(message: str) -> str:
    """Return a message on one line; a proxy's page is cut off."""
    line = " ".join(message.split())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}…"


def error_code(error: Any) -> str:
    """Return AWS's code of a ClientError."""
    return str(error.response.get("Error", {}).get("Code", ""))


# -- the code bucket ------------------------------------------------------------------------

INLINE_LIMIT: Final = 51_200
"""Bytes of a template in a request; a larger one goes by way of S3 (CloudFormation User Guide,
"Understand CloudFormation quotas", Template body size in a request)."""


class Upload(NamedTuple):
    """An object in the code bucket."""

    key: str
    is_new: bool
    """False: the bucket had it already."""


def content_key(content: bytes, *, prefix: str, ending: str) -> str:
    """Return the key of content in the code bucket."""
    return f"{prefix}/{hashlib.sha256(content).hexdigest()}.{ending}"


def upload(s3: Any, bucket: str, content: bytes, *, prefix: str, ending: str) -> Upload:
    """Store content under its own checksum, unless it is there.

    Different content has a different key, so CloudFormation sees a change. The same content is no
    change. Other content under its key is replaced.

    Raises:
        DeployError: the bucket is missing, or may not be written to.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415 - 60 ms

    key = content_key(content, prefix=prefix, ending=ending)
    checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
    with in_plain_words(f"looking into the bucket {bucket}"):
        try:
            found = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        except ClientError as error:
            # HEAD has no body that would distinguish a missing bucket from a missing key.
            if error_code(error) not in {"404", "NoSuchKey", "NotFound"}:
                raise
        else:
            # A key is a promise of its writer, the checksum is computed by S3.
            if found.get("ChecksumSHA256") == checksum:
                return Upload(key, is_new=False)
    # S3 computes the checksum, too, and refuses an object that was damaged on the way.
    with in_plain_words(f"uploading to the bucket {bucket}"):
        s3.put_object(Bucket=bucket, Key=key, Body=content, ChecksumAlgorithm="SHA256")
    return Upload(key, is_new=True)


def template_argument(s3: Any, bucket: str, file: Path, text: str) -> dict[str, str]:
    """Return a template as CreateChangeSet takes it; a large one is uploaded.

    Raises:
        DeployError: it is large and there is no bucket for it.
    """
    content = text.encode()
    if len(content) <= INLINE_LIMIT:
        return {"TemplateBody": text}
    if not bucket:
        raise DeployError(
            f"{file} has {len(content):,} bytes, but a request may have {INLINE_LIMIT:,} at most; "
            "name a bucket for larger templates: code_bucket in [stack]"
        )
    key = upload(s3, bucket, content, prefix="templates", ending="yaml").key
    return {"TemplateURL": f"https://{bucket}.s3.{s3.meta.region_name}.amazonaws.com/{key}"}
