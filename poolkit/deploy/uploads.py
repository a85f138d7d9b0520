"""What goes to the code bucket: packages and large templates, each under its own checksum."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from poolkit.deploy.aws import error_code, in_plain_words
from poolkit.deploy.template import INLINE_LIMIT
from poolkit.errors import DeployError

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.deploy.template import Template


def upload_code(s3: Any, bucket: str, package: Path) -> tuple[str, bool]:
    """Upload a package unless it is there; return its key, and whether it was uploaded.

    The key is the content's SHA-256, so that another content is another key, which is what
    makes CloudFormation see a change, and the same content is none.

    Raises:
        DeployError: the bucket is not there or may not be written.
    """
    content = package.read_bytes()
    key = f"lambda/{hashlib.sha256(content).hexdigest()}.zip"
    if _is_there(s3, bucket, key):
        return key, False
    _put(s3, bucket, key, content)
    return key, True


def template_argument(s3: Any, bucket: str, template: Template, region: str) -> dict[str, str]:
    """Return the template as CreateChangeSet takes it; a large one is uploaded.

    Raises:
        DeployError: it is large and there is no bucket for it.
    """
    content = template.text.encode()
    if len(content) <= INLINE_LIMIT:
        return {"TemplateBody": template.text}
    if not bucket:
        raise DeployError(
            f"{template.file} has {len(content):,} bytes and AWS takes {INLINE_LIMIT:,} in a "
            "request; name a bucket for larger ones: code_bucket in [stack]"
        )
    key = f"templates/{hashlib.sha256(content).hexdigest()}.yaml"
    if not _is_there(s3, bucket, key):
        _put(s3, bucket, key, content)
    return {"TemplateURL": f"https://{bucket}.s3.{region}.amazonaws.com/{key}"}


def _is_there(s3: Any, bucket: str, key: str) -> bool:
    from botocore.exceptions import ClientError  # noqa: PLC0415 - 60 ms

    with in_plain_words(f"looking into the bucket {bucket}"):
        try:
            s3.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            # HEAD has no body that could tell a missing bucket from a missing key.
            if error_code(error) not in {"404", "NoSuchKey", "NotFound"}:
                raise
            return False
    return True


def _put(s3: Any, bucket: str, key: str, content: bytes) -> None:
    # S3 computes it, too, and refuses what was damaged on the way.
    with in_plain_words(f"uploading to the bucket {bucket}"):
        s3.put_object(Bucket=bucket, Key=key, Body=content, ChecksumAlgorithm="SHA256")
