"""A private MariaDB, from the programs of an installed one."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from poolkit.errors import BinaryMissingError, ServerStartError, StateDirectoryError
from poolkit.local.loopback_server import LoopbackServer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_USER, _DATABASE = "poolkit", "poolkit"
# MariaDB's own size, 96 MB, is written out before the first start.
_LOG_FILE_SIZE = "8M"
INSTALL_MARIADB = "install MariaDB: apt-get install mariadb-server, or brew install mariadb"


def find_mariadb() -> str | None:
    """Return MariaDB's server, on PATH or where packages install it; None if it is missing."""
    if shutil.which("mariadb-install-db") is None:
        return None
    return shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")


def reason(output: str) -> str:
    """Return the first error in the server's output, without its time and thread."""
    errors = [line.partition("[ERROR]")[2].strip() for line in output.splitlines()]
    return next(filter(None, errors), "it wrote no error")


class EmbeddedMariaDB(LoopbackServer):
    """One MariaDB, for as long as it is open.

    A context manager: entering starts it, leaving stops it and removes its data. Its connections
    are TCP on the loopback address, with a random password.

    Args:
        state_dir: where its files go, in a new directory of their own.
        settings: more settings of the server, such as `{"wait_timeout": "2"}`.
        port: the port to listen on; 0 for any free one.
    """

    name: ClassVar[str] = "MariaDB"
    slug: ClassVar[str] = "mariadb"
    start_timeout_s: ClassVar[float] = 60.0
    stop_timeout_s: ClassVar[float] = 30.0
    reason = staticmethod(reason)

    def __init__(
        self, state_dir: Path, *, settings: Mapping[str, str] | None = None, port: int = 0
    ) -> None:
        super().__init__(state_dir, port=port)
        self._settings = dict(settings or {})

    def url(self, driver: str = "pymysql") -> str:
        """Return the URL of its database for SQLAlchemy."""
        address = f"{_USER}:{self._password}@{self.host}:{self.port}"
        return f"mysql+{driver}://{address}/{_DATABASE}"

    def _command(self, directory: Path) -> list[str]:
        program = find_mariadb()
        if program is None:
            raise BinaryMissingError(f"mariadbd is not on PATH; {INSTALL_MARIADB}")
        # All of its settings are in the file, which `_prepare` writes for the present port.
        return [program, f"--defaults-file={directory / 'my.cnf'}"]

    def _prepare(self, directory: Path) -> bytes:
        data, temporary, script = directory / "data", directory / "tmp", directory / "init.sql"
        settings = {
            "datadir": data,
            # This process's own may be closed to the server's account.
            "tmpdir": temporary,
            # Relative to the data, which the server's account may write to; and a socket's path has
            # 107 bytes at most.
            "socket": "socket",
            "pid-file": "pid",
            "init-file": script,
            "bind-address": self.host,
            "port": self.port,
            "skip-name-resolve": "ON",
            "innodb-buffer-pool-size": "16M",
            "innodb-log-file-size": _LOG_FILE_SIZE,
            **self._settings,
        }
        files = {
            "my.cnf": "[mariadbd]\n"
            + "".join(f"{key} = {value}\n" for key, value in settings.items()),
            "init.sql": (
                f"CREATE DATABASE IF NOT EXISTS {_DATABASE};\n"
                f"CREATE USER IF NOT EXISTS {_USER}@'%' IDENTIFIED BY '{self._password}';\n"
                f"GRANT ALL ON *.* TO {_USER}@'%' WITH GRANT OPTION;\n"
            ),
        }
        try:
            for name, text in files.items():
                path = directory / name
                path.touch(mode=0o600)
                path.write_text(text)
                self.account.give(path)
            is_new = not data.exists()
            if is_new:
                for folder in (data, temporary):
                    folder.mkdir(mode=0o700)
                    self.account.give(folder)
        except OSError as error:
            raise StateDirectoryError(f"cannot write to {directory}: {error.strerror}") from None
        if is_new:
            made = subprocess.run(
                [
                    *("mariadb-install-db", "--no-defaults", "--skip-test-db"),
                    *(f"--datadir={data}", f"--tmpdir={temporary}"),
                    f"--innodb-log-file-size={_LOG_FILE_SIZE}",
                ],
                **self.account.credentials(),
                cwd="/",
                check=False,
                capture_output=True,
                text=True,
            )
            if made.returncode:
                raise ServerStartError(f"MariaDB did not make its data: {reason(made.stderr)}")
        return b""

    def _is_ready(self, directory: Path) -> bool:
        import pymysql  # noqa: PLC0415  (only who has a MariaDB needs a driver for it)

        with suppress(pymysql.OperationalError):
            pymysql.connect(
                host=self.host,
                port=self.port,
                user=_USER,
                password=self._password,
                database=_DATABASE,
                connect_timeout=2,
            ).close()
            return True
        return False
