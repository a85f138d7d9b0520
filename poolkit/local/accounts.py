"""The account that servers run under: PostgreSQL and PgBouncer refuse to run as root."""

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypedDict

from poolkit.errors import UnprivilegedAccountError

# Accounts that Unix systems have and that own next to nothing.
CANDIDATES = ("nobody", "postgres", "daemon")


class Credentials(TypedDict, total=False):
    """The arguments of `subprocess.Popen` that change who a process runs as."""

    user: int
    group: int
    extra_groups: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who a server runs as: this process's own user, or an unprivileged one under root."""

    name: str
    uid: int
    gid: int
    is_own: bool

    @classmethod
    def own(cls) -> Self:
        """Return the account this process runs as."""
        return cls(name=str(os.geteuid()), uid=os.geteuid(), gid=os.getegid(), is_own=True)

    def credentials(self) -> Credentials:
        """Return the arguments for `subprocess.Popen`; none when nothing has to change."""
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

    def can_enter(self, directory: Path) -> bool:
        """Tell whether the account can reach `directory` through all that is above it."""
        return self.can_run(["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)])

    def can_run(self, command: Sequence[str]) -> bool:
        """Run a command as this account and tell whether it succeeded.

        Asked by trying, because mode bits are not all that decides: there are access
        lists, mount options and user namespaces.
        """
        try:
            done = subprocess.run(
                command, cwd="/", capture_output=True, check=False, timeout=30, **self.credentials()
            )
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0


def server_account() -> Account:
    """Choose who servers run as.

    Raises:
        UnprivilegedAccountError: this is root, and no unprivileged account can be taken on.

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
