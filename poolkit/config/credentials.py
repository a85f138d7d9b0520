"""Credentials: user and password, fetched when a connection is opened.

An engine lives for hours, a password may be rotated and an IAM token is good for 15
minutes; so neither is part of the engine. boto3 is imported in the two functions that
call AWS, and nowhere else.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from poolkit.errors import CredentialsError, how_to_install

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.config.settings import Settings

__all__ = (
    "CredentialSource",
    "Credentials",
    "IamTokenCredentials",
    "SecretsManagerCredentials",
    "source_for",
)

SECRET_TTL = 300.0
"""Seconds that a secret is cached. A rotation does not wait for it: a refused password is fetched
again at once."""

TOKEN_TTL = 600.0
"""Seconds that an IAM token is used: it is valid for 15 minutes (Amazon RDS User Guide,
"IAM database authentication"), and a connect takes its time too."""

RETRY_TTL = 30.0
"""Seconds that known credentials are used further after AWS failed to answer."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Credentials:
    """A user and a password; the password is not in `repr`."""

    user: str
    password: str = field(repr=False)


class CredentialSource(Protocol):
    """A source of credentials. Methods may be called by many threads at once."""

    def cached(self) -> Credentials | None:
        """Return the cached credentials if they have not expired; never wait."""

    def fetch(self) -> Credentials:
        """Return the current credentials, from AWS if needed; raises CredentialsError."""

    def renew(self, refused: Credentials) -> Credentials | None:
        """Return other credentials than the refused ones, or None if there are none."""


def source_for(settings: Settings) -> CredentialSource | None:
    """Return the settings' source; None where the URL has the password."""
    if settings.credentials == "secret":
        assert settings.secret_arn is not None  # noqa: S101  (Settings has checked)
        return SecretsManagerCredentials(settings.secret_arn)
    if settings.credentials == "iam":
        url = settings.url
        return IamTokenCredentials(str(url.host), url.port or 5432, str(url.username))
    return None


def _boto3() -> Any:
    try:
        import boto3  # noqa: PLC0415
    except ImportError:
        raise CredentialsError(
            "DATABASE_SECRET_ARN and DATABASE_IAM_AUTH need boto3; install it with: "
            + how_to_install("aws")
        ) from None
    return boto3


class _Entry(NamedTuple):
    credentials: Credentials | None
    good_until: float


class _Cache:
    """Credentials that expire; one thread fetches while the others wait for its result."""

    ttl = SECRET_TTL  # s

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Replaced whole, because cached() reads it without the lock.
        self._entry = _Entry(None, 0.0)
        self._failure: tuple[str, float] = ("", float("-inf"))

    def cached(self) -> Credentials | None:
        entry = self._entry
        return entry.credentials if time.time() < entry.good_until else None

    def fetch(self) -> Credentials:
        """Return the current credentials, or the expired ones if AWS does not answer.

        A password has seldom changed when it expires in this cache, and one that the server refuses
        is renewed anyway. So while one thread asks AWS, others use the expired password. Without
        any password yet, they wait and share a failure of the attempt. Otherwise a hundred threads
        would wait for an unreachable AWS one after the other.
        """
        asked = time.monotonic()
        known = self._entry.credentials
        if not self._lock.acquire(blocking=known is None):
            assert known is not None  # noqa: S101  (or it would have waited)
            return known
        try:
            fresh = self.cached()
            if fresh is not None:
                return fresh
            with self._shared_failure(asked):
                return self._store(self._load())
        except CredentialsError as error:
            if self._entry.credentials is None:
                raise
            _log.warning("credentials are used for %g s more: %s", RETRY_TTL, error)
            return self._store(self._entry.credentials, RETRY_TTL)
        finally:
            self._lock.release()

    @contextmanager
    def _shared_failure(self, asked: float) -> Iterator[None]:
        """Raise the failure of an attempt that ended after `asked`, or store this one's."""
        message, failed = self._failure
        if failed >= asked:
            raise CredentialsError(message)
        try:
            yield
        except CredentialsError as error:
            self._failure = (str(error), time.monotonic())
            raise

    def _store(self, credentials: Credentials, ttl: float | None = None) -> Credentials:
        self._entry = _Entry(credentials, time.time() + (self.ttl if ttl is None else ttl))
        return credentials

    def _load(self) -> Credentials:
        raise AssertionError("a subclass loads")  # pragma: no cover


class SecretsManagerCredentials(_Cache):
    """A secret in the JSON that RDS manages: `{"username": ..., "password": ...}`."""

    def __init__(self, arn: str, *, ttl: float = SECRET_TTL) -> None:
        super().__init__()
        self.arn = arn
        self.ttl = ttl
        self._client: Any = None

    def renew(self, refused: Credentials) -> Credentials | None:
        """Fetch the secret again, and the one that a rotation is about to make current.

        A rotation changes the password in the database before it moves the label AWSCURRENT
        (AWS Secrets Manager User Guide, "Lambda rotation functions"): in between, the new
        password is the one labelled AWSPENDING.
        """
        asked = time.monotonic()
        with self._lock, self._shared_failure(asked):
            if self._entry.credentials is not None and self._entry.credentials != refused:
                return self._entry.credentials  # another thread was here first
            for stage in ("AWSCURRENT", "AWSPENDING"):
                found = self._load_stage(stage, required=stage == "AWSCURRENT")
                if found is not None and found != refused:
                    return self._store(found)
            return None

    def _load(self) -> Credentials:
        found = self._load_stage("AWSCURRENT", required=True)
        assert found is not None  # noqa: S101  (required)
        return found

    def _load_stage(self, stage: str, *, required: bool) -> Credentials | None:
        _boto3()
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            answer = self.client().get_secret_value(SecretId=self.arn, VersionStage=stage)
        except (BotoCoreError, ClientError) as error:
            if not required:
                return None  # no rotation is under way
            raise CredentialsError(f"secret {self.arn} could not be read: {error}") from error
        try:
            secret = json.loads(answer.get("SecretString", ""))
            user, password = secret["username"], secret["password"]
        except (ValueError, KeyError, TypeError):
            user = password = None
        if not isinstance(user, str) or not isinstance(password, str):
            # Outside the except: a cause would carry the secret's text.
            raise CredentialsError(
                f"secret {self.arn} must be a JSON object with username and password, both text"
            )
        return Credentials(user, password)

    def client(self) -> Any:
        """Return boto3's client, made at the first use."""
        if self._client is None:
            from botocore.config import Config  # noqa: PLC0415

            region = self.arn.split(":")[3] if self.arn.startswith("arn:") else None
            # An answer takes milliseconds or does not come; the caller has a timeout too.
            limits = Config(connect_timeout=2, read_timeout=3, retries={"max_attempts": 2})
            self._client = _boto3().client("secretsmanager", region_name=region, config=limits)
        return self._client


class IamTokenCredentials(_Cache):
    """A token that RDS accepts as a password, signed in this process without a request."""

    ttl = TOKEN_TTL

    def __init__(self, host: str, port: int, user: str) -> None:
        super().__init__()
        self.host = host
        self.port = port
        self.user = user

    def renew(self, refused: Credentials) -> Credentials | None:
        """Sign a new token, once: the refused one may have expired during a freeze."""
        with self._lock:
            if self._entry.credentials is not None and self._entry.credentials != refused:
                return self._entry.credentials
            fresh = self._load()
            return self._store(fresh) if fresh != refused else None

    def _load(self) -> Credentials:
        boto3 = _boto3()
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            token = boto3.client("rds").generate_db_auth_token(self.host, self.port, self.user)
        except (BotoCoreError, ClientError) as error:
            raise CredentialsError(
                f"no IAM token for {self.user} at {self.host}: {error}"
            ) from error
        return Credentials(self.user, token)
