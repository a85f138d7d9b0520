"""Admission to the pool: as many requests as it has connections."""

from __future__ import annotations

import asyncio
from collections import deque
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

    def __init__(self, count: int, patience: float, metrics: PoolMetrics) -> None:
        """Start with all slots free.

        Args:
            count: the number of slots.
            patience: seconds that a request may wait; the pool's `pool_timeout`.
            metrics: the wait for a slot counts as part of the wait for a connection.
        """
        self._count = count
        self._patience = patience
        self._metrics = metrics
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take_now(self) -> None:
        """Take a slot.

        Raises:
            PoolExhausted: none is free.
        """
        if not self._free:
            raise PoolExhausted(f"all {self._count} connections are in use")
        self._free -= 1

    async def take(self) -> None:
        """Take a slot as soon as one is free.

        Raises:
            PoolExhausted: none became free in time.
        """
        if self._free:
            self._free -= 1
            return
        began = perf_counter()
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
                self.give_back()
            timed_out = isinstance(error, TimeoutError)
            self._metrics.gave_up(timed_out=timed_out)
            if not timed_out:
                raise
            text = f"all {self._count} connections were in use for {self._patience:g} s"
            raise PoolExhausted(text) from None
        self._metrics.queued(perf_counter() - began)

    def give_back(self) -> None:
        """Free the slot: the request that waits longest gets it, if there is one."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
