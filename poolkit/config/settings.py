"""Settings: the environment variables, read once, checked, frozen.

| variable | meaning |
|---|---|
| `POOLKIT_TARGET` | which preset; each deployable has a default |
| `POOLKIT_ENVIRONMENT` | `dev` (default), `staging`, `prod`, `high_traffic` |
| `POOLKIT_INSTANCE` | the instance part of `application_name`; default: host and process id |
| `POOLKIT_HOLD_SAMPLING` | the share of checkouts whose call site is taken; 0 for none |
| `POOLKIT_LEAK_DETECTION_THRESHOLD` | seconds after which a checkout is logged; 0, the default: never |
| `POOLKIT_SQL_COMMENTS` | `true`: each statement names its line and unit of work in a comment |
| `POOLKIT_<FIELD>` | any field of the preset, such as `POOLKIT_POOL_SIZE` |
| `DATABASE_URL` | everything in one URL |
| `DATABASE_SECRET_ARN` | user and password from AWS Secrets Manager |
| `DATABASE_IAM_AUTH` | `true`: an RDS IAM token as the password of `DATABASE_USER` |
| `DATABASE_HOST`, `_PORT`, `_NAME`, `_USER`, `_SSLMODE`, `_SSLROOTCERT` | with the last two |

Exactly one of `DATABASE_URL`, `DATABASE_SECRET_ARN` and `DATABASE_IAM_AUTH` is set.
"""

from __future__ import annotations

import dataclasses
import math
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from sqlalchemy.engine import URL

from poolkit.config.holds import HOLD_SAMPLING
from poolkit.config.presets import EnginePreset, PresetError, parse_url, preset
from poolkit.config.variables import refuse_misspelt
from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = (
    "CredentialKind",
    "HoldSettings",
    "Settings",
    "hold_settings",
    "names_database",
    "preset_from_environ",
    "with_url",
)

CredentialKind: TypeAlias = Literal["url", "secret", "iam"]

_PREFIX = "POOLKIT_"
_OWN = (
    *("POOLKIT_TARGET", "POOLKIT_ENVIRONMENT", "POOLKIT_INSTANCE"),
    *("POOLKIT_HOLD_SAMPLING", "POOLKIT_LEAK_DETECTION_THRESHOLD", "POOLKIT_SQL_COMMENTS"),
)
_NOT_OVERRIDABLE = {"target", "environment", "why"}
_OVERRIDABLE = {
    _PREFIX + field.name.upper(): field.name
    for field in dataclasses.fields(EnginePreset)
    if field.name not in _NOT_OVERRIDABLE
}
_DATABASE_VARIABLES = ("DATABASE_URL", "DATABASE_SECRET_ARN", "DATABASE_IAM_AUTH")
_TLS_MODES = ("require", "verify-ca", "verify-full")
_MYSQL_TLS_MODES = ("required", "verify_ca", "verify_identity")
_SSL_MODES = ("disable", "allow", "prefer", *_TLS_MODES)
# Passwords from tutorials and compose files: a scan for open databases tries these first.
_SAMPLE_PASSWORDS = frozenset(
    {"admin", "changeme", "example", "letmein", "mysecretpassword", "pass", "passwd", "password"}
    | {"postgres", "root", "secret", "test", "123456", "12345678"}
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The database, its credentials, and the preset.

    `repr` shows no password: SQLAlchemy's URL masks its own, and that of the client's key is
    kept apart from it.
    """

    preset: EnginePreset
    url: URL
    key_password: str | None = dataclasses.field(default=None, repr=False)
    credentials: CredentialKind = "url"
    secret_arn: str | None = None
    instance: str | None = None
    hold_sampling: float = HOLD_SAMPLING
    leak_detection_threshold: float = 0.0
    sql_comments: bool = False

    @classmethod
    def from_environ(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        url: str | URL | None = None,
        default_target: str = "web",
        allowed_targets: Sequence[str] = (),
    ) -> Settings:
        """Read the variables above; nothing else in poolkit reads them.

        Args:
            environ: by default the process's own.
            url: the database instead of the one in the DATABASE_* variables, for a framework that
                has a setting of its own.
            default_target: where `POOLKIT_TARGET` is not set.
            allowed_targets: the targets that this deployable can be; empty: any.

        Raises:
            ConfigurationError: a variable is missing, wrong or, outside dev, unsafe. The message
                names the variable, the value and the allowed ones, and shows no password.
        """
        environ = os.environ if environ is None else environ
        if url is not None:
            environ = with_url(environ, url)
        chosen = preset_from_environ(
            environ, default_target=default_target, allowed_targets=allowed_targets
        )
        kind, url = _read_database(environ)
        # Kept apart, because SQLAlchemy would print it.
        key_password = url.query.get("sslpassword")
        if isinstance(key_password, tuple):
            raise ConfigurationError("DATABASE_URL: sslpassword is given twice")
        url = url.difference_update_query(["sslpassword"])
        try:
            # The URL itself stays as configured: only the preset can translate its parameters,
            # which are libpq's, for another driver.
            chosen.url(url)
        except PresetError as error:
            variable = "POOLKIT_DRIVER" if "driver" in error.fields else "DATABASE_URL"
            raise ConfigurationError(f"{variable}: {error}") from None
        # A log stream is unique to the execution environment, whose host name and process id are
        # not: 2026/11/21/[$LATEST]0f1e2d...
        stream = environ.get("AWS_LAMBDA_LOG_STREAM_NAME", "").rpartition("]")[2]
        settings = cls(
            preset=chosen,
            url=url,
            key_password=key_password,
            credentials=kind,
            secret_arn=environ.get("DATABASE_SECRET_ARN") or None,
            instance=environ.get("POOLKIT_INSTANCE") or stream[:32] or None,
            **hold_settings(environ)._asdict(),
            sql_comments=_parsed(
                "POOLKIT_SQL_COMMENTS",
                environ.get("POOLKIT_SQL_COMMENTS") or "false",
                current=False,
            ),
        )
        settings.refuse_unsafe()
        return settings

    @property
    def target(self) -> str:
        """The target, such as `web`."""
        return self.preset.target

    @property
    def environment(self) -> str:
        """The environment, such as `prod`."""
        return self.preset.environment

    @property
    def expects_writes(self) -> bool:
        """Whether its connections must accept writes: see `EnginePreset.expects_writes`."""
        return self.preset.expects_writes(self.url)

    def engine_url(self) -> URL:
        """Return the URL with the password of the client's key: only for making the engine."""
        if self.key_password is None:
            return self.url
        return self.url.update_query_dict({"sslpassword": self.key_password})

    def application_name(self) -> str:
        """Return `<target>:<instance>`; the server cuts it to 63 bytes.

        Computed at each call, because a process id read before a fork is the parent's.
        """
        instance = self.instance or f"{socket.gethostname()}-{os.getpid()}"
        return f"{self.target}:{instance}"

    def refuse_unsafe(self) -> None:
        """Raise ConfigurationError for what must not run outside dev."""
        if self.credentials == "iam" and not _has_tls(self.url):
            raise ConfigurationError(
                "DATABASE_SSLMODE must be require, verify-ca or verify-full with "
                "DATABASE_IAM_AUTH: RDS accepts a token over TLS only"
            )
        if self.environment == "dev" or self.url.get_backend_name() == "sqlite":
            return
        environment = f"POOLKIT_ENVIRONMENT={self.environment}"
        remote = _remote_hosts(self.url)
        if remote and not _has_tls(self.url):
            remedy = "set DATABASE_SSLMODE to require (or DATABASE_SSLROOTCERT, for verify-full)"
            if self.credentials == "url":
                remedy = "add sslmode=require (or verify-full with sslrootcert) to DATABASE_URL"
            raise ConfigurationError(
                f"the connection to {' and '.join(remote)} has no TLS, which {environment} refuses; "
                + remedy
            )
        if self.credentials == "url" and str(self.url.password or "") in _SAMPLE_PASSWORDS:
            raise ConfigurationError(
                f"DATABASE_URL has a sample password, which {environment} refuses; set a generated one"
            )


# -- the preset -----------------------------------------------------------------------------


def preset_from_environ(
    environ: Mapping[str, str] | None = None,
    *,
    default_target: str = "web",
    allowed_targets: Sequence[str] = (),
) -> EnginePreset:
    """Return the preset that `POOLKIT_TARGET`, `POOLKIT_ENVIRONMENT` and `POOLKIT_<FIELD>` select.

    The part of `Settings.from_environ` that needs no database. For example,
    `preset_from_environ({"POOLKIT_TARGET": "worker", "POOLKIT_POOL_SIZE": "7"}).pool_size` is 7.

    Args:
        environ: by default the process's own.
        default_target: where `POOLKIT_TARGET` is not set.
        allowed_targets: the targets that this deployable can be; empty: any.

    Raises:
        ConfigurationError: a variable is wrong, or nearly the name of another one.
    """
    environ = os.environ if environ is None else environ
    target = environ.get("POOLKIT_TARGET") or default_target
    changes: dict[str, Any] = {}
    try:
        base = preset(target, environ.get("POOLKIT_ENVIRONMENT") or "dev")
        if allowed_targets and target not in allowed_targets:
            raise ConfigurationError(
                f"POOLKIT_TARGET={target} does not run here; allowed: {', '.join(allowed_targets)}"
            )
        refuse_misspelt(environ, (*_OVERRIDABLE, *_OWN), prefix=_PREFIX)
        changes = {
            field: _parsed(variable, text, getattr(base, field))
            for variable, field in _OVERRIDABLE.items()
            # Empty is not set: a compose file passes an unset variable on as empty.
            if (text := environ.get(variable, "")).strip()
        }
        return base.replace(**changes)
    except PresetError as error:
        # Of two fields that do not fit together, name the one that was set.
        fields = [field for field in error.fields if field in changes] or error.fields
        variables = " and ".join(f"{_PREFIX}{field.upper()}" for field in fields)
        raise ConfigurationError(f"{variables}: {error}") from None


class HoldSettings(NamedTuple):
    """What is measured of the time for which connections are held."""

    hold_sampling: float = HOLD_SAMPLING
    leak_detection_threshold: float = 0.0


def hold_settings(environ: Mapping[str, str] | None = None) -> HoldSettings:
    """Return `POOLKIT_HOLD_SAMPLING` (a share) and `POOLKIT_LEAK_DETECTION_THRESHOLD` (seconds).

    Raises:
        ConfigurationError: one is no number, or out of its range.
    """
    environ = os.environ if environ is None else environ
    found = HoldSettings()
    for field, high in (("hold_sampling", 1.0), ("leak_detection_threshold", 86_400.0)):
        variable = _PREFIX + field.upper()
        if text := environ.get(variable, "").strip():
            value = _parsed(variable, text, 0.0)
            if not 0 <= value <= high or math.isnan(value):
                raise ConfigurationError(f"{variable} must be from 0 to {high:g}, not {text!r}")
            found = found._replace(**{field: value})
    return found


def _parsed(variable: str, text: str, current: Any) -> Any:
    """Return a variable's value in the type of the preset's own value."""
    text = text.strip()
    if isinstance(current, bool):
        if text.lower() in {"1", "true", "yes", "on"}:
            return True
        if text.lower() in {"0", "false", "no", "off"}:
            return False
        raise ConfigurationError(f"{variable} must be true or false, not {text!r}")
    try:
        if isinstance(current, int):
            return int(text)
        return float(text) if isinstance(current, float) else text
    except ValueError:
        number = "a whole number" if isinstance(current, int) else "a number"
        raise ConfigurationError(f"{variable} must be {number}, not {text!r}") from None


# -- the database ---------------------------------------------------------------------------


def names_database(environ: Mapping[str, str]) -> bool:
    """Return whether the DATABASE_* variables name a database."""
    return any(environ.get(name) for name in _DATABASE_VARIABLES)


def with_url(environ: Mapping[str, str], url: str | URL) -> dict[str, str]:
    """Return the variables with this database instead of their own."""
    if isinstance(url, URL):
        url = url.render_as_string(hide_password=False)
    kept = {name: value for name, value in environ.items() if name not in _DATABASE_VARIABLES}
    return {**kept, "DATABASE_URL": url}


def _read_database(environ: Mapping[str, str]) -> tuple[CredentialKind, URL]:
    """Return where the credentials come from, and the URL, which has them for "url" alone."""
    iam = _parsed("DATABASE_IAM_AUTH", environ.get("DATABASE_IAM_AUTH") or "false", current=False)
    ways: dict[str, tuple[bool, CredentialKind]] = {
        "DATABASE_URL": (bool(environ.get("DATABASE_URL")), "url"),
        "DATABASE_SECRET_ARN": (bool(environ.get("DATABASE_SECRET_ARN")), "secret"),
        "DATABASE_IAM_AUTH": (iam, "iam"),
    }
    found = {variable: kind for variable, (is_set, kind) in ways.items() if is_set}
    if len(found) != 1:
        raise ConfigurationError(
            "set exactly one of DATABASE_URL, DATABASE_SECRET_ARN and DATABASE_IAM_AUTH=true; "
            f"found {' and '.join(found) or 'none'}"
        )
    ((variable, kind),) = found.items()
    if kind == "url":
        try:
            url = parse_url(environ["DATABASE_URL"])
        except ValueError as error:
            raise ConfigurationError(f"DATABASE_URL: {error}") from None
        # libpq allows ?user= and ?password= too; in their own places SQLAlchemy masks them.
        query = dict(url.query)
        user, password = query.pop("user", url.username), query.pop("password", url.password)
        if not isinstance(user, str | None) or not isinstance(password, str | None):
            raise ConfigurationError("DATABASE_URL: user or password is given twice")
        return kind, url.set(username=user, password=password, query=query)
    needed = ["DATABASE_HOST", "DATABASE_NAME"] + (["DATABASE_USER"] if kind == "iam" else [])
    missing = [name for name in needed if not environ.get(name)]
    if missing:
        raise ConfigurationError(f"{variable} also needs {' and '.join(missing)}")
    port = int(_parsed("DATABASE_PORT", environ.get("DATABASE_PORT") or "5432", 0))
    if not 1 <= port <= 65_535:
        raise ConfigurationError(f"DATABASE_PORT must be from 1 to 65535, not {port}")
    certificate = environ.get("DATABASE_SSLROOTCERT") or ""
    mode = environ.get("DATABASE_SSLMODE") or ("verify-full" if certificate else "require")
    if mode not in _SSL_MODES:
        raise ConfigurationError(
            f"DATABASE_SSLMODE {mode!r} is unknown; allowed: {', '.join(_SSL_MODES)}"
        )
    return kind, URL.create(
        "postgresql",
        username=environ.get("DATABASE_USER") or None,
        host=environ["DATABASE_HOST"],
        port=port,
        database=environ["DATABASE_NAME"],
        query={"sslmode": mode} | ({"sslrootcert": certificate} if certificate else {}),
    )


def _has_tls(url: URL) -> bool:
    query = url.query
    if url.get_backend_name() == "postgresql":
        # A certificate alone changes nothing: libpq's default is `prefer`.
        # ssl=true is how JDBC writes `require`, which libpq's URIs allow.
        return query.get("sslmode", query.get("ssl")) in (*_TLS_MODES, "true")
    # PyMySQL's and mysqlclient's own parameters.
    mode = str(query.get("ssl_mode", "")).lower()
    return mode in _MYSQL_TLS_MODES or "ssl_ca" in query or query.get("ssl") == "true"


def _remote_hosts(url: URL) -> list[str]:
    """Return the URL's hosts beyond this machine; libpq takes several, also as parameters."""
    named = [url.host or ""]
    for parameter in ("host", "hostaddr"):
        found = url.query.get(parameter, ())
        named.extend([found] if isinstance(found, str) else found)
    remote = []
    for host in (host for text in named for host in text.split(",") if host):
        # host:port is SQLAlchemy's form, a comma libpq's; an IPv6 address has several colons.
        name = host.partition(":")[0] if host.count(":") == 1 else host
        is_loopback = name in {"localhost", "::1"} or (
            name.startswith("127.") and name.replace(".", "").isdigit()
        )
        # A slash or an at sign begins a Unix socket, in the file system or without a file.
        if not (is_loopback or name.startswith(("/", "@"))):
            remote.append(name)
    if "service" in url.query:  # its file may name any host
        remote.append("the service")
    return remote
