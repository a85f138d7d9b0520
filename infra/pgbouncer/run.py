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
| `PGBOUNCER_<SETTING>` | a setting of pgbouncer.ini, one of `SETTINGS` | |

A variable `PGBOUNCER_...` that names no setting stops the start. Kubernetes makes such variables
for a Service named `pgbouncer`, unless the pod has `enableServiceLinks: false`.

At SIGTERM and SIGINT PgBouncer ends after its transactions (its "safe shutdown").
"""

from __future__ import annotations

import json
import os
import re
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


_COUNTS = """
    default_pool_size listen_backlog listen_port max_client_conn max_db_client_connections
    max_db_connections max_packet_size max_prepared_statements max_user_client_connections
    max_user_connections min_pool_size peer_id pkt_buf query_wait_notify reserve_pool_size
    sbuf_loopcnt scram_iterations stats_period tcp_defer_accept tcp_keepcnt tcp_keepidle
    tcp_keepintvl tcp_socket_buffer tcp_user_timeout verbose
"""
_SWITCHES = """
    application_name_add_host log_connections log_disconnections log_pooler_errors log_stats
    server_fast_close server_reset_query_always server_round_robin so_reuseport tcp_keepalive
"""
_SECONDS = """
    autodb_idle_timeout cancel_wait_timeout client_idle_timeout client_login_timeout dns_max_ttl
    dns_nxdomain_ttl dns_zone_check_period idle_transaction_timeout query_timeout
    query_wait_timeout reserve_pool_timeout server_check_delay server_connect_timeout
    server_idle_timeout server_lifetime server_login_retry suspend_timeout transaction_timeout
"""
_TEXTS = """
    admin_users auth_dbname auth_query auth_user client_tls13_ciphers client_tls_ca_file
    client_tls_ciphers client_tls_dheparams client_tls_ecdhcurve client_tls_protocols
    ignore_startup_parameters listen_addr resolv_conf server_check_query
    server_reset_query server_tls13_ciphers server_tls_cert_file server_tls_ciphers
    server_tls_key_file server_tls_protocols stats_users track_extra_parameters unix_socket_dir
"""
_COUNT = ("a whole number", r"\d+")
_SWITCH = ("0 or 1", r"[01]")
_DURATION = ("a number of seconds", r"\d+(\.\d+)?")
_TEXT = ("one line of text", r"[^\r\n]*")
SETTINGS = {
    **dict.fromkeys(_COUNTS.split(), _COUNT),
    **dict.fromkeys(_SWITCHES.split(), _SWITCH),
    **dict.fromkeys(_SECONDS.split(), _DURATION),
    **dict.fromkeys(_TEXTS.split(), _TEXT),
    "auth_type": ("scram-sha-256, md5 or plain", "scram-sha-256|md5|plain"),
    "pool_mode": ("session, transaction or statement", "session|transaction|statement"),
    "client_tls_sslmode": (
        "disable, allow, prefer, require, verify-ca or verify-full",
        "disable|allow|prefer|require|verify-ca|verify-full",
    ),
}
"""The settings of pgbouncer.ini (PgBouncer 1.25) that may be chosen, with what each accepts.

Missing are the settings of this program (files, users, TLS towards the server), what a container
has no use for (`user`, `pidfile`, `logfile`, `syslog`), and other ways to log in.
"""
_SINCE = {
    **dict.fromkeys(("auth_dbname", "cancel_wait_timeout", "peer_id"), (1, 19)),
    "track_extra_parameters": (1, 20),
    "max_prepared_statements": (1, 21),
    **dict.fromkeys(("max_db_client_connections", "max_user_client_connections"), (1, 24)),
    **dict.fromkeys(("client_tls13_ciphers", "server_tls13_ciphers"), (1, 25)),
    **dict.fromkeys(("query_wait_notify", "scram_iterations", "transaction_timeout"), (1, 25)),
}
_PREFIX = "PGBOUNCER_"
_SERVICE_LINK = "; Kubernetes writes such variables for a Service: set enableServiceLinks: false"


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
    try:
        made = tempfile.TemporaryDirectory(prefix="pgbouncer-")
    except OSError as error:
        sys.stderr.write(f"pgbouncer: {error.strerror}; mount a writable /tmp\n")
        return 2
    with made as folder:
        try:
            files = Files(Path(folder), environ)
            refresh = float(_checked(environ, "REFRESH_SECONDS", "15", _DURATION))
            refuse_newer(chosen_settings(environ), program)
            files.write(read_login(environ))
        except (WrongSetting, OSError) as error:
            sys.stderr.write(f"pgbouncer: {error}\n")
            return 2
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
        settings = _DEFAULTS | chosen_settings(self.environ)
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
        name = _required(self.environ, "DATABASE_NAME")
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise WrongSetting(
                f"DATABASE_NAME must have letters, digits and _.- only, not {name!r}"
            )
        timeout = _checked(
            self.environ, "STATEMENT_TIMEOUT", "15000", ("a whole number of ms", r"\d+")
        )
        database = {
            "host": _required(self.environ, "DATABASE_HOST"),
            "port": _checked(self.environ, "DATABASE_PORT", "5432", ("a port number", r"\d+")),
            "dbname": name,
            # Sent once by PgBouncer: a client's own SET would stay in a session that others share.
            "connect_query": f"SET statement_timeout = {timeout}",
        }
        words = " ".join(f"{key}={_quoted(value)}" for key, value in database.items())
        lines = [f"{key} = {value}" for key, value in settings.items()]
        text = "\n".join(["[databases]", f"{name} = {words}", "[pgbouncer]", *lines, ""])
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


def chosen_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that `PGBOUNCER_...` variables choose; an empty variable chooses none.

    Raises:
        WrongSetting: a variable names no setting, or its value is not of the setting's type.
    """
    names = sorted(each for each in environ if each.startswith(_PREFIX) and environ[each])
    unknown = [each for each in names if each.removeprefix(_PREFIX).lower() not in SETTINGS]
    if unknown:
        one = len(unknown) == 1
        links = any(re.search(r"_SERVICE_HOST$|_PORT$|_TCP", each) for each in unknown)
        raise WrongSetting(
            f"{', '.join(unknown)} {'names no setting' if one else 'name no settings'} of "
            f"pgbouncer.ini that may be chosen here{_SERVICE_LINK if links else ''}"
        )
    return {
        setting: _checked(environ, name, "", SETTINGS[setting])
        for name, setting in ((each, each.removeprefix(_PREFIX).lower()) for each in names)
    }


def refuse_newer(chosen: Mapping[str, str], program: str) -> None:
    """Refuse a setting that this PgBouncer does not have yet.

    Raises:
        WrongSetting: with the version that has it.
        OSError: the program cannot be started.
    """
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"PgBouncer (\d+)\.(\d+)", shown.stdout)
    version = (int(found[1]), int(found[2])) if found else (1, 0)
    for setting in chosen:
        since = _SINCE.get(setting, version)
        if since > version:
            raise WrongSetting(
                f"{_PREFIX}{setting.upper()} needs PgBouncer {since[0]}.{since[1]}, and this is "
                f"{version[0]}.{version[1]}"
            )


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
    value = _checked(environ, name, "", _TEXT)
    if not value:
        raise WrongSetting(f"{name} is not set")
    return value


def _checked(environ: Mapping[str, str], name: str, default: str, accepted: tuple[str, str]) -> str:
    """Return a variable, or the default in place of an empty one."""
    value = environ.get(name) or default
    wanted, pattern = accepted
    if not re.fullmatch(pattern, value):
        hint = _SERVICE_LINK if "://" in value else ""
        raise WrongSetting(f"{name} must be {wanted}, not {value!r}{hint}")
    return value


def _quoted(value: str) -> str:
    return "'{}'".format(value.replace("'", "''"))


def _write_private(file: Path, text: str) -> None:
    partial = file.with_suffix(".new")
    partial.touch(mode=0o600)
    partial.write_text(text, encoding="utf-8")
    # In one step: PgBouncer may read it at any time.
    partial.replace(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "pgbouncer", os.environ))
