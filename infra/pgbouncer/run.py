# ruff: noqa: INP001  (a program alone in its image)
"""Run PgBouncer with a password that rotates: written to its files, never to a variable.

| variable | meaning | default |
|---|---|---|
| `DATABASE_HOST`, `DATABASE_NAME` | the server and the database behind PgBouncer | required |
| `DATABASE_PORT` | its port | 5432 |
| `DATABASE_SECRET_ARN` | a secret with `username` and `password`, as RDS manages it | |
| `DATABASE_USER`, `DATABASE_PASSWORD_FILE` | in place of a secret | |
| `DATABASE_SSLMODE`, `DATABASE_SSLROOTCERT` | towards the server | `verify-full`; beside this file |
| `CERTIFICATE_SECRET_ARN` | a secret with `certificate` and `private_key`, for clients | self-signed |
| `STATEMENT_TIMEOUT` | ms; set by PgBouncer in each of its connections | 15000 |
| `REFRESH_SECONDS` | s between two readings of the password | 15 |
| `PGBOUNCER_<SETTING>` | any setting of pgbouncer.ini | |

At SIGTERM and SIGINT PgBouncer ends after its transactions (its "safe shutdown").
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULTS = {
    "listen_addr": "0.0.0.0",
    "listen_port": "6432",
    "unix_socket_dir": "",
    "pool_mode": "transaction",
    "auth_type": "scram-sha-256",
    "default_pool_size": "50",
    "max_client_conn": "5000",
    # A client that waits longer gets an error, and can answer 503 before its own client gives up.
    "query_wait_timeout": "10",
    "client_tls_sslmode": "require",
    "client_tls_protocols": "secure",
    "server_tls_protocols": "secure",
    # psycopg2 sends it, and every pooled session has the same.
    "ignore_startup_parameters": "extra_float_digits",
    "log_connections": "0",
    "log_disconnections": "0",
}


class WrongSetting(ValueError):
    """A variable is missing or wrong; PgBouncer is not started."""


@dataclass(frozen=True)
class Login:
    """The login of clients to PgBouncer, and of PgBouncer to the server."""

    user: str
    password: str = field(repr=False)


def main(program: str, environ: Mapping[str, str]) -> int:
    """Run PgBouncer until a signal stops it; return its exit status, 2 for wrong settings."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as folder:
        try:
            files = Files(Path(folder), environ)
            files.write(read_login(environ))
        except (WrongSetting, OSError) as error:
            sys.stderr.write(f"pgbouncer: {error}\n")
            return 2
        refresh = float(environ.get("REFRESH_SECONDS", "15"))
        with subprocess.Popen([program, str(files.configuration)]) as pgbouncer:

            def stop_when_ended() -> None:
                pgbouncer.wait()
                stopping.set()

            threading.Thread(target=stop_when_ended, daemon=True).start()
            while not stopping.wait(refresh):
                if files.renew():
                    pgbouncer.send_signal(signal.SIGHUP)
            if pgbouncer.poll() is None:
                pgbouncer.send_signal(signal.SIGINT)
            return pgbouncer.wait()


class Files:
    """PgBouncer's files: settings, users and certificates, readable by its account only."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.configuration = folder / "pgbouncer.ini"
        self._users = folder / "users.txt"
        self._certificate = folder / "certificate.crt"
        self._key = folder / "certificate.key"
        self._login: Login | None = None

    def write(self, login: Login) -> None:
        """Write all files.

        Raises:
            WrongSetting: a variable is missing or wrong.
        """
        prefix = "PGBOUNCER_"
        own = {
            name.removeprefix(prefix).lower(): value
            for name, value in self.environ.items()
            if name.startswith(prefix) and value
        }
        settings = _DEFAULTS | own
        if settings["client_tls_sslmode"] != "disable":
            self._write_certificate()
            settings["client_tls_cert_file"] = str(self._certificate)
            settings["client_tls_key_file"] = str(self._key)
        self._write_users(login)
        settings["auth_file"] = str(self._users)
        settings["server_tls_sslmode"] = self.environ.get("DATABASE_SSLMODE") or "verify-full"
        if settings["server_tls_sslmode"].startswith("verify-"):
            beside = str(Path(__file__).with_name("database-ca.crt"))
            authorities = self.environ.get("DATABASE_SSLROOTCERT") or beside
            if not Path(authorities).is_file():
                raise WrongSetting(
                    f"DATABASE_SSLMODE {settings['server_tls_sslmode']} needs certificate "
                    f"authorities, but there is no {authorities}; run "
                    "scripts/database-certificates before the image is built"
                )
            settings["server_tls_ca_file"] = authorities
        host = _required(self.environ, "DATABASE_HOST")
        name = _required(self.environ, "DATABASE_NAME")
        port = self.environ.get("DATABASE_PORT") or "5432"
        timeout = self.environ.get("STATEMENT_TIMEOUT") or "15000"
        if not timeout.isdecimal():
            raise WrongSetting(f"STATEMENT_TIMEOUT must be a whole number of ms, not {timeout!r}")
        # Sent once by PgBouncer: a client's own SET would stay in a session that others share.
        query = f"SET statement_timeout = {timeout}"
        database = f"{name} = host={host} port={port} dbname={name} connect_query='{query}'"
        lines = [f"{key} = {value}" for key, value in settings.items()]
        text = "\n".join(["[databases]", database, "[pgbouncer]", *lines, ""])
        _write_private(self.configuration, text)

    def renew(self) -> bool:
        """Write the users again if the password has changed; return whether it had."""
        try:
            login = read_login(self.environ)
        except (WrongSetting, OSError) as error:
            # The old password works until it is refused; the next reading may succeed.
            sys.stderr.write(f"pgbouncer: the password could not be read: {error}\n")
            return False
        if login == self._login:
            return False
        self._write_users(login)
        return True

    def _write_users(self, login: Login) -> None:
        quoted = (part.replace('"', '""') for part in (login.user, login.password))
        _write_private(self._users, '"{}" "{}"\n'.format(*quoted))
        self._login = login

    def _write_certificate(self) -> None:
        arn = self.environ.get("CERTIFICATE_SECRET_ARN")
        if arn:
            secret = _secret(arn, "certificate", "private_key")
            _write_private(self._certificate, secret["certificate"])
            _write_private(self._key, secret["private_key"])
            return
        made = subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:P-256", "-nodes", "-days", "825", "-subj", "/CN=pgbouncer"),
                *("-keyout", str(self._key), "-out", str(self._certificate)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise WrongSetting(f"openssl made no certificate: {made.stderr.strip()}")


def read_login(environ: Mapping[str, str]) -> Login:
    """Return the current user and password.

    Raises:
        WrongSetting: a variable is missing, or the secret cannot be read.
        OSError: the password's file cannot be read.
    """
    arn, file = environ.get("DATABASE_SECRET_ARN"), environ.get("DATABASE_PASSWORD_FILE")
    if bool(arn) == bool(file):
        found = "both are set" if arn else "neither is set"
        raise WrongSetting(f"set DATABASE_SECRET_ARN or DATABASE_PASSWORD_FILE; {found}")
    if arn:
        secret = _secret(arn, "username", "password")
        return Login(secret["username"], secret["password"])
    password = Path(str(file)).read_text(encoding="utf-8").rstrip("\r\n")
    return Login(_required(environ, "DATABASE_USER"), password)


def _secret(arn: str, *names: str) -> dict[str, str]:
    # Not at the top: a password in a file needs no AWS.
    import boto3  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        answer = boto3.client("secretsmanager").get_secret_value(SecretId=arn)
    except (BotoCoreError, ClientError) as error:
        raise WrongSetting(f"secret {arn} could not be read: {error}") from None
    try:
        found: Any = json.loads(answer.get("SecretString", ""))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in names):
        # Outside the except: a cause would carry the secret's text.
        raise WrongSetting(
            f"secret {arn} must be a JSON object with {' and '.join(names)}, both text"
        )
    return {name: found[name] for name in names}


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name)
    if not value:
        raise WrongSetting(f"{name} is not set")
    return value


def _write_private(file: Path, text: str) -> None:
    partial = file.with_suffix(".new")
    partial.touch(mode=0o600)
    partial.write_text(text, encoding="utf-8")
    # In one step: PgBouncer may read it at any time.
    partial.replace(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "pgbouncer", os.environ))
