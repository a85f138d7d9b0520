"""How long does a connect take?

You may have read that a connect takes 50 to 200 ms (3.2, 3.28), or 5 to 20 ms (4.4), and that its
first query then takes 5 ms and the close 10 ms (0.12).

Three drivers connect in turn: on the loopback address, with TLS, and with TLS over two distances. A
proxy counts the round trips. A model predicts the time over a distance from the time without it:
round trips x round-trip time + the rest. What the rest is made of: connect_parts.
"""

import asyncio
import time

import asyncpg
import psycopg
import psycopg2

from poolkit.experiment import Lab, experiment


def use_psycopg2(dsn: str) -> tuple[float, ...]:
    begin = time.perf_counter()
    connection = psycopg2.connect(dsn)
    connected = time.perf_counter()
    connection.cursor().execute("SELECT 1")
    answered = time.perf_counter()
    connection.close()
    return connected - begin, answered - connected, time.perf_counter() - answered


def use_psycopg(dsn: str) -> tuple[float, ...]:
    begin = time.perf_counter()
    connection = psycopg.connect(dsn)
    connected = time.perf_counter()
    connection.execute("SELECT 1")
    answered = time.perf_counter()
    connection.close()
    return connected - begin, answered - connected, time.perf_counter() - answered


async def use_asyncpg(dsn: str) -> tuple[float, ...]:
    begin = time.perf_counter()
    connection = await asyncpg.connect(dsn)
    connected = time.perf_counter()
    await connection.fetchval("SELECT 1")
    answered = time.perf_counter()
    await connection.close()
    return connected - begin, answered - connected, time.perf_counter() - answered


DRIVERS = {
    "psycopg2": use_psycopg2,
    "psycopg": use_psycopg,
    "asyncpg": lambda dsn: asyncio.run(use_asyncpg(dsn)),
}


@experiment(
    question="How long does a connect take?",
    rows=("3.2", "3.28", "4.4", "0.12"),
    seconds=11,
)
def run(lab: Lab, *, rtt_ms: float = 1.5, farther_ms: float = 20.0, times: int = 21) -> None:
    # Two availability zones of a region are 1.5 ms apart, Ireland and Frankfurt 20 ms.
    here, tls = "loopback", "TLS"
    far, farther = (f"TLS + {rtt:g} ms" for rtt in (rtt_ms, farther_ms))
    took: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    lab.say(f"{times} connects of each driver: {here}, {tls}, {far}, {farther}")
    with (
        lab.network(traces=True) as near_line,
        lab.network(tls=True) as tls_line,
        lab.network(tls=True, rtt_s=rtt_ms / 1e3, traces=True) as far_line,
        lab.network(tls=True, rtt_s=farther_ms / 1e3) as farther_line,
    ):
        lines = {here: near_line, tls: tls_line, far: far_line, farther: farther_line}
        for number in range(times):
            for where, line in lines.items():
                # The network decides about the longest distance, so half of them will do.
                if where == farther and number % 2:
                    continue
                for driver, use in DRIVERS.items():
                    took.setdefault((driver, where), []).append(use(line.address.dsn(driver)))
        near_traces, far_traces = near_line.network.traces(), far_line.network.traces()

    def ms(driver: str, where: str, step: int = 0) -> float:
        # The fastest, not the median: what else the machine does lengthens the others.
        return min(each[step] for each in took[driver, where]) * 1e3

    rows = []
    for number, driver in enumerate(DRIVERS):
        # The proxy sees nothing of TCP's handshake, which is one more.
        near_trips = near_traces[number].first("ready").flights + 1
        trips = far_traces[number].first("ready").flights + 1
        near = (ms(driver, here), near_trips, ms(driver, tls), trips)
        for where, rtt in ((far, rtt_ms), (farther, farther_ms)):
            model, measured = ms(driver, tls) + trips * rtt, ms(driver, where)
            rows.append((driver, *near, rtt, model, measured, f"{measured / model - 1:+.0%}"))
    columns = ("driver", "loopback", "trips", "TLS", "trips", "rtt", "model", "measured", "off by")
    lab.table(f"A connect in ms, and its round trips (the fastest of {times})", columns, rows)
    totals = {where: ms("psycopg2", where) for where in (here, far, farther)}
    lab.bars("A connect of psycopg2", totals, unit="ms")
    shown = ", ".join(f"{total:.1f} ms {where}" for where, total in totals.items())
    _, _, near_trips, _, trips, *_ = rows[0]
    if not lab.distance.is_none:
        lab.note(f"The distance of this run ({lab.distance}) is added to each of those named here.")
    why = (
        "A connect is some round trips and some ms of work on both sides. psycopg2 makes "
        f"{near_trips} round trips without TLS and {trips} with it. So in one region the work "
        "decides, between regions the network does, and each ms of distance counts six times."
    )
    lab.judge(
        "3.2 3.28",
        "a connect takes 50 to 200 ms",
        holds={where: 50 <= total <= 200 for where, total in totals.items()},
        measured=f"psycopg2: {shown}",
        why=why,
    )
    lab.judge(
        "4.4",
        "a connect takes 5 to 20 ms, within a factor of three",
        holds={where: 5 / 3 <= total <= 20 * 3 for where, total in totals.items()},
        measured=f"psycopg2: {shown}",
        why=why,
    )
    query, close = ms("psycopg2", here, 1), ms("psycopg2", here, 2)
    lab.judge(
        "0.12",
        "the first query takes 5 ms and the close 10 ms, within a factor of two",
        holds={"the query": 5 / 2 <= query <= 5 * 2, "the close": 10 / 2 <= close <= 10 * 2},
        measured=f"query {query:.2f} ms, close {close:.2f} ms",
        why="What a query takes is up to the query; SELECT 1 shows what the first one adds. A close "
        "sends a message, and does not wait for an answer.",
    )
