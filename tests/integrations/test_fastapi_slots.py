"""Admission to the pool: who waits, for how long, and what is left of those who gave up."""

import asyncio
import contextlib
from math import ceil
from time import perf_counter

import pytest

from poolkit.config.metrics import PoolMetrics
from poolkit.errors import PoolExhausted
from poolkit.fastapi.slots import Slots


def test_requests_come_in_the_order_in_which_they_wait():
    """A slot goes to the longest waiting request, also when another one asks at that moment."""

    async def order():
        slots, seen = Slots(1, 60, PoolMetrics()), []

        async def work(name):
            taken = await slots.take()
            seen.append(name)
            await asyncio.sleep(0)
            slots.give_back(taken)

        async with asyncio.TaskGroup() as tasks:
            for name in range(5):
                tasks.create_task(work(name))
        slots.take_now()
        return seen

    assert asyncio.run(order()) == [0, 1, 2, 3, 4]


def test_a_request_that_waits_too_long_is_refused_and_counted():
    """PoolExhausted after the patience; the slot itself is not lost."""
    metrics = PoolMetrics()

    async def wait():
        slots = Slots(1, 0.01, metrics)
        taken = slots.take_now()
        with pytest.raises(PoolExhausted, match="all 1 connections"):
            await slots.take()
        with pytest.raises(PoolExhausted):
            slots.take_now()
        slots.give_back(taken)
        slots.take_now()

    asyncio.run(wait())
    assert (metrics.timeouts, metrics.waiting) == (1, 0)


@pytest.mark.parametrize("is_free", [False, True])
def test_a_cancelled_request_loses_no_slot(is_free):
    """Whether its slot became free at the same moment or not."""
    metrics = PoolMetrics()

    async def cancel():
        slots = Slots(1, 60, metrics)
        taken = slots.take_now()
        waiting = asyncio.create_task(slots.take())
        await asyncio.sleep(0)
        if is_free:
            slots.give_back(taken)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        if not is_free:
            slots.give_back(taken)
        slots.take_now()

    asyncio.run(cancel())
    assert (metrics.timeouts, metrics.waiting) == (0, 0)


def test_beyond_max_waiting_a_request_is_refused_at_once():
    """With the seconds until those that wait are served; the ones that wait keep their turn."""
    metrics = PoolMetrics()

    async def refuse():
        slots = Slots(1, 60, metrics, max_waiting=1)
        began = perf_counter()
        slots.give_back(slots.take_now() - 3.6)  # held for 3.6 s
        longest_s = 3.6 + perf_counter() - began
        taken = slots.take_now()
        waiting = asyncio.create_task(slots.take())
        await asyncio.sleep(0)
        with pytest.raises(PoolExhausted) as refused:
            await slots.take()
        slots.give_back(taken)
        await waiting
        return refused.value.retry_after, longest_s

    retry_after, longest_s = asyncio.run(refuse())
    assert 8 <= retry_after <= ceil(2 * longest_s)  # 2 x 3.6 s, rounded up
    assert (metrics.shed, metrics.timeouts, metrics.waiting) == (1, 0, 0)
