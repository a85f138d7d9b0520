"""The reaper: a small process that outlives its owner and cleans up after it.

A process killed by SIGKILL cannot end what it started. The kernel's own way (PR_SET_PDEATHSIG)
fires at the end of the thread that forked, not of the process, and exists on Linux alone. The
reaper reads a pipe that only its owner holds open for writing: the end of the pipe is the end
of the owner, whatever the reason.
"""

import os
import select
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field

from poolkit.local.leftovers import CLAIM_VARIABLE, ProcessIdentity, clean_leftovers

_DISMISSED = b"dismissed"


@dataclass(kw_only=True)
class Reaper:
    """The reaper of this process: started with its first process, dismissed with its last.

    Args:
        patience_s: seconds that a dismissed reaper has to end by itself.
    """

    patience_s: float = 10.0
    _owned: int = 0
    _owner_pid: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def engage(self) -> None:
        """Count one more owned process, and start the reaper if it does not run."""
        with self._lock:
            if self._owner_pid != os.getpid():
                # A copy in a fork: the parent's processes stay with the parent.
                self._owned, self._process, self._owner_pid = 0, None, os.getpid()
            self._owned += 1
            if self._process is not None and self._process.poll() is None:
                return
            environ = {name: value for name, value in os.environ.items() if name != CLAIM_VARIABLE}
            environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "poolkit.local.reaper", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C does not reach another session.
                start_new_session=True,
                cwd="/",
                env=environ,
            )

    def dismiss(self) -> None:
        """Count one process less; with none left, end the reaper and wait for its end."""
        with self._lock:
            self._owned -= 1
            if self._owned > 0 or self._process is None:
                return
            process, self._process = self._process, None
            try:
                process.communicate(_DISMISSED, timeout=self.patience_s)
            except (OSError, subprocess.TimeoutExpired):
                # On a busy machine it may not even have started; there is no work left for it.
                process.kill()
                process.wait()


def wait_for_end_of(pid: int) -> bool:
    """Wait for the end of a process that has the other end of this one's standard input.

    Returns:
        False if that process has sent something instead: this one is dismissed.
    """
    owner = ProcessIdentity.of(pid)
    while owner is not None and not owner.has_ended():
        # Bounded to a second: a child that the owner forked without exec also holds the pipe.
        readable, _, _ = select.select([sys.stdin], [], [], 1.0)
        if not readable:
            continue
        if os.read(sys.stdin.fileno(), len(_DISMISSED)):
            return False
        # The kernel closes a dying process's files a moment before the process is gone.
        threading.Event().wait(0.01)
    return True


def main() -> None:
    """Run the reaper of the process whose pid is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if wait_for_end_of(int(sys.argv[1])):
        clean_leftovers()


if __name__ == "__main__":
    main()
