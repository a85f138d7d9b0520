"""What a tree of processes costs: memory and processor time."""

from dataclasses import dataclass
from typing import Self

import psutil


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A process and its descendants at one moment.

    `cpu_s` is the processor time in seconds since their start, of ended descendants too as
    far as their parents waited for them. `rss_bytes` is the sum of the resident sets, so
    memory that several of them share counts once for each.
    """

    processes: int
    rss_bytes: int
    cpu_s: float

    @classmethod
    def of_tree(cls, pid: int) -> Self:
        """Measure the process `pid` and its descendants; zero when it has ended."""
        try:
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            tree = []
        measured = [_measure(process) for process in tree]
        counted = [found for found in measured if found is not None]
        return cls(
            processes=len(counted),
            rss_bytes=sum(rss for rss, _ in counted),
            cpu_s=sum(cpu for _, cpu in counted),
        )


def _measure(process: psutil.Process) -> tuple[int, float] | None:
    """Return a process's resident set in bytes and its processor time in seconds."""
    try:
        with process.oneshot():
            cpu = process.cpu_times()
            return process.memory_info().rss, sum(
                (cpu.user, cpu.system, cpu.children_user, cpu.children_system)
            )
    except psutil.Error:
        return None
