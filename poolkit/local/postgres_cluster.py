"""A PostgreSQL data directory: made by initdb once per version, then copied."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from poolkit.errors import ServerStartError, StateDirectoryError
from poolkit.local.accounts import Account
from poolkit.local.directories import why
from poolkit.local.ports import LOOPBACK
from poolkit.local.postgres_binaries import PostgresBinaries

SUPERUSER = "postgres"

# The whole of pg_hba.conf: a password on every connection, loopback only, no replication.
_HBA = f"host all all {LOOPBACK}/32 scram-sha-256\n"

# What makes a server lose data in a power cut, and every commit faster than it really is.
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def server_settings(
    *, port: int, max_connections: int, durable: bool, settings: Mapping[str, str]
) -> dict[str, str]:
    """Return the server's settings; the caller's own come last and win."""
    return {
        "listen_addresses": LOOPBACK,
        # In the data directory, so that what a killed server leaves goes with it: what it would
        # leave in /dev/shm stays until the machine is started anew.
        "dynamic_shared_memory_type": "mmap",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": str(max_connections),
        "password_encryption": "scram-sha-256",
        "shared_preload_libraries": "pg_stat_statements",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %a ",
        **({} if durable else _NOT_DURABLE),
        **settings,
    }


def make_cluster(
    data: Path, *, binaries: PostgresBinaries, account: Account, cache: Path, log: Path
) -> None:
    """Make the data directory `data`, from the cached template if there is one.

    The template holds no password: it lets nobody in until `configure` has been called.

    Raises:
        ServerStartError: initdb failed; its last line says why.
        StateDirectoryError: the files cannot be copied, for lack of space for instance.

    """
    key = hashlib.sha256(f"{binaries.version()} {_HBA}".encode()).hexdigest()[:16]
    template = cache / f"postgres-{key}"
    try:
        if os.access(template / "PG_VERSION", os.R_OK):
            shutil.copytree(template, data)
            data.chmod(0o700)
            account.give(data)
            return
        data.mkdir(mode=0o700)
        account.give(data)
        _initdb(data, binaries=binaries, account=account, log=log)
        _keep_template(data, template)
    except OSError as error:
        raise StateDirectoryError(f"cannot make {data}: {why(error)}") from None


def _initdb(data: Path, *, binaries: PostgresBinaries, account: Account, log: Path) -> None:
    """Run initdb; nobody can log in to what it makes."""
    command = [binaries.initdb, "--pgdata", str(data), "--username", SUPERUSER]
    command += ["--encoding=UTF8", "--no-locale", "--auth=reject", "--no-sync", "--no-instructions"]
    run_to_end(command, account=account, log=log, goal=f"make a PostgreSQL database in {data}")


def _keep_template(data: Path, template: Path) -> None:
    """Keep a copy for the next start, if there is a place to keep it.

    Whoever is second in making it discards his.
    """
    partial = template.with_name(f"{template.name}.{data.parent.name}")
    with contextlib.suppress(OSError):
        template.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copytree(data, partial)
        partial.rename(template)
    shutil.rmtree(partial, ignore_errors=True)


def configure(
    data: Path,
    *,
    settings: Mapping[str, str],
    password: str,
    binaries: PostgresBinaries,
    account: Account,
    log: Path,
) -> None:
    """Write the settings, set the superuser's password, and open the door for passwords.

    Raises:
        ServerStartError: a setting is not accepted; the server's own words say which.
        StateDirectoryError: the files cannot be written.

    """
    lines = [f"{name} = '{_escaped(value)}'\n" for name, value in settings.items()]
    try:
        (data / "postgresql.auto.conf").write_text("".join(lines))
        (data / "pg_hba.conf").write_text(_HBA)
    except OSError as error:
        raise StateDirectoryError(f"cannot write to {data}: {error.strerror}") from None
    # Single-user mode needs no way in, and standard input shows the password to nobody.
    run_to_end(
        [binaries.postgres, "--single", "-D", str(data), "postgres"],
        account=account,
        log=log,
        goal="configure PostgreSQL",
        says=f"ALTER ROLE {SUPERUSER} PASSWORD '{password}'\n",
    )


def _escaped(value: str) -> str:
    """Quote a value of postgresql.conf (PostgreSQL manual, 19.1.1)."""
    return value.replace("\\", "\\\\").replace("'", "''")


def run_to_end(
    command: list[str], *, account: Account, log: Path, goal: str, says: str = ""
) -> None:
    """Run one of PostgreSQL's programs, its output in the log.

    Raises:
        ServerStartError: it failed; the message carries the reason it gave.

    """
    done = subprocess.run(
        command,
        input=says,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd="/",
        check=False,
        **account.credentials(),
    )
    # A full disk shows in what the program says; its log must not hide that.
    with contextlib.suppress(OSError), log.open("a") as file:
        file.write(done.stdout)
    if done.returncode != 0:
        raise ServerStartError(f"could not {goal}: {reason(done.stdout)}")


# How PostgreSQL's programs begin a line that says what is wrong.
_TELLING = re.compile(r".*?(?:FATAL|PANIC|error): +(.*)")


def reason(output: str) -> str:
    """Pick what PostgreSQL says is wrong, without the time and the severity before it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for number, line in reversed(list(enumerate(lines))):
        if found := _TELLING.fullmatch(line):
            # Which error the file contains is in the line before, as a mere LOG.
            told = lines[number - 1] if "contains errors" in line and number else found[1]
            return told.rpartition("LOG:")[2].strip()
    return lines[-1] if lines else "it said nothing"
