"""Admission to the pool: as many requests as it has connections."""

from __future__ import annotations

import asyncio
from collections import deque
from math import ceil
from time import perf_counter
from typing import TYPE_CHECKING

from poolkit.errors import PoolExhausted

if TYPE_CHECKING:
    from poolkit.config.metrics import PoolMetrics

__all__ = ("Slots",)


class Slots:
    """A slot for each connection of the pool; a request waits here while all are taken.

    A request that waited in a thread would take it from the others, which hold a connection and
    need a thread to return it. With FastAPI's 40 threads, soon all of them wait, and nothing
    goes on until `pool_timeout` is over.

    For one event loop. The request that waits longest comes first.
    """

    def __init__(
        self, count: int, patience: float, metrics: PoolMetrics, *, max_waiting: int = 0
    ) -> None:
        """Start with all slots free.

        Args:
            count: the number of slots.
            patience: seconds that a request may wait; the pool's `pool_timeout`.
            metrics: the wait for a slot counts as part of the wait for a connection.
            max_waiting: with more requests waiting than this, one is refused at once; 0: no limit.
        """
        self._count = count
        self._patience = patience
        self._metrics = metrics
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._max_waiting = max_waiting
        self._mean_hold = 0.0  # s

    def take_now(self) -> float:
        """Take a slot; return the time, for `give_back`.

        Raises:
            PoolExhausted: none is free.
        """
        if not self._free:
            raise self._exhausted("are in use")
        self._free -= 1
        return perf_counter()

    async def take(self) -> float:
        """Take a slot as soon as one is free; return the time, for `give_back`.

        Raises:
            PoolExhausted: none became free in time, or too many requests wait already.
        """
        began = perf_counter()
        if self._free:
            self._free -= 1
            return began
        if 0 < self._max_waiting <= len(self._waiting):
            self._metrics.refused()
            raise self._exhausted(f"are in use, and {len(self._waiting)} requests wait")
        self._metrics.began_waiting()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._patience):
                await turn
        except BaseException as error:
            if turn.cancelled():
                self._waiting.remove(turn)
            else:  # it became free at the very moment
                self._pass_on()
            timed_out = isinstance(error, TimeoutError)
            self._metrics.gave_up(timed_out=timed_out)
            if not timed_out:
                raise
            why = self._metrics.holds.why_full(self._count)
            text = f"were in use for {self._patience:g} s" + (f"; {why}" if why else "")
            raise self._exhausted(text) from None
        now = perf_counter()
        self._metrics.queued(now - began)
        return now

    def give_back(self, taken: float) -> None:
        """Free the slot: the request that waits longest gets it, if there is one.

        Args:
            taken: what `take` or `take_now` has returned.
        """
        held = perf_counter() - taken
        # A moving average over about the last eight.
        self._mean_hold += (held - self._mean_hold) / 8 if self._mean_hold else held
        self._pass_on()

    def _exhausted(self, reason: str) -> PoolExhausted:
        """Return the error, with the time after which those that wait now will be served."""
        error = PoolExhausted(f"all {self._count} connections {reason}")
        wait = self._mean_hold * (len(self._waiting) + 1) / self._count
        error.retry_after = min(max(ceil(wait), 1), 30)
        return error

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
