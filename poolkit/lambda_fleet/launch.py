"""The first code of an execution environment: bind to the fleet's life, then become awslambdaric.

Run as a file (`python -P launch.py FLEET_PID HANDLER`), so that the interpreter of the function
need not have poolkit. The parent-death signal is set here and not by `preexec_fn`. That would run
Python code after a fork of a process with threads, of which CPython warns since 3.12.
"""

import os
import runpy
import signal
import sys

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


def main() -> None:
    """Become `python -m awslambdaric HANDLER`, run from the task root."""
    fleet_pid, handler = int(sys.argv[1]), sys.argv[2]
    die_with_the_fleet(fleet_pid)
    sys.path.insert(0, str(os.getcwd()))  # noqa: PTH109 - pathlib costs a cold start 3 ms
    sys.argv = ["awslambdaric", handler]
    runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
