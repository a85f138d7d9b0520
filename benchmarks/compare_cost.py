"""The cost of `poolkit compare` itself: time, and the memory of its whole tree of processes.

    python benchmarks/compare_cost.py           # --quick
    python benchmarks/compare_cost.py --full    # --quick, and then what `make compare` runs

Every half second the proportional set sizes (PSS: shared pages count once, divided among the
processes that share them) and the resident sets of the command and all its descendants are added
up. Limits: 90 s and 240 s, 4 GiB of PSS; the exit status is 1 if one is exceeded.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from harness import read_options

EVERY_S = 0.5
LIMITS_S = {"--quick": 90.0, "": 240.0}
LIMIT_GIB = 4.0


def memory(root):
    """Return processes, PSS and RSS in bytes of a tree; RSS replaces an unknown PSS."""
    count, pss, rss = 0, 0, 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError):
                found = process.memory_full_info()
                count, rss = count + 1, rss + found.rss
                pss += getattr(found, "pss", found.rss)
    return count, pss, rss


def measure(option):
    """Run the command once; return its exit status, seconds, and the peaks."""
    poolkit = Path(sys.executable).with_name("poolkit")
    with tempfile.TemporaryDirectory() as out:
        command = [str(poolkit), "compare", *option.split(), "--out", f"{out}/run"]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        root = psutil.Process(process.pid)
        peaks = (0, 0, 0)
        while process.poll() is None:
            peaks = tuple(map(max, peaks, memory(root)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(EVERY_S)
        return process.returncode, time.monotonic() - began, peaks


def main():
    options = ["--quick", ""] if read_options(__doc__, full=False).full else ["--quick"]
    print(
        f"{'command':<24} {'status':>6} {'s':>6} {'limit':>6} {'processes':>9} {'PSS MiB':>8} {'RSS MiB':>8}"
    )
    passed = True
    for option in options:
        status, seconds, (count, pss, rss) = measure(option)
        limit = LIMITS_S[option]
        print(
            f"{'poolkit compare ' + option:<24} {status:>6} {seconds:>6.1f} {limit:>6.0f} "
            f"{count:>9} {pss / 2**20:>8.0f} {rss / 2**20:>8.0f}",
            flush=True,
        )
        passed = passed and status == 0 and seconds <= limit and pss <= LIMIT_GIB * 2**30
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
