"""The account that servers run under, and private directories that this account can reach.

PostgreSQL and PgBouncer refuse to run as root.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypedDict

from poolkit.errors import StateDirectoryError, UnprivilegedAccountError

# Accounts of Unix systems that own almost nothing.
CANDIDATES = ("nobody", "postgres", "daemon")


class Credentials(TypedDict, total=False):
    """The arguments of `subprocess.Popen` that change the account of a process."""

    user: int
    group: int
    extra_groups: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Account:
    """The account of a server: this process's own user, or an unprivileged one under root."""

    name: str
    uid: int
    gid: int
    is_own: bool

    @classmethod
    def own(cls) -> Self:
        """Return the account of this process."""
        return cls(name=str(os.geteuid()), uid=os.geteuid(), gid=os.getegid(), is_own=True)

    def credentials(self) -> Credentials:
        """Return the arguments for `subprocess.Popen`; empty for this process's own account."""
        if self.is_own:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def give(self, path: Path) -> None:
        """Make this account the owner of `path` and of everything under it.

        Raises:
            OSError: the owner cannot be changed.
        """
        if self.is_own:
            return
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        if path.is_dir() and not path.is_symlink():
            for child in path.iterdir():
                self.give(child)

    def can_run(self, command: Sequence[str]) -> bool:
        """Run a command as this account, and return whether it succeeded.

        The only sure test: besides mode bits there are access lists, mount options and user
        namespaces.
        """
        try:
            done = subprocess.run(
                command, cwd="/", capture_output=True, check=False, timeout=30, **self.credentials()
            )
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0


def server_account() -> Account:
    """Return the account for servers that refuse to run as root.

    Raises:
        UnprivilegedAccountError: this is root, and it can take on no unprivileged account.
    """
    if os.geteuid() != 0:
        return Account.own()
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        account = Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid, is_own=False)
        if account.can_run(["/bin/sh", "-c", ":"]):
            return account
    raise UnprivilegedAccountError(
        "PostgreSQL and PgBouncer refuse to run as root, and none of the accounts "
        f"{', '.join(CANDIDATES)} can be taken on here: run as an ordinary user instead"
    )


def private_directory(state_dir: Path, *, prefix: str, account: Account) -> Path:
    """Return a new directory under `state_dir` for the files of one server.

    Under root, `state_dir` may lie where the server's account cannot go, such as a closed home
    directory. Then the new directory is under the system's temporary one.

    Raises:
        StateDirectoryError: neither of the two can be written to, or reached by the account.
    """
    for parent in (state_dir, Path(tempfile.gettempdir())):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            directory = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=parent.resolve()))
            # Other accounts may pass through it, but not list it.
            directory.chmod(0o711)
        except OSError as error:
            raise StateDirectoryError(
                f"cannot make a directory under {parent}: {error.strerror}; "
                "name one that can be written to"
            ) from None
        enter = ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)]
        if account.is_own or account.can_run(enter):
            return directory
        shutil.rmtree(directory)
    raise StateDirectoryError(
        f"the account {account.name}, which runs the servers because root may not, can reach "
        f"neither {state_dir} nor {tempfile.gettempdir()}: set TMPDIR to a directory open to all"
    )
