"""When `max_waiting` and the circuit breaker help, and when they do not; takes 2 minutes.

`python benchmarks/guards.py [--seconds 5]` starts a PostgreSQL and sends requests at a constant
rate, whatever becomes of them (an open loop), to an engine of the preset `web_async` with a pool of
5+0. A request holds its connection for 50 ms, so the capacity is 100 requests a second.

The first table is about `max_waiting=10`. Good is an answer within 1 s, which is the patience of
this client. The second is about `breaker_failures=3`, while a proxy in front of the server closes
every connection and then either answers no connect, or refuses it. Held is the highest number of
requests under way at once: threads, in a service that has one for each. Back is the time from the
end of the outage to the first answer, and to the last failure.
"""

import asyncio
import statistics
import sys
import time
from dataclasses import dataclass, field

from harness import forward, machine, postgresql, read_options
from sqlalchemy import text

from poolkit.config.presets import preset

HOLD = text("SELECT pg_sleep(0.05)")
GOOD_S = 1.0
OUTAGE_S = 8.0


@dataclass
class Load:
    """What became of the requests: when each was sent and answered, and whether with an error."""

    engine: object
    rows: list = field(default_factory=list)
    held: int = 0
    most_held: int = 0

    async def ask(self):
        began, error = time.perf_counter(), None
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        try:
            async with self.engine.connect() as connection:
                await connection.execute(HOLD)
        except Exception as failure:  # noqa: BLE001
            error = type(failure).__name__
        self.held -= 1
        self.rows.append((began, time.perf_counter(), error))

    async def send(self, rate, seconds):
        """Send at a constant rate; wait for the last answer."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(began + number / rate - time.perf_counter())
                tasks.create_task(self.ask())

    def latencies(self, *, failed):
        return [end - began for began, end, error in self.rows if bool(error) is failed]


def quantile(values, share):
    """Return a quantile in milliseconds as text."""
    if not values:
        return "-"
    values = sorted(values)
    return f"{values[min(int(share * len(values)), len(values) - 1)] * 1e3:.0f}"


def small(**changes):
    return preset("web_async", "prod").replace(
        pool_size=5, max_overflow=0, pool_timeout=10.0, connect_timeout=2, **changes
    )


async def overload(url, seconds):
    print(
        "\nmax_waiting          rate/s  good/s  refused/s  answered p50 ms  p99 ms  refused p99 ms"
        "  timed out"
    )
    for name, rate in (("below capacity", 70), ("over capacity", 150), ("a burst", 0)):
        for max_waiting in (0, 10):
            engine = small(max_waiting=max_waiting).create_async_engine(url)
            held = [await engine.connect() for _ in range(5)]
            for connection in held:
                await connection.close()
            load = Load(engine)
            if rate:
                await load.send(rate, seconds)
            else:
                await asyncio.gather(*(load.ask() for _ in range(50)))
            good = [each for each in load.latencies(failed=False) if each <= GOOD_S]
            refused = [end - began for began, end, error in load.rows if error == "TooManyWaiting"]
            lost = sum(error == "TimeoutError" for *_, error in load.rows)
            per = seconds if rate else 1
            print(
                f"{name:15}{max_waiting or 'off':>5}  {rate or 'once 50':>6}"
                f"  {len(good) / per:6.0f}  {len(refused) / per:9.0f}"
                f"  {quantile(load.latencies(failed=False), 0.5):>15}"
                f"  {quantile(load.latencies(failed=False), 0.99):>6}"
                f"  {quantile(refused, 0.99):>14}  {lost:9}",
                flush=True,
            )
            await engine.dispose()


class Front:
    """A proxy in front of the server, in the same event loop; open, silent or refusing."""

    def __init__(self, target):
        self.target = target
        self.mode = "open"
        self.connects = 0
        self.writers = set()

    async def serve(self, reader, writer):
        self.connects += 1
        self.writers.add(writer)
        if self.mode == "refuses":
            writer.transport.abort()
        elif self.mode == "open":
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            self.writers.add(far_writer)
            await asyncio.gather(forward(reader, far_writer), forward(far_reader, writer))

    def switch(self, mode):
        self.mode = mode
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


async def outage(server, kind, failures):
    front = Front(server.port)
    proxy = await asyncio.start_server(front.serve, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    url = server.url(driver="asyncpg").replace(f":{server.port}/", f":{port}/")
    engine = small(breaker_failures=failures, breaker_pause=1.0).create_async_engine(url)
    load = Load(engine)

    async def faults():
        await asyncio.sleep(2)
        began = time.perf_counter()
        front.switch(kind)
        front.connects = 0
        load.most_held = load.held
        await asyncio.sleep(OUTAGE_S)
        load.connects = front.connects
        load.held_most = load.most_held
        front.switch("open")
        return began, time.perf_counter()

    sending = asyncio.create_task(load.send(40, 2 + OUTAGE_S + 6))
    began, ended = await faults()
    await sending
    during = [end - start for start, end, error in load.rows if began <= start < ended and error]
    first = min(end for start, end, error in load.rows if end > ended and not error)
    last = max((end for start, end, error in load.rows if end > ended and error), default=ended)
    print(
        f"{kind:10}{failures or 'off':>17}  {quantile(during, 0.5):>17}  {quantile(during, 0.99):>6}"
        f"  {load.held_most:4}  {load.connects:8}"
        f"  {first - ended:12.1f}  {max(last - ended, 0):14.1f}",
        flush=True,
    )
    await engine.dispose()
    proxy.close()
    front.switch("refuses")
    return statistics.mean(during or [0.0])


async def main():
    seconds = read_options(__doc__, seconds=5.0).seconds
    print(machine("sqlalchemy", "asyncpg"))
    with postgresql(durable=False) as server:
        await overload(server.url(driver="asyncpg"), seconds)
        print(
            "\nbreaker_failures           failed in p50 ms  p99 ms  held  connects"
            "  first back s  last failure s"
        )
        for kind in ("silent", "refuses"):
            for failures in (0, 3):
                await outage(server, kind, failures)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
