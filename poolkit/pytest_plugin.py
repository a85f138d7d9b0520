"""The pytest fixture `pool_baseline`: every checkout came back, and none was held without SQL.

    def test_orders(client, pool_baseline):
        pool_baseline(engine, idle_ms=50)
        client.get("/orders")

    @pytest.fixture(autouse=True)  # for each test of a folder, and every engine
    def connections_come_back(pool_baseline):
        pass

It works with any engine of SQLAlchemy, also asynchronous ones, and engines of other libraries. The plugin is in
poolkit's package, so pytest finds it; `-p no:poolkit` switches it off.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolkit.config.holds import Ended

__all__ = ("PoolBaseline", "PoolFault")


@dataclass(frozen=True)
class PoolFault:
    """A checkout that `pool_baseline` refuses.

    `kind` is `out` for one that is still out at the end of the test, `collected` for one whose
    connection was returned by the garbage collector, `idle` for one that was held without SQL.
    """

    kind: Literal["collected", "idle", "out"]
    where: str
    """The line that checked out, such as `app/views.py:41 in list_orders`."""
    unit: str
    held_ms: float
    idle_ms: float
    """The longest time without SQL."""

    def __str__(self) -> str:
        what = {
            "collected": "was never closed, and the garbage collector returned it",
            "idle": f"was held for {self.idle_ms:.0f} ms without SQL",
            "out": "did not come back",
        }[self.kind]
        unit = f" ({self.unit})" if self.unit else ""
        return f"a connection {what}, {self.held_ms:.0f} ms after its checkout: {self.where}{unit}"


class PoolBaseline:
    """What the fixture gives; a call names the engines and the limit.

    Args:
        engines: those to check; none for every engine of the process.
        idle_ms: how long a connection may be held without SQL at a time, in milliseconds; None for
            no limit. Connections of the driver itself (`raw_connection`) have none.
        grace: seconds for which the end of the test waits for connections of other threads.
    """

    def __init__(self) -> None:
        # Not at the top: pytest imports this file at each start, also where no test uses it.
        from poolkit.config.holds import Holds  # noqa: PLC0415

        self._ended: list[Ended] = []
        self._holds = Holds(sampling=1.0, on_end=self._ended.append)
        self._dialects: list[Any] | None = None
        self._watched: dict[int, tuple[Any, Callable[[], None]]] = {}
        self.idle_ms: float | None = None
        self.grace = 0.5

    def __call__(
        self,
        *engines: Engine | AsyncEngine,
        idle_ms: float | None = None,
        grace: float | None = None,
    ) -> PoolBaseline:
        """Check these engines, from their next checkout on."""
        if engines:
            self._dialects = [engine.dialect for engine in engines]
        self.idle_ms = self.idle_ms if idle_ms is None else idle_ms
        self.grace = self.grace if grace is None else grace
        return self

    def start(self) -> None:
        """Begin to observe every pool of the process."""
        from sqlalchemy import event  # noqa: PLC0415
        from sqlalchemy.pool import Pool  # noqa: PLC0415

        event.listen(Pool, "checkout", self._on_checkout)
        event.listen(Pool, "checkin", self._holds.end)
        event.listen(Pool, "detach", self._holds.end)

    def stop(self) -> None:
        """End the observation."""
        from sqlalchemy import event  # noqa: PLC0415
        from sqlalchemy.pool import Pool  # noqa: PLC0415

        event.remove(Pool, "checkout", self._on_checkout)
        event.remove(Pool, "checkin", self._holds.end)
        event.remove(Pool, "detach", self._holds.end)
        for _, unwatch in self._watched.values():
            unwatch()

    def _on_checkout(self, connection: Any, record: Any, proxy: Any) -> None:
        from poolkit.config.holds import connections_out  # noqa: PLC0415

        dialect = proxy._pool._dialect  # noqa: SLF001
        if self._dialects is not None and not any(each is dialect for each in self._dialects):
            return
        if id(dialect) not in self._watched:
            self._watched[id(dialect)] = dialect, self._holds.watch(dialect)
        self._holds.begin(record, connections_out(), time.perf_counter())

    def faults(self) -> list[PoolFault]:
        """Return what is wrong up to now; connections that are out have until the end to return."""
        found = [
            *(self._fault("collected", each) for each in self._ended if each.is_collected),
            *(self._fault("out", each) for each in self._holds.still_out()),
        ]
        if self.idle_ms is not None:
            found += [
                self._fault("idle", each)
                for each in self._ended
                if not each.is_raw and each.longest_gap_s * 1000 > self.idle_ms
            ]
        return found

    @staticmethod
    def _fault(kind: Literal["collected", "idle", "out"], each: Ended) -> PoolFault:
        idle_ms = each.longest_gap_s * 1000
        return PoolFault(kind, each.where, each.unit, each.held_s * 1000, idle_ms)

    def check(self) -> None:
        """Fail the test if there are faults; the fixture does it at the end.

        Raises:
            pytest.fail.Exception: with a line for each fault.
        """
        if self._holds.still_out():
            gc.collect()  # what is only kept by a cycle was forgotten, and not left out on purpose
        until = time.monotonic() + self.grace
        while self._holds.still_out() and time.monotonic() < until:
            time.sleep(0.01)
        found = self.faults()
        if found:
            pytest.fail("\n".join(map(str, found)), pytrace=False)


@pytest.fixture
def pool_baseline() -> Iterator[PoolBaseline]:
    """Fail the test if a connection did not come back, or was held without SQL for too long.

    Give it before the fixtures that hold connections until the end of the test.
    """
    baseline = PoolBaseline()
    baseline.start()
    try:
        yield baseline
        baseline.check()
    finally:
        baseline.stop()
