"""What a killed run leaves behind: found by its records, ended, and removed.

Whoever starts a server or a process first claims it: a small record says who the owner
is, what was started and which directory belongs to it. As soon as the owner is dead the
record is an order to clean up. Two readers carry it out: the keeper (`keeper.py`), a
process that waits for its owner's end, and, where that was killed too, the next run.

A process is ended only if it is provably the one of the record: by pid and start time,
by membership in that process's session, or by the record's token in its environment.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import psutil

from poolkit.errors import StateDirectoryError
from poolkit.local.identity import ProcessIdentity

CLAIM_VARIABLE = "POOLKIT_CLAIM"
_MARK = ".poolkit-claim"
_SCHEMA = 1
_POLL_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Record:
    """One started thing: its owner, its first process, the directory that goes with it."""

    token: str
    what: str
    owner: ProcessIdentity
    process: ProcessIdentity | None = None
    stop_signal: int = signal.SIGTERM
    directory: str | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a record.

        Raises:
            ValueError, KeyError, TypeError: this is not a record of this version.

        """
        fields: dict[str, Any] = json.loads(text)
        if fields.pop("schema") != _SCHEMA:
            raise ValueError("a record of another version of poolkit")
        owner = ProcessIdentity(**fields.pop("owner"))
        process = fields.pop("process")
        return cls(
            owner=owner, process=None if process is None else ProcessIdentity(**process), **fields
        )

    def to_json(self) -> str:
        """Write the record as one JSON object."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1)


def records_directory() -> Path:
    """Return this user's directory of records, made if need be.

    One per user and not one per checkout, so that a run finds what was left behind by a
    run from elsewhere, such as a test session in its temporary directory.

    Raises:
        StateDirectoryError: it cannot be made, or somebody else could have written to it.

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
    # A record is an order to end processes and remove a directory.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StateDirectoryError(
            f"{path} is not a directory of this user alone, so what it orders to clean up "
            "cannot be trusted: remove it, or set TMPDIR to a private directory"
        )
    return path


def write_record(record: Record) -> Path:
    """Write or replace a record, never leaving half of one.

    Raises:
        StateDirectoryError: the record cannot be written.

    """
    path = records_directory() / f"{record.token}.json"
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(record.to_json())
        partial.replace(path)
    except OSError as error:
        raise StateDirectoryError(f"cannot write {path}: {error.strerror}") from None
    return path


def new_record(*, what: str, directory: Path | None, stop_signal: int) -> Record:
    """Make the record of something this process is about to start, and mark its directory.

    Raises:
        StateDirectoryError: the directory cannot be written to.

    """
    token = secrets.token_hex(16)
    if directory is not None:
        try:
            (directory / _MARK).write_text(token)
        except OSError as error:
            raise StateDirectoryError(f"cannot write to {directory}: {error.strerror}") from None
    return Record(
        token=token,
        what=what,
        owner=ProcessIdentity.of_this_process(),
        stop_signal=stop_signal,
        directory=None if directory is None else str(directory),
    )


def with_process(record: Record, pid: int) -> Record:
    """Say which process was started; unchanged if it has ended already."""
    return replace(record, process=ProcessIdentity.of(pid))


def survivors(record: Record) -> list[psutil.Process]:
    """Find the record's processes that still run, its first process first."""
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
    """Tell whether a process other than the first one came of this record."""
    try:
        if not _runs(process, None):
            return False
        if _token_of(process) == record.token:
            return True
        if record.process is None or os.getsid(process.pid) != record.process.pid:
            return False
        # A session outlives its leader, and the kernel keeps its number from being used
        # again for as long; without the leader the working directory is the proof.
        return leader_lives or (
            record.directory is not None
            and Path(process.cwd()).is_relative_to(Path(record.directory).resolve())
        )
    except (psutil.Error, OSError):
        return False


def _token_of(process: psutil.Process) -> str | None:
    """Read a process's claim from its environment; None where there is none to be seen."""
    try:
        return process.environ().get(CLAIM_VARIABLE)
    except (psutil.Error, OSError):
        # Another user's, just ended, or one that overwrote its environment (PostgreSQL's
        # backends write their titles there).
        return None


def end_processes(
    record: Record,
    *,
    grace_s: float = 5.0,
    stop_signal: int | None = None,
    child: subprocess.Popen[bytes] | None = None,
) -> None:
    """End what the record started: asked first, made to after `grace_s` seconds.

    The first process is asked alone, because it knows best how to end its own; what it
    leaves running is asked next. `stop_signal` replaces the record's. `child` is that first
    process where the caller started it itself: its exit status must reach `child` and
    nobody else.
    """
    polite = record.stop_signal if stop_signal is None else stop_signal
    running = survivors(record)
    leader = record.process
    if running and leader is not None and running[0].pid == leader.pid:
        _send_and_wait(running[:1], polite, grace_s, child)
        running = _still_running(record, running)
    # Each time asked anew: ending processes may have started others.
    for number in (polite, signal.SIGKILL):
        _send_and_wait(running, number, grace_s, child)
        running = _still_running(record, running)


def _still_running(record: Record, known: list[psutil.Process]) -> list[psutil.Process]:
    """Return those of `known` that still run, and those that are found now."""
    alive = {process for process in known if _runs(process, None)}
    return list(alive.union(survivors(record)))


def _send_and_wait(
    processes: list[psutil.Process],
    number: int,
    timeout_s: float,
    child: subprocess.Popen[bytes] | None,
) -> None:
    """Send a signal, and SIGCONT so that stopped ones take notice; wait for all to end.

    psutil checks the start time first, so a pid that was used again is left alone.
    """
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + timeout_s
    while any(_runs(process, child) for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _runs(process: psutil.Process, child: subprocess.Popen[bytes] | None) -> bool:
    """Tell whether it has not ended; a zombie has, however late its parent looks."""
    if child is not None and child.pid == process.pid:
        return child.poll() is None
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def remove_directory(record: Record) -> None:
    """Remove the record's directory, if it still carries the record's mark."""
    if record.directory is None:
        return
    directory = Path(record.directory)
    try:
        is_ours = (directory / _MARK).read_text() == record.token
    except OSError:
        return
    if is_ours:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Hold the lock of the records: two runs that clean up at once would fight."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_records() -> list[Record]:
    """Read every record of this user; a file that is no record of this version is skipped."""
    found = []
    for path in sorted(records_directory().glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.append(Record.from_json(path.read_text()))
    return found


def clean_leftovers() -> list[str]:
    """End and remove everything whose owner has ended; return what that was.

    What belongs to a living owner, or to one that cannot be seen from here, stays.
    """
    directory = records_directory()
    cleaned = []
    with _one_at_a_time(directory):
        for record in read_records():
            if not record.owner.has_ended():
                continue
            if record.owner.is_here():
                end_processes(record)
            remove_directory(record)
            forget(record)
            cleaned.append(record.what)
    return cleaned


def forget(record: Record) -> None:
    """Delete the record itself."""
    (records_directory() / f"{record.token}.json").unlink(missing_ok=True)
