"""Memory and CPU of the execution environments, as the operating system sees them."""

from collections.abc import Mapping
from typing import NamedTuple

import psutil


class Usage(NamedTuple):
    """One execution environment with everything it started. Bytes and CPU seconds."""

    execution_environment: str
    pid: int
    rss_bytes: int
    pss_bytes: int | None
    """Shared pages counted by their share; `None` where the system does not tell."""
    cpu_s: float


def usage(pids: Mapping[str, int]) -> list[Usage]:
    """Return the usage of each execution environment in `pids` that is still there.

    Works on a frozen one too. PSS is what adds up: the interpreter's and the libraries' pages are
    shared by all of them, and RSS counts them once in each.
    """
    rows = []
    for name, pid in sorted(pids.items()):
        try:
            rows.append(_usage(name, pid))
        except psutil.NoSuchProcess:
            continue
    return rows


def _usage(name: str, pid: int) -> Usage:
    leader = psutil.Process(pid)
    rss, pss, cpu = 0, 0, 0.0
    for process in (leader, *leader.children(recursive=True)):
        memory = process.memory_full_info()
        rss += memory.rss
        pss += getattr(memory, "pss", 0)
        times = process.cpu_times()
        cpu += times.user + times.system
    return Usage(name, pid, rss, pss or None, cpu)
