"""Which process is meant: a pid alone is reused, a pid with its start time is not."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil


def realm() -> str:
    """Name the boot and the pid namespace in which this process's pids have their meaning.

    The two parts are joined by a slash. Source: proc(5), `random/boot_id` and `ns/pid`;
    where those are not to be had, the time of the last boot in seconds.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{int(psutil.boot_time())}/"


def _start_mark(pid: int) -> str | None:
    """Return what tells this start of `pid` from any other, or None when it has ended.

    Clock ticks since boot on Linux (proc(5), `stat`, field 22), because the wall clock
    may be set while a process lives. A zombie has ended.
    """
    if platform.system() == "Linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat[stat.rindex(b")") + 2 :].split()
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return repr(process.create_time())
    except psutil.NoSuchProcess:
        return None


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """One process of one boot, for as long as anybody remembers it."""

    pid: int
    started: str
    realm: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Identify a running process; None when there is none with this pid."""
        started = _start_mark(pid)
        return None if started is None else cls(pid=pid, started=started, realm=realm())

    @classmethod
    def of_this_process(cls) -> Self:
        """Identify the process that asks."""
        identity = cls.of(os.getpid())
        assert identity is not None  # noqa: S101 - whoever asks is running
        return identity

    def is_here(self) -> bool:
        """Tell whether the pid means something here: same boot, same pid namespace."""
        return self.realm == realm()

    def is_alive(self) -> bool:
        """Tell whether exactly this process still runs, as far as it can be seen from here."""
        return self.is_here() and _start_mark(self.pid) == self.started

    def has_ended(self) -> bool:
        """Tell whether the process has certainly ended.

        False also when that cannot be known: a process of another pid namespace of the
        same boot (a container beside this one) is invisible from here, not dead.
        """
        if self.is_here():
            return not self.is_alive()
        return self.realm.partition("/")[0] != realm().partition("/")[0]
