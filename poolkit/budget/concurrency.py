"""The second ceiling: the connections that a server can put to use, not those that it accepts.

PostgreSQL wiki, "Number Of Database Connections": throughput is best at about (2 x cores) + disks
active connections. `poolkit experiment pool_size` tried 2 to 40 connections on 2 cores. Queries that
compute gained nothing above 5 (2 x 2 + 1), queries that read nothing above 20; only queries that
wait gained up to 40. So 2 per vCPU + 1 can compute at once, and no load is known to gain from more
than 20 per vCPU. The knee of a run of one's own takes the place of that number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.compare.results.files import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.budget.model import Database

BUSY_PER_VCPU, MOST_PER_VCPU = 2, 20


@dataclass(frozen=True, kw_only=True)
class Concurrency:
    """The connections that a server can put to use; None where its processors are unknown."""

    vcpus: float | None
    busy: int | None
    """The most connections that can compute at once."""
    most: int | None
    """The most connections with any effect: the knee, or the ceiling by processors."""
    knee: int | None = None

    def note(self, connections: int | None) -> str:
        """Return a sentence if this many connections cannot all be put to use, else nothing."""
        if connections is None or self.most is None or connections <= self.most:
            return ""
        on = "" if self.vcpus is None else f" on {self.vcpus:g} vCPU"
        why = "the run's latency grew faster than its throughput above"
        if self.knee is None:
            why = f"about {self.busy} can compute, and no load is known to gain from more than"
        return f"{connections:,} connections{on} will not run at once: {why} {self.most:,}."


def useful_concurrency(database: Database, knee: int | None = None) -> Concurrency:
    """Return the second ceiling of a database.

    Args:
        database: its instance class decides the number of processors.
        knee: the connections at the knee of a run against such a server, from `knee_of_run`.

    """
    vcpus = database.vcpus
    busy = None if vcpus is None else int(BUSY_PER_VCPU * vcpus) + 1
    most = None if vcpus is None else int(MOST_PER_VCPU * vcpus)
    return Concurrency(vcpus=vcpus, busy=busy, most=most if knee is None else knee, knee=knee)


def knee_of_run(path: Path) -> int | None:
    """Return the most connections that a target of a run had at its knee; None without a knee.

    Raises:
        RunFolderError: the run has no results.
    """
    results = read_json(path / "results.json")
    levels, knees = results.get("levels") or {}, results.get("knees") or {}
    at_knee = [
        repeat.get("connections", {}).get("peak") or 0
        for target, knee in knees.items()
        for level in levels.get(target, ())
        if knee and level.get("name") == knee["level"]
        for repeat in level["repeats"]
    ]
    return max(at_knee, default=0) or None
