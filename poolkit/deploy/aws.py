"""AWS's clients, and its refusals in plain words."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from poolkit.errors import DeployError, how_to_install

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_REFUSED: Final = frozenset(
    {"InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "AuthFailure"}
)


@dataclass
class Aws:
    """One region of one account, as boto3's own settings and AWS_ENDPOINT_URL say."""

    region: str = ""

    def client(self, service: str) -> Any:
        """Return a client.

        Raises:
            DeployError: no region is set, or boto3 is not installed.
        """
        from botocore.config import Config  # noqa: PLC0415 - 60 ms

        with in_plain_words(f"connecting to {service}"):
            config = Config(connect_timeout=5, retries={"mode": "standard", "max_attempts": 4})
            return self._session.client(service, config=config)

    @cached_property
    def _session(self) -> Any:
        try:
            import boto3  # noqa: PLC0415 - 100 ms, and an extra
        except ImportError:
            raise DeployError(
                f"deploying needs boto3; install it with: {how_to_install('infra')}"
            ) from None
        with in_plain_words("reading the AWS configuration"):
            return boto3.Session(region_name=self.region or None)

    @cached_property
    def cloudformation(self) -> Any:
        """The client that stacks are made with."""
        return self.client("cloudformation")

    def protect(self, stack: str) -> None:
        """Have AWS refuse to delete a stack until that is lifted. Raises `DeployError`."""
        with in_plain_words(f"protecting {stack}"):
            self.cloudformation.update_termination_protection(
                StackName=stack, EnableTerminationProtection=True
            )


@contextmanager
def in_plain_words(doing: str) -> Iterator[None]:
    """Turn what boto3 raises inside the block into one line that says what to do.

    Raises:
        DeployError: instead of botocore's exceptions.
    """
    from botocore import exceptions  # noqa: PLC0415 - 60 ms

    try:
        yield
    except exceptions.ClientError as error:
        raise DeployError(f"{doing}: {_refusal(error)}") from None
    except exceptions.NoRegionError:
        raise DeployError(
            f"{doing}: no region; set AWS_REGION, or region in [stack] of the environment's file"
        ) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        raise DeployError(
            f"{doing}: no AWS credentials; set AWS_PROFILE, or run `aws sso login`"
        ) from None
    except exceptions.BotoCoreError as error:
        raise DeployError(f"{doing}: {error}") from None


def _refusal(error: Any) -> str:
    code, message = error_code(error), str(error.response["Error"].get("Message", ""))
    if code in _EXPIRED:
        return "the AWS credentials have expired; renew them, for example with `aws sso login`"
    if code in _REFUSED:
        return f"AWS does not accept the credentials ({code}); check AWS_PROFILE"
    if code in {"AccessDenied", "AccessDeniedException"}:
        return f"not allowed: {message}"
    return f"{code}: {message}"


def error_code(error: Any) -> str:
    """Return AWS's name of a ClientError."""
    return str(error.response.get("Error", {}).get("Code", ""))
