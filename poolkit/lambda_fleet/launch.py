"""The first code of an execution environment: bind to the fleet's life, then become awslambdaric.

Run as a file (`python launch.py FLEET_PID HANDLER FLEET_PACKAGES`), so that the interpreter of the
function need not have poolkit; it may be an older Python than poolkit's. The parent-death signal is set here and not by `preexec_fn`. That would run
Python code after a fork of a process with threads, of which CPython warns since 3.12.
"""

import os
import runpy
import signal
import sys
from importlib.machinery import PathFinder

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_the_fleet(fleet_pid: int) -> None:
    """Ask the kernel to kill this process when the thread that started it ends.

    SIGKILL also ends a stopped process, so a frozen execution environment goes too. Linux only:
    elsewhere a fleet that was killed with SIGKILL leaves its execution environments behind.
    """
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - 2 ms of every cold start, paid only where it is of use

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != fleet_pid:
        # The fleet ended before the line above could take effect.
        os._exit(1)


class BorrowedRuntime:
    """An importer of what the interpreter lacks of `awslambdaric`: the fleet's own copy.

    It finds these packages and no other in the fleet's site-packages, so the function cannot
    import what it would not have in its own environment. The native client is found only if it was
    built for this version of Python. Without it, the client in runtime_client.py is used.
    """

    packages = ("awslambdaric", "simplejson", "snapshot_restore_py", "runtime_client")

    def __init__(self, folder: str, own_folder: str) -> None:
        self._folder = folder
        self._own_folder = own_folder

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """Return the spec of a top-level module of these packages (importlib's protocol)."""
        if name not in self.packages:
            return None
        found = PathFinder.find_spec(name, [self._folder]) if self._folder else None
        if found is None and name == "runtime_client":
            found = PathFinder.find_spec(name, [self._own_folder])
        return found


def main() -> None:
    """Become `python -m awslambdaric HANDLER`, run from the task root."""
    fleet_pid, handler, fleet_packages = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    die_with_the_fleet(fleet_pid)
    own_folder = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib costs a cold start 3 ms
    # As the option -P does, which Python has from 3.11 on only.
    sys.path = [folder for folder in sys.path if folder != own_folder]
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    sys.meta_path.append(BorrowedRuntime(fleet_packages, own_folder))  # type: ignore[arg-type]
    sys.argv = ["awslambdaric", handler]
    runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
