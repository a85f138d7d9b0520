"""A spike of requests on a pool whose connects take 150 ms: poolkit's pool against SQLAlchemy's own.

`python benchmarks/spike.py [--rounds 3]` starts a PostgreSQL, and in front of it a TCP proxy that
delays each connect. It prints a table for threads and one for tasks: the connections opened, and
the time from a request's start to its end. The case is HikariCP's, "Welcome to the Jungle".

- cold: 50 requests of 2 ms at once, no connection is open
- cold, long: the same, each holds its connection for 300 ms
- warm: 50 requests of 2 ms at once, 5 connections are open
- ramp: one more client every 50 ms, up to 25; each asks again at once, 10 ms of work
- steady: 20 clients for 2 s, every connection is open
"""

import asyncio
import multiprocessing
import statistics
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial

from harness import forward, machine, postgresql, read_options
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit.config.presets import preset

CONNECT_S = 0.15
SCENARIOS = ("cold", "cold, long", "warm", "ramp", "steady")
HOLD_S = {"cold": 0.002, "cold, long": 0.3, "warm": 0.002, "ramp": 0.01, "steady": 0.002}


def run_proxy(target, delay_s, ports):
    """Forward to a port on loopback; each connect takes longer by the delay."""

    async def serve(reader, writer):
        await asyncio.sleep(delay_s.value)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(forward(reader, far_writer), forward(far_reader, writer))

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def delaying_proxy(target):
    """Start the proxy in a process of its own; give its port and its delay, in seconds."""
    context = multiprocessing.get_context("spawn")
    delay_s, ports = context.Value("d", CONNECT_S), context.Queue()
    process = context.Process(target=run_proxy, args=(target, delay_s, ports), daemon=True)
    process.start()
    try:
        yield ports.get(timeout=60), delay_s
    finally:
        process.terminate()
        process.join()


def opened_by(engine):
    opened = []
    event.listen(engine.pool, "connect", lambda connection, record: opened.append(1))
    return opened


class Threads:
    """Clients that are threads, with psycopg2."""

    title, driver = "threads, psycopg2", "psycopg2"

    def bare(self, url):
        own = preset("web", "prod")
        return create_engine(
            url, pool_size=own.pool_size, max_overflow=own.max_overflow, pool_pre_ping=True
        )

    def kit(self, url):
        return preset("web", "prod").create_engine(url)

    def run(self, make, url, scenario):
        engine = make(url)
        statement, latencies = text(f"SELECT pg_sleep({HOLD_S[scenario]})"), []

        def ask():
            began = time.perf_counter()
            with engine.connect() as connection:
                connection.execute(statement)
            latencies.append(time.perf_counter() - began)

        def loop(until):
            while time.perf_counter() < until:
                ask()

        def together(works):
            threads = [threading.Thread(target=work) for work in works]
            for thread in threads:
                thread.start()
                if scenario == "ramp":
                    time.sleep(0.05)
            for thread in threads:
                thread.join()

        with engine.connect():  # what is done once at the first connect is not the spike's
            pass
        engine.dispose()
        held = [engine.connect() for _ in range({"warm": 5, "steady": 20}.get(scenario, 0))]
        for connection in held:
            connection.close()
        opened, began = opened_by(engine), time.perf_counter()
        if scenario in ("ramp", "steady"):
            seconds, count = (2.5, 25) if scenario == "ramp" else (2, 20)
            together([partial(loop, began + seconds)] * count)
        else:
            together([ask] * 50)
        took = time.perf_counter() - began
        engine.dispose()
        return len(opened), latencies, took


class Tasks(Threads):
    """Clients that are tasks, with asyncpg."""

    title, driver = "tasks, asyncpg", "asyncpg"

    def bare(self, url):
        own = preset("web_async", "prod")
        return create_async_engine(
            url, pool_size=own.pool_size, max_overflow=own.max_overflow, pool_pre_ping=True
        )

    def kit(self, url):
        return preset("web_async", "prod").create_async_engine(url)

    def run(self, make, url, scenario):
        return asyncio.run(self.run_async(make(url), scenario))

    async def run_async(self, engine, scenario):
        statement, latencies = text(f"SELECT pg_sleep({HOLD_S[scenario]})"), []

        async def ask():
            began = time.perf_counter()
            async with engine.connect() as connection:
                await connection.execute(statement)
            latencies.append(time.perf_counter() - began)

        async def loop(until):
            while time.perf_counter() < until:
                await ask()

        async with engine.connect():
            pass
        await engine.dispose()
        count = {"warm": 5, "steady": 20}.get(scenario, 0)
        held = [await engine.connect() for _ in range(count)]
        for connection in held:
            await connection.close()
        opened, began = opened_by(engine.sync_engine), time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            if scenario in ("ramp", "steady"):
                seconds, count = (2.5, 25) if scenario == "ramp" else (2, 20)
                for _ in range(count):
                    tasks.create_task(loop(began + seconds))
                    if scenario == "ramp":
                        await asyncio.sleep(0.05)
            else:
                for _ in range(50):
                    tasks.create_task(ask())
        took = time.perf_counter() - began
        await engine.dispose()
        return len(opened), latencies, took


def main():
    rounds = read_options(__doc__, rounds=3).rounds
    print(machine("sqlalchemy", "psycopg2-binary", "asyncpg"))
    print(f"medians of {rounds} rounds; a connect takes {CONNECT_S * 1000:.0f} ms longer")
    with postgresql(durable=False) as server, delaying_proxy(server.port) as (port, _):
        for kind in (Threads(), Tasks()):
            url = server.url(driver=kind.driver).replace(f":{server.port}/", f":{port}/")
            print(f"\n{kind.title:22} opened  requests    p50 ms    p95 ms    max ms   all s")
            for scenario in SCENARIOS:
                found = {"SQLAlchemy": [], "poolkit": []}
                for _ in range(rounds):
                    found["SQLAlchemy"].append(kind.run(kind.bare, url, scenario))
                    found["poolkit"].append(kind.run(kind.kit, url, scenario))
                for arm, results in found.items():
                    figures = [
                        (
                            opened,
                            len(latencies),
                            statistics.median(latencies) * 1e3,
                            statistics.quantiles(latencies, n=20)[-1] * 1e3,
                            max(latencies) * 1e3,
                            took,
                        )
                        for opened, latencies, took in results
                    ]
                    opened, count, p50, p95, most, took = map(
                        statistics.median, zip(*figures, strict=True)
                    )
                    print(
                        f"{scenario:11}{arm:11} {opened:6.0f}  {count:8.0f}  {p50:8.1f}"
                        f"  {p95:8.1f}  {most:8.1f}  {took:6.2f}",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
