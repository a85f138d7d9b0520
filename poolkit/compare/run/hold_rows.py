"""The holds and pools of a target in the measured time, from the records of its processes.

Each process writes its table of `poolkit.config.holds` into a folder (`poolkit.config.hold_records`): in
the kit's own targets by the pool's metrics, in other applications by the shim. The rows of a measured
time are the difference of two readings.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from poolkit.compare.results.run_folder import HoldRow, PoolRow
from poolkit.config import hold_records
from poolkit.config.holds import CallSite, Holding, merged

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_Key: TypeAlias = tuple[str, str, str]
"""A process's file, the line, the unit of work."""


class Reading(NamedTuple):
    """The tables of a target's processes at one moment."""

    rows: dict[_Key, CallSite]
    out: tuple[Holding, ...]
    """The connections that are out."""


def read_holds(folder: Path) -> Reading | None:
    """Return the tables of a folder; None if no process has written one."""
    rows: dict[_Key, CallSite] = {}
    out: list[Holding] = []
    files = sorted(folder.glob("*.json"))
    for file in files:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for values in found["rows"]:
            spread = tuple((bucket, number) for bucket, number in values.pop("spread"))
            row = CallSite(**values, spread=spread)
            rows[file.name, row.where, row.unit] = row
        out += [Holding(**values) for values in found["out"]]
    return Reading(rows, tuple(out)) if files else None


def begin_window(folder: Path) -> None:
    """Begin the measured time: from now on the processes count the use of their pools anew."""
    (folder / hold_records.WINDOW).touch()


def read_pools(folder: Path, ports: Collection[int]) -> list[PoolRow]:
    """Return the pools of a target's processes, and their use since `begin_window`.

    A process that did nothing since then, such as a frozen function, has no use of its own.

    Args:
        folder: of the records.
        ports: those of the database and of the pooler before it; other databases are left out.
    """
    window = folder / hold_records.WINDOW
    since = window.stat().st_mtime_ns if window.exists() else 0
    found = []
    for file in sorted(folder.glob("*.json")):
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for pool in record.get("pools", ()):
            port = pool.get("port")
            if pool.get("backend") != "postgresql" or (port is not None and port not in ports):
                continue
            is_present = record["since"] == since
            found.append(
                PoolRow(
                    pid=int(file.stem),
                    pool=pool["pool"],
                    pool_size=pool["pool_size"],
                    max_overflow=pool["max_overflow"],
                    timeout_s=pool["timeout_s"],
                    recycle_s=pool["recycle_s"],
                    pre_ping=pool["pre_ping"],
                    driver=pool["driver"],
                    threads=record["threads"],
                    checkouts=pool["checkouts"] if is_present else 0,
                    timeouts=pool["timeouts"] if is_present else 0,
                    out_max=pool["out_max"] if is_present else None,
                    waited_max_s=pool["waited_max_s"] if is_present else 0.0,
                    waits=" ".join(f"{bucket}:{number}" for bucket, number in pool["waits"])
                    if is_present
                    else "",
                )
            )
    return found


def between(before: Reading | None, after: Reading | None) -> list[HoldRow] | None:
    """Return what was held from one reading to another; None if it is not known.

    Args:
        before: None if no process had an engine yet.
        after: None if none has one.
    """
    if after is None:
        return None
    earlier = before.rows if before is not None else {}
    found = merged(_difference(earlier.get(key), row) for key, row in after.rows.items())
    oldest: dict[tuple[str, str], float] = {}
    for holding in after.out:
        key = (holding.where, holding.unit)
        oldest[key] = max(oldest.get(key, 0.0), holding.age_s)
    known = {(row.where, row.unit) for row in found}
    found += [_empty(where, unit) for where, unit in oldest if (where, unit) not in known]
    return [
        HoldRow(
            where=row.where,
            unit=row.unit,
            count=row.count,
            held_s=row.held_s,
            busy_s=row.busy_s,
            unseen_s=row.unseen_s,
            longest_s=row.longest_s,
            nested=row.nested,
            after_response=row.after_response,
            leaked=row.leaked,
            out_s=oldest.get((row.where, row.unit), 0.0),
            spread=" ".join(f"{bucket}:{number:g}" for bucket, number in row.spread),
        )
        for row in found
        if row.count or row.nested or row.after_response or (row.where, row.unit) in oldest
    ]


def _difference(before: CallSite | None, after: CallSite) -> CallSite:
    if before is None or after.count < before.count:
        return after
    passed = dict(before.spread)
    spread = tuple(
        (bucket, left)
        for bucket, number in after.spread
        if (left := number - passed.get(bucket, 0.0)) > 1e-9
    )
    # The longest of all time may have been before; the buckets are 12.5 % wide at most.
    longest_s = after.longest_s
    if longest_s == before.longest_s:
        held = merged([CallSite("", "", 0, 0.0, 0.0, 0.0, longest_s, spread=spread[-1:])])
        longest_s = held[0].p95_s
    return CallSite(
        where=after.where,
        unit=after.unit,
        count=after.count - before.count,
        held_s=after.held_s - before.held_s,
        busy_s=after.busy_s - before.busy_s,
        p95_s=0.0,
        longest_s=longest_s,
        nested=after.nested - before.nested,
        after_response=after.after_response - before.after_response,
        leaked=after.leaked - before.leaked,
        unseen_s=after.unseen_s - before.unseen_s,
        spread=spread,
    )


def _empty(where: str, unit: str) -> CallSite:
    return CallSite(
        where=where, unit=unit, count=0, held_s=0.0, busy_s=0.0, p95_s=0.0, longest_s=0.0
    )
