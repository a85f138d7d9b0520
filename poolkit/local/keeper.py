"""The keeper: a small process that outlives its owner, to clean up after it.

A process killed by SIGKILL cannot end what it started, and asking the kernel to do it
(PR_SET_PDEATHSIG) fires at the end of the thread that forked, not of the process, and on
Linux alone. The keeper instead reads a pipe that only its owner holds open for writing:
the pipe's end is the owner's end, whatever the reason.
"""

import os
import select
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field

from poolkit.local.identity import ProcessIdentity
from poolkit.local.leftovers import CLAIM_VARIABLE, clean_leftovers

_DISMISSED = b"dismissed"


@dataclass(kw_only=True)
class Keeper:
    """The keeper of this process: started with its first claim, dismissed with its last.

    Args:
        patience_s: seconds that a dismissed keeper has to go by itself.

    """

    patience_s: float = 10.0
    _claims: int = 0
    _owner_pid: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def engage(self) -> None:
        """Count one more thing to be kept."""
        with self._lock:
            if self._owner_pid != os.getpid():
                # A fork's copy: what the parent claimed is the parent's.
                self._claims, self._process, self._owner_pid = 0, None, os.getpid()
            self._claims += 1
            if self._process is None or self._process.poll() is not None:
                self._process = _start()

    def dismiss(self) -> None:
        """Count one less; with none left, tell the keeper to go and wait until it has."""
        with self._lock:
            self._claims -= 1
            if self._claims > 0 or self._process is None:
                return
            process, self._process = self._process, None
            try:
                process.communicate(_DISMISSED, timeout=self.patience_s)
            except (OSError, subprocess.TimeoutExpired):
                # On a busy machine it may not even have started; nothing is left to be kept.
                process.kill()
                process.wait()


def _start() -> subprocess.Popen[bytes]:
    """Start the keeper in a session of its own, where no Ctrl-C reaches it."""
    environ = {name: value for name, value in os.environ.items() if name != CLAIM_VARIABLE}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", "poolkit.local.keeper", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env=environ,
    )


def wait_for_end(owner: ProcessIdentity) -> bool:
    """Wait until the owner has ended, or has dismissed this keeper; True if it has ended."""
    while not owner.has_ended():
        # A second's bound, because a child that the owner forked without exec holds the
        # pipe open too.
        readable, _, _ = select.select([sys.stdin], [], [], 1.0)
        if not readable:
            continue
        said = os.read(sys.stdin.fileno(), len(_DISMISSED))
        if said:
            return False
        # The kernel closes a dying process's files a moment before the process is gone.
        threading.Event().wait(0.01)
    return True


def main() -> None:
    """Keep the process whose pid is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    owner = ProcessIdentity.of(int(sys.argv[1]))
    if owner is None or wait_for_end(owner):
        clean_leftovers()


if __name__ == "__main__":
    main()
