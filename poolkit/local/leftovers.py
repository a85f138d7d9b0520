"""The leftovers of a killed run: found by its records, ended, and removed.

A process that starts a server first writes a record (`OwnedProcess` in `processes.py`): the owner, the
started process, and the directory that belongs to it. When the owner is dead, the record is an
order to clean up. Two readers carry it out: the reaper (`reaper.py`), which waits for its
owner's end, and, if the reaper was killed too, the next run.

A process is ended only if it is provably the one of the record: by pid and start time, by
membership in that process's session, or by the record's token in its environment.
"""

import contextlib
import fcntl
import json
import os
import platform
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil

from poolkit.errors import StateDirectoryError

CLAIM_VARIABLE = "POOLKIT_CLAIM"
_MARK = ".poolkit-claim"
_SCHEMA = 2
_POLL_S = 0.01


# -- the identity of a process -----------------------------------------------------------------


class Realm(NamedTuple):
    """The boot and the pid namespace in which a pid has its meaning."""

    boot: str
    namespace: str


def realm() -> Realm:
    """Return this process's realm.

    Source: proc(5), `random/boot_id` and `ns/pid`; on a system without them, the time of the
    last boot in seconds.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return Realm(boot, str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        return Realm(str(int(psutil.boot_time())), "")


def _start_mark(pid: int) -> str | None:
    """Return what distinguishes this start of `pid` from any other; None if it has ended.

    Clock ticks since boot on Linux (proc(5), `stat`, field 22), because the wall clock may be
    set while a process lives. A zombie has ended.
    """
    if platform.system() == "Linux":
        try:
            text = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = text[text.rindex(b")") + 2 :].split()
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
    """One process of one boot: a pid alone is reused, a pid with its start time is not."""

    pid: int
    started: str
    realm: Realm

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the identity of a running process; None if no process has this pid."""
        started = _start_mark(pid)
        return None if started is None else cls(pid=pid, started=started, realm=realm())

    def is_here(self) -> bool:
        """Return whether the pid has a meaning here: same boot, same pid namespace."""
        return self.realm == realm()

    def is_alive(self) -> bool:
        """Return whether exactly this process still runs, as far as it is visible here."""
        return self.is_here() and _start_mark(self.pid) == self.started

    def has_ended(self) -> bool:
        """Return whether the process has certainly ended.

        False also if that is unknown: a process in another pid namespace of the same boot, such
        as a container beside this one, is invisible from here and may still run.
        """
        if self.is_here():
            return not self.is_alive()
        return self.realm.boot != realm().boot


# -- records --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Record:
    """One started server or process: its owner, its first process, and its directory."""

    token: str
    what: str
    owner: ProcessIdentity
    process: ProcessIdentity | None = None
    stop_signal: int = signal.SIGTERM
    directory: str | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the record in a JSON text.

        Raises:
            ValueError, KeyError, TypeError: the text is not a record of this version.
        """
        fields: dict[str, Any] = json.loads(text)
        if fields.pop("schema") != _SCHEMA:
            raise ValueError("a record of another version of poolkit")
        for key in ("owner", "process"):
            if (found := fields[key]) is not None:
                boot, namespace = found["realm"]
                fields[key] = ProcessIdentity(
                    pid=found["pid"], started=found["started"], realm=Realm(boot, namespace)
                )
        return cls(**fields)


def records_directory() -> Path:
    """Return this user's directory of records, made if it does not exist.

    One per user and not one per checkout: a run also finds the leftovers of other checkouts, such
    as a test session in its temporary directory.

    Raises:
        StateDirectoryError: it cannot be made, or other users could have written to it.
    """
    path = Path(tempfile.gettempdir()) / f"poolkit-{os.geteuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise StateDirectoryError(
            f"cannot make {path}, which records what is running: {error.strerror}; "
            "set TMPDIR to a directory that can be written to"
        ) from None
    # A record is an order to end processes and to remove a directory.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StateDirectoryError(
            f"{path} is not a directory of this user alone, so its records cannot be trusted: "
            "remove it, or set TMPDIR to a private directory"
        )
    return path


def write_record(record: Record) -> Path:
    """Write or replace a record, whole or not at all.

    Raises:
        StateDirectoryError: the record cannot be written.
    """
    path = records_directory() / f"{record.token}.json"
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(json.dumps({"schema": _SCHEMA, **asdict(record)}, indent=1))
        partial.replace(path)
    except OSError as error:
        raise StateDirectoryError(f"cannot write {path}: {error.strerror}") from None
    return path


def new_record(*, what: str, directory: Path | None, stop_signal: int) -> Record:
    """Return the record of a process that this one is about to start; mark its directory.

    Raises:
        StateDirectoryError: the directory cannot be written to.
    """
    token = secrets.token_hex(16)
    owner = ProcessIdentity.of(os.getpid())
    assert owner is not None  # noqa: S101  (this process runs)
    if directory is not None:
        try:
            (directory / _MARK).write_text(token)
        except OSError as error:
            raise StateDirectoryError(f"cannot write to {directory}: {error.strerror}") from None
    return Record(
        token=token,
        what=what,
        owner=owner,
        stop_signal=stop_signal,
        directory=None if directory is None else str(directory),
    )


def read_records() -> list[Record]:
    """Return every record of this user; files that are no record of this version are skipped."""
    found = []
    for path in sorted(records_directory().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.append(Record.from_json(path.read_text()))
    return found


def discard(record: Record) -> None:
    """Remove the record's directory, if it still carries the record's mark, and the record."""
    if record.directory is not None:
        directory = Path(record.directory)
        with contextlib.suppress(OSError):
            if (directory / _MARK).read_text() == record.token:
                shutil.rmtree(directory, ignore_errors=True)
    (records_directory() / f"{record.token}.json").unlink(missing_ok=True)


# -- ending processes -----------------------------------------------------------------------


def survivors(record: Record) -> list[psutil.Process]:
    """Return the record's processes that still run, its first process first."""
    leader = record.process
    leader_lives = leader is not None and leader.is_alive()
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        if leader_lives and leader is not None and process.pid == leader.pid:
            found.insert(0, process)
        elif _belongs(process, record, leader_lives=leader_lives):
            found.append(process)
    return found


def _belongs(process: psutil.Process, record: Record, *, leader_lives: bool) -> bool:
    """Return whether a process other than the first one came of this record."""
    try:
        if not _runs(process, None):
            return False
        # The environment may be another user's, or overwritten: PostgreSQL's backends write
        # their titles there.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(CLAIM_VARIABLE) == record.token:
                return True
        if record.process is None or os.getsid(process.pid) != record.process.pid:
            return False
        # A session outlives its leader, and the kernel does not reuse its number until then.
        # Without the leader, the working directory is the proof.
        return leader_lives or (
            record.directory is not None
            and Path(process.cwd()).is_relative_to(Path(record.directory).resolve())
        )
    except (psutil.Error, OSError):
        return False


def _runs(process: psutil.Process, child: subprocess.Popen[bytes] | None) -> bool:
    """Return whether it has not ended; a zombie has ended, even if its parent has not looked."""
    if child is not None and child.pid == process.pid:
        return child.poll() is None
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_processes(
    record: Record,
    *,
    grace_s: float = 5.0,
    stop_signal: int | None = None,
    child: subprocess.Popen[bytes] | None = None,
) -> None:
    """End every process of a record: by its stop signal, and after `grace_s` by SIGKILL.

    The first process gets the signal alone, because it may end its own in the right order; what it
    leaves running is next.

    Args:
        record: what to end.
        grace_s: seconds between a signal and the next.
        stop_signal: replaces the record's.
        child: the first process if the caller started it itself; its exit status must reach
            `child` and no other waiter.
    """
    polite = record.stop_signal if stop_signal is None else stop_signal
    running = survivors(record)
    leader = record.process
    leads = bool(running) and leader is not None and running[0].pid == leader.pid
    for number, most in ((polite, 1 if leads else 0), (polite, None), (signal.SIGKILL, None)):
        signalled = running[:most]
        for process in signalled:
            # psutil checks the start time first, so a reused pid is left alone.
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
                # So that a stopped process receives it.
                process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + grace_s
        while any(_runs(process, child) for process in signalled) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        # Those that still run, and those that they have started since.
        alive = {process for process in running if _runs(process, None)}
        running = list(alive.union(survivors(record)))


def clean_leftovers() -> list[str]:
    """End and remove everything whose owner has ended; return their names.

    What belongs to a living owner, or to one that cannot be seen from here, stays.
    """
    directory = records_directory()
    with (directory / "lock").open("w") as lock:
        # Two runs that clean up at the same moment would interfere.
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = [record for record in read_records() if record.owner.has_ended()]
        # All processes first: the directory of one record may lie within that of another.
        for record in ended:
            if record.owner.is_here():
                end_processes(record)
        for record in ended:
            discard(record)
    return [record.what for record in ended]
