r"""The application's role: it reads and writes rows, and cannot change the schema.

The owner of the schema runs `poolkit db role`. It may run any number of times: each run ends in the
same state, in one transaction. The password is sent as a SCRAM verifier, as psql's `\password` does.
So neither the server's log nor pg_stat_statements has it.

Sources: PostgreSQL 18, "ALTER DEFAULT PRIVILEGES", "Database Roles", "SASL Authentication"; RFC 5802;
Amazon RDS User Guide, "IAM database authentication" (with rds_iam a role cannot use a password).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import string
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import exc, text

from poolkit.config.credentials import SecretsManagerCredentials
from poolkit.config.engine import make_engine
from poolkit.config.session import sqlstate, translated
from poolkit.errors import ConfigurationError, CredentialsError, DatabaseUnavailable, RoleError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

    from poolkit.config.settings import Settings

LOCK_NAME: Final = "poolkit.role"
"""The name behind the advisory lock: two runs at once wait for each other."""
IAM_ROLE: Final = "rds_iam"
"""RDS's role for users that log in with IAM tokens."""

_DEFAULT_NAME = "app"
_SCRAM_ITERATIONS = 4096  # PostgreSQL's own default, scram_iterations
_TABLE_PRIVILEGES = "SELECT, INSERT, UPDATE, DELETE"
_SEQUENCE_PRIVILEGES = "USAGE, SELECT"
# The application's role is not a member of them. pg_monitor and the like only read statistics.
_TOO_POWERFUL = (
    *("rds_superuser", "rds_replication", "pg_use_reserved_connections", "pg_write_all_data"),
    *("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files", "pg_maintain"),
    *("pg_signal_backend", "pg_checkpoint", "pg_create_subscription"),
)
_ATTRIBUTES = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls")


@dataclass(frozen=True, kw_only=True)
class ApplicationRole:
    """The desired state of the role."""

    name: str = _DEFAULT_NAME
    password: str | None = field(default=None, repr=False)
    """None: the role logs in with IAM tokens."""
    schemas: tuple[str, ...] = ("public",)
    statement_timeout_ms: int = 15_000
    """Of sessions that set none themselves: those through PgBouncer or RDS Proxy. It is also their
    idle_in_transaction_session_timeout."""

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str] | None = None, *, iam: bool = False
    ) -> ApplicationRole:
        """Read the APPLICATION_* variables.

        Raises:
            ConfigurationError: a variable is missing or wrong.
            CredentialsError: the secret cannot be read.
        """
        environ = os.environ if environ is None else environ
        name, password = environ.get("APPLICATION_USER") or _DEFAULT_NAME, None
        if arn := environ.get("APPLICATION_SECRET_ARN"):
            found = SecretsManagerCredentials(arn).fetch()
            name, password = found.user, found.password
        elif not iam:
            password = _password(environ)
        schemas = tuple(filter(None, environ.get("APPLICATION_SCHEMAS", "public").split(",")))
        timeout = environ.get("APPLICATION_STATEMENT_TIMEOUT") or "15000"
        if not timeout.isdigit():
            raise ConfigurationError(
                f"APPLICATION_STATEMENT_TIMEOUT must be a whole number of ms, not {timeout!r}"
            )
        role = cls(
            name=name,
            password=None if iam else password,
            schemas=schemas,
            statement_timeout_ms=int(timeout),
        )
        role.check()
        return role

    def check(self) -> None:
        """Check the name and the password.

        Raises:
            ConfigurationError: PostgreSQL, or a pooler's file, would not take one of them.
        """
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$-]{0,62}", self.name):
            raise ConfigurationError(
                f"the role's name must have at most 63 letters, digits, _, $ and -, not {self.name!r}"
            )
        if self.name.startswith("pg_") or self.name in ("public", "none"):
            raise ConfigurationError(
                f"PostgreSQL reserves the name {self.name}; choose another one"
            )
        if not self.schemas:
            raise ConfigurationError("APPLICATION_SCHEMAS must name a schema, such as public")
        password = self.password
        if password is not None and not (
            password and password.isascii() and password.isprintable()
        ):
            raise ConfigurationError(
                "the role's password must be of printable ASCII characters, and not empty"
            )


def _password(environ: Mapping[str, str]) -> str:
    if password := environ.get("APPLICATION_PASSWORD"):
        return password
    if file := environ.get("APPLICATION_PASSWORD_FILE"):
        try:
            return Path(file).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ConfigurationError(f"APPLICATION_PASSWORD_FILE {file}: {reason}") from None
    raise ConfigurationError(
        "no password for the application's role; set APPLICATION_SECRET_ARN, APPLICATION_PASSWORD "
        "or APPLICATION_PASSWORD_FILE, or pass --iam on RDS"
    )


# -- the role -------------------------------------------------------------------------------


def create_or_update(settings: Settings, role: ApplicationRole) -> list[str]:
    """Create the role if it is missing, and give it its login, limits and privileges.

    Args:
        settings: the database, and the login of the schema's owner.
        role: the desired state.

    Returns:
        A line for each change that others may notice.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
        RoleError: the owner may not do it, or the role has more rights than an application may have.
    """
    if settings.url.get_backend_name() != "postgresql":
        raise ConfigurationError(
            f"poolkit db role is for PostgreSQL, not {settings.url.get_backend_name()}"
        )
    unlimited = settings.preset.replace(
        statement_timeout=0, idle_in_transaction_session_timeout=0, echo=False
    )
    engine = make_engine(replace(settings, preset=unlimited))
    try:
        with _explained(), translated(), engine.begin() as connection:
            notes = _Definition(connection, role).apply()
    finally:
        engine.dispose()
    if role.password is not None:
        _log_in(settings, role)
    return notes


def check(settings: Settings, role: ApplicationRole) -> None:
    """Check that the role exists, and logs in with its password or is one for IAM tokens.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
        RoleError: it does not.
    """
    engine = make_engine(settings)
    try:
        with translated(), engine.connect() as connection:
            found = connection.execute(
                text(
                    "SELECT EXISTS (SELECT 1 FROM pg_roles i WHERE i.rolname = :iam "
                    "AND pg_has_role(r.oid, i.oid, 'MEMBER')) FROM pg_roles r WHERE rolname = :name"
                ),
                {"name": role.name, "iam": IAM_ROLE},
            ).scalar()
    finally:
        engine.dispose()
    if found is None:
        raise RoleError(f"there is no role {role.name}; run `poolkit db role` first")
    if not found:
        _log_in(settings, role)


@contextmanager
def _explained() -> Iterator[None]:
    """Raise what PostgreSQL refuses as a RoleError of one line."""
    try:
        yield
    except exc.DBAPIError as error:
        if sqlstate(error.orig) is None:
            raise
        reason = str(error.orig).partition("\n")[0]
        raise RoleError(
            f"the database refused: {reason}; run this as the role that owns the schema and may "
            "create roles, such as the master user of RDS"
        ) from None


class _Definition:
    """The statements that make a role what it should be, over one transaction."""

    def __init__(self, connection: Connection, role: ApplicationRole) -> None:
        self._connection = connection
        self._role = role
        self._notes: list[str] = []
        self._name = self._quoted(role.name)

    def apply(self) -> list[str]:
        """Run all statements; return what others may notice. Raises `RoleError`."""
        self._run("SET LOCAL lock_timeout = '30s'")
        self._run(f"SELECT pg_advisory_xact_lock(hashtextextended('{LOCK_NAME}', 0))")
        if self._role.name in self._rows("SELECT unnest(ARRAY[current_user, session_user])"):
            raise RoleError(
                f"{self._role.name} is the role that this runs as; the application's must be another"
            )
        if not self._rows("SELECT 1 FROM pg_roles WHERE rolname = :name"):
            self._run(f"CREATE ROLE {self._name} LOGIN")
            self._notes.append(f"created the role {self._role.name}")
        self._refuse_power()
        self._set_login()
        timeout = self._role.statement_timeout_ms
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
            self._run(f"ALTER ROLE {self._name} SET {setting} = {timeout}")
        if not self._rows(
            "SELECT 1 WHERE has_database_privilege(:name, current_database(), 'CONNECT')"
        ):
            (database,) = self._rows("SELECT quote_ident(current_database())")
            self._run(f"GRANT CONNECT ON DATABASE {database} TO {self._name}")
        for schema in self._role.schemas:
            self._grant(schema)
        return self._notes

    def _refuse_power(self) -> None:
        """Refuse a role that could change the schema, or connect where an operator must."""
        powers = self._rows(
            "SELECT substr(key, 4) FROM pg_roles, jsonb_each(to_jsonb(pg_roles)) "
            "WHERE rolname = :name AND key = ANY(:attributes) AND value = 'true'",
            attributes=list(_ATTRIBUTES),
        )
        if powers:
            raise RoleError(
                f"{self._role.name} has {', '.join(powers)}, which an application must not have; "
                "take it away with ALTER ROLE, or choose another name"
            )
        groups = self._rows(
            "SELECT rolname FROM pg_roles WHERE rolname <> :name "
            "AND pg_has_role(:name, oid, 'MEMBER') AND (rolsuper OR rolname = current_user "
            "OR rolname = ANY(:powerful)) ORDER BY rolname <> current_user, rolname",
            powerful=list(_TOO_POWERFUL),
        )
        if groups:
            raise RoleError(
                f"{self._role.name} is a member of {', '.join(groups)}, which an application must "
                f"not be; REVOKE {groups[0]} FROM {self._role.name}, or choose another name"
            )

    def _set_login(self) -> None:
        is_member = self._rows(
            "SELECT 1 FROM pg_roles WHERE rolname = :iam AND pg_has_role(:name, oid, 'MEMBER')",
            iam=IAM_ROLE,
        )
        if self._role.password is None:
            if not self._rows("SELECT 1 FROM pg_roles WHERE rolname = :iam", iam=IAM_ROLE):
                raise RoleError(
                    f"there is no role {IAM_ROLE}: this is not RDS, or the instance has no IAM "
                    "database authentication"
                )
            self._run(f"ALTER ROLE {self._name} LOGIN")
            if not is_member:
                self._run(f"GRANT {IAM_ROLE} TO {self._name}")
                self._notes.append(
                    f"{self._role.name} logs in with IAM tokens from now on; passwords are refused"
                )
            return
        if is_member:
            self._run(f"REVOKE {IAM_ROLE} FROM {self._name}")
            self._notes.append(
                f"{self._role.name} logs in with its password from now on; IAM tokens are refused"
            )
        self._run(f"ALTER ROLE {self._name} LOGIN PASSWORD '{scram_verifier(self._role.password)}'")

    def _grant(self, schema: str) -> None:
        """Grant what is needed of a schema, now and for what its owner creates later."""
        if not self._rows("SELECT 1 FROM pg_namespace WHERE nspname = :schema", schema=schema):
            raise RoleError(
                f"there is no schema {schema}; run `poolkit db upgrade` first, or name others in "
                "APPLICATION_SCHEMAS"
            )
        quoted = self._quoted(schema)
        self._run(f"GRANT USAGE ON SCHEMA {quoted} TO {self._name}")
        self._refuse_creation(schema, quoted)
        self._refuse_ownership(schema)
        for kinds, privileges, what in (
            ("rpvmf", _TABLE_PRIVILEGES, "TABLE"),
            ("S", _SEQUENCE_PRIVILEGES, "SEQUENCE"),
        ):
            names = self._relations(schema, kinds)
            if names:
                self._run(f"GRANT {privileges} ON {what} {', '.join(names)} TO {self._name}")
            # Of the role that this runs as: migrations run as the same one.
            self._run(
                f"ALTER DEFAULT PRIVILEGES IN SCHEMA {quoted} "
                f"GRANT {privileges} ON {what}S TO {self._name}"
            )

    def _refuse_creation(self, schema: str, quoted: str) -> None:
        """Take CREATE away, which everyone has on public before PostgreSQL 15."""
        may_create = "SELECT 1 WHERE has_schema_privilege(:name, :schema, 'CREATE')"
        if not self._rows(may_create, schema=schema):
            return
        self._run(f"REVOKE CREATE ON SCHEMA {quoted} FROM PUBLIC, {self._name}")
        if self._rows(may_create, schema=schema):
            raise RoleError(
                f"{self._role.name} can create tables in {schema}, and this role cannot revoke that; "
                f"run as the schema's owner: REVOKE CREATE ON SCHEMA {quoted} FROM PUBLIC"
            )
        self._notes.append(f"only its owner may create tables in {schema} from now on")

    def _refuse_ownership(self, schema: str) -> None:
        owned = self._rows(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "JOIN pg_roles r ON r.oid = c.relowner WHERE n.nspname = :schema AND r.rolname = :name "
            "AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') ORDER BY 1",
            schema=schema,
        )
        if owned:
            raise RoleError(
                f"{self._role.name} owns {len(owned)} relations in {schema} ({owned[0]}, …), so it "
                f"could drop them; first REASSIGN OWNED BY {self._name} to the schema's owner"
            )

    def _relations(self, schema: str, kinds: str) -> list[str]:
        """Return the quoted relations of a schema, without those of extensions.

        Raises:
            RoleError: one belongs to a role that this one is no member of.
        """
        found = self._connection.execute(
            text(
                "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), "
                "pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner) "
                "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = :schema AND c.relkind = ANY(:kinds) AND NOT EXISTS ("
                "SELECT 1 FROM pg_depend d WHERE d.classid = CAST('pg_class' AS regclass) "
                "AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1"
            ),
            {"schema": schema, "kinds": list(kinds)},
        ).all()
        others = [(name, owner) for name, is_ours, owner in found if not is_ours]
        if others:
            name, owner = others[0]
            raise RoleError(
                f"{name} belongs to {owner}, which this role is no member of; run this as {owner}, "
                "or give the relation to the role that runs the migrations"
            )
        return [name for name, _, _ in found]

    def _run(self, statement: str) -> None:
        # By the driver's own way: a % or a colon in a quoted name is no parameter.
        self._connection.exec_driver_sql(statement.replace("%", "%%"))

    def _rows(self, statement: str, **values: Any) -> list[Any]:
        values = {"name": self._role.name, **values}
        used = {key: value for key, value in values.items() if f":{key}" in statement}
        return list(self._connection.execute(text(statement), used).scalars())

    def _quoted(self, name: str) -> str:
        return str(self._connection.dialect.identifier_preparer.quote_identifier(name))


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """Return what PostgreSQL stores of a password, so that the password itself is never sent.

    Args:
        password: of ASCII characters, which SASLprep leaves as they are.
        salt: 16 random bytes if it is None.
    """
    salt = secrets.token_bytes(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(each).decode() for each in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def _log_in(settings: Settings, role: ApplicationRole) -> None:
    """Check that the role can log in, with the password that its clients have."""
    url = settings.url.set(username=role.name, password=role.password)
    preset = settings.preset.replace(echo=False)
    engine = make_engine(replace(settings, url=url, credentials="url", preset=preset))
    try:
        with translated(), engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
    except (exc.DBAPIError, DatabaseUnavailable) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise RoleError(f"{role.name} has its password and cannot log in: {reason}") from None
    finally:
        engine.dispose()


# -- a new password -------------------------------------------------------------------------


def rotate(settings: Settings, environ: Mapping[str, str] | None = None) -> list[str]:
    """Replace the password in Secrets Manager and in the database.

    The order is that of AWS Secrets Manager User Guide, "Rotation by Lambda function": the new
    password is AWSPENDING while the role gets it, and AWSCURRENT after a login with it. So a run that
    was interrupted is continued by the next one, and the deployables accept either.

    Raises:
        ConfigurationError: APPLICATION_SECRET_ARN is not set.
        CredentialsError: the secret cannot be read or written.
        RoleError, DatabaseUnavailable: as `create_or_update`.
    """
    environ = os.environ if environ is None else environ
    arn = environ.get("APPLICATION_SECRET_ARN")
    if not arn:
        raise ConfigurationError(
            "--rotate writes a new password into APPLICATION_SECRET_ARN, which is not set; without "
            "a secret, set the new password in APPLICATION_PASSWORD and run this again"
        )
    role = ApplicationRole.from_environ(environ)
    client = SecretsManagerCredentials(arn).client()
    with _aws(arn):
        versions = client.describe_secret(SecretId=arn)["VersionIdsToStages"]
        labelled = {stage: version for version, stages in versions.items() for stage in stages}
        current, pending = labelled["AWSCURRENT"], labelled.get("AWSPENDING")
        if pending is None or pending == current:
            pending = str(uuid.uuid4())
            value = json.loads(
                client.get_secret_value(SecretId=arn, VersionStage="AWSCURRENT")["SecretString"]
            )
            client.put_secret_value(
                SecretId=arn,
                ClientRequestToken=pending,
                SecretString=json.dumps(value | {"password": _new_password()}),
                VersionStages=["AWSPENDING"],
            )
        found = client.get_secret_value(SecretId=arn, VersionId=pending, VersionStage="AWSPENDING")
    password = json.loads(found["SecretString"])["password"]
    notes = create_or_update(settings, replace(role, password=password))
    with _aws(arn):
        client.update_secret_version_stage(
            SecretId=arn,
            VersionStage="AWSCURRENT",
            MoveToVersionId=pending,
            RemoveFromVersionId=current,
        )
        client.update_secret_version_stage(
            SecretId=arn, VersionStage="AWSPENDING", RemoveFromVersionId=pending
        )
    return [*notes, f"{role.name} has a new password"]


def _new_password() -> str:
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(48))


@contextmanager
def _aws(arn: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise CredentialsError(f"secret {arn}: {error}") from None
