"""The engines of a running target, as the records of its processes have them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.config import presets
from poolkit.shim import sitecustomize

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

NOW = sitecustomize.NOW
FOLDER = Path(__file__).parent
"""The folder with sitecustomize.py, for PYTHONPATH."""


class EngineCeiling(NamedTuple):
    """The most connections that the engines of a target can hold; None if there is no limit."""

    connections: int | None
    reason: str
    """How it is added up, or why it is not known."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine of SQLAlchemy."""

    pool: str
    size: int | None = None
    max_overflow: int | None = None
    most: int | None = None
    is_null: bool = False
    backend: str = ""
    driver: str = ""
    host: str | None = None
    port: int | None = None

    @property
    def described(self) -> str:
        """Its pool and its numbers, such as `QueuePool 5+10`."""
        numbers = "" if self.size is None else f" {self.size}+{self.max_overflow}"
        return f"{self.pool}{numbers}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of one process."""

    pid: int
    parent: int
    inherited: bool
    """Whether it was forked after its engines were made."""
    connected: bool
    made: int
    engines: tuple[Engine, ...]
    other_pools: tuple[Mapping[str, Any], ...] = ()
    has_django: bool = False


def environ(
    folder: Path, pool: str, environment: str, *, per_task: bool, size: str = ""
) -> dict[str, str]:
    """Return the variables that put the shim into a target's processes.

    Args:
        folder: an existing folder for the records.
        pool: `now`, or the name of a preset.
        environment: the preset's numbers.
        per_task: whether a process runs one task at a time, as a worker's child does.
        size: the pool's size and overflow instead of the application's own, such as `10+5`.
    """
    return {
        "_POOLKIT_SHIM_FOLDER": str(folder),
        "_POOLKIT_SHIM_POOL": pool,
        "_POOLKIT_SHIM_ENVIRONMENT": environment,
        "_POOLKIT_SHIM_PRESETS": presets.__file__,
        "_POOLKIT_SHIM_PER_TASK": "1" if per_task else "",
        "_POOLKIT_SHIM_SIZE": size,
    }


def read_records(folder: Path) -> list[Record]:
    """Return the records of a folder; one that is being replaced is complete."""
    found = []
    for file in sorted(folder.glob("*.json")):
        values = json.loads(file.read_text(encoding="utf-8"))
        engines = tuple(Engine(**engine) for engine in values.pop("engines"))
        others = tuple(values.pop("other_pools"))
        found.append(Record(**values, engines=engines, other_pools=others))
    return found


def ceiling_of(
    records: Iterable[Record],
    *,
    alive: Collection[int],
    ports: Collection[int],
    execution_environments: int | None = None,
) -> EngineCeiling:
    """Return the ceiling of a target from the records of its processes.

    Args:
        records: of all its processes, also of those that have ended.
        alive: the processes that still run.
        ports: those of the database and of the pooler before it, on this machine.
        execution_environments: the most of a function; None for a service, which counts each
            process.
    """
    living = [record for record in records if record.pid in alive]
    # A master that forked its engines away holds none of their connections.
    left = {record.parent for record in living if record.inherited}
    using = [r for r in living if r.connected or r.pid not in left]
    using = [r for r in using if r.engines or r.other_pools or r.made or r.has_django]
    if not using:
        return EngineCeiling(
            None,
            "no engine of SQLAlchemy and no pool of a driver was seen in its processes",
        )
    each = [
        _of_process(record, ports, is_function=execution_environments is not None)
        for record in using
    ]
    for one in each:
        if one.connections is None:
            return one
    if execution_environments is not None:
        most = max(each, key=lambda one: one.connections or 0)
        total = execution_environments * (most.connections or 0)
        return EngineCeiling(total, f"concurrency {execution_environments} x {most.reason}")
    kinds = Counter(one.reason for one in each)
    reasons = [
        f"{number} {'process' if number == 1 else 'processes'} x {reason}"
        for reason, number in kinds.items()
    ]
    total = sum(one.connections or 0 for one in each)
    return EngineCeiling(total, f"{' and '.join(reasons)}, read from its engines")


def notes_on(records: Iterable[Record], *, pool: str, ports: Collection[int]) -> list[str]:
    """Return what a reader of the ceiling should know, a sentence each.

    Args:
        records: of all processes of the target.
        pool: as `--pool` has it.
        ports: those of the database and of the pooler before it.
    """
    found = list(records)
    engines = {engine for record in found for engine in record.engines}
    notes = []
    if pool != NOW and not any(e.backend == "postgresql" for e in engines):
        notes.append(
            f"--pool {pool} changed nothing: its processes made no engine of SQLAlchemy for PostgreSQL"
        )
    others = sorted({e.backend for e in engines if e.backend != "postgresql"})
    others += sorted(
        f"{e.host}:{e.port}"
        for e in engines
        if e.backend == "postgresql" and not _is_here(e, ports)
    )
    if others:
        notes.append(
            f"it has engines of other databases, which are not counted: {', '.join(others)}"
        )
    return notes


def _of_process(record: Record, ports: Collection[int], *, is_function: bool) -> EngineCeiling:
    if record.made > sitecustomize.MANY:
        return EngineCeiling(None, f"it makes engines all the time: {record.made} in one process")
    if record.has_django and not record.other_pools:
        return EngineCeiling(None, "Django keeps a connection in each thread, without a pool")
    own = [e for e in record.engines if e.backend == "postgresql" and _is_here(e, ports)]
    total, reasons = 0, []
    for engine in own:
        most = engine.most
        if engine.is_null and is_function:
            most = 1  # An execution environment has one invoke at a time.
        if most is None:
            return EngineCeiling(None, f"its {engine.described} has no limit")
        total += most
        reasons.append(engine.described)
    for pool in record.other_pools:
        if pool["most"] is None:
            return EngineCeiling(None, f"its pool of {pool['pool']} has no limit")
        total += pool["most"]
        reasons.append(f"{pool['pool']} {pool['most']}")
    return EngineCeiling(total, " and ".join(reasons) or "no engine for this database")


def _is_here(engine: Engine, ports: Collection[int]) -> bool:
    # An engine made by a function of its own (`creator`) has no port in its URL.
    return engine.port is None or engine.port in ports
