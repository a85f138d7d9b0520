"""Where does the time of a connect go?

You may have read that a connect costs 50 to 100 ms for TCP and 10 to 20 ms for the login (0.10,
0.11), 50 to 200 ms in all (3.2, 3.28), or 5 to 20 ms (4.4); that the query then takes 5 ms and the
close 10 ms (0.12); and that the overhead is made of TCP, TLS, login and session setup (4.1).

Three drivers connect through a proxy that records when each message passes: on the loopback
address, with TLS, and with TLS over a distance. A model predicts the time over the distance from
the time without it: round trips x round-trip time + the rest.
"""

import asyncio
import time

import asyncpg
import psycopg
import psycopg2

from poolkit.experiment import Lab, Times, experiment
from poolkit.local.wire import Trace


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
    question="Where does the time of a connect go?",
    rows=("0.10", "0.11", "0.12", "3.2", "3.28", "4.1", "4.4"),
    seconds=5,
)
def run(lab: Lab, *, rtt_ms: float = 1.5, times: int = 21) -> None:
    here, tls, far = "on the loopback address", "with TLS", f"with TLS, {rtt_ms:g} ms away"
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    lab.say(f"{times} connects with each driver {here}, {tls}, and {rtt_ms:g} ms away")
    with (
        lab.network(traces=True) as near_line,
        lab.network(tls=True) as tls_line,
        lab.network(tls=True, traces=True, rtt_s=rtt_ms / 1e3) as far_line,
    ):
        for _ in range(times):
            for driver, use in DRIVERS.items():
                for where, line in ((here, near_line), (tls, tls_line), (far, far_line)):
                    took = use(line.address.dsn(driver))
                    found.setdefault((driver, where), []).append(took)
        near_traces, far_traces = near_line.network.traces(), far_line.network.traces()

    def median(driver: str, where: str, step: int = 0) -> float:
        return Times(each[step] for each in found[driver, where]).median * 1e3

    rows = []
    for number, driver in enumerate(DRIVERS):
        # TCP's handshake is over before the proxy sees anything.
        trips = far_traces[number].first("ready").flights + 1
        predicted, measured = median(driver, tls) + trips * rtt_ms, median(driver, far)
        near = (median(driver, here), median(driver, tls))
        rows.append((driver, *near, trips, predicted, measured, f"{measured / predicted - 1:+.0%}"))
    columns = ("driver", "loopback", "TLS", "round trips", "model, far", "measured, far", "off by")
    lab.table(f"A connect in ms, p50 of {times}; far is {rtt_ms:g} ms away", columns, rows)

    parts = {
        here: parts_of(near_traces[:: len(DRIVERS)]),
        far: parts_of(far_traces[:: len(DRIVERS)]),
    }
    lab.bars("A connect of psycopg2 by its parts", parts, unit="ms")
    totals = {where: median("psycopg2", where) for where in (here, far)}
    shown = {where: f"{total:.1f} ms {where}" for where, total in totals.items()}
    why = (
        "A connect is a few round trips and a few ms of work. The network decides about the round "
        "trips: 4 without TLS, 6 with it. The work is the start of a server process and, with SCRAM, "
        "thousands of rounds of SHA-256 on both sides."
    )
    for row, low, high in (("3.2 3.28", 50, 200), ("4.4", 5, 20)):
        lab.judge(
            row,
            f"a connect takes {low} to {high} ms",
            holds={where: low <= total <= high for where, total in totals.items()},
            measured=f"psycopg2: {shown[here]}, {shown[far]}",
            why=why,
        )
    for row, part, low, high in (("0.10", "TCP, TLS", 50, 100), ("0.11", "login", 10, 20)):
        lab.judge(
            row,
            f"{part} takes {low} to {high} ms of a connect",
            holds={where: low <= parts[where][part] <= high for where in parts},
            measured=", ".join(f"{parts[where][part]:.1f} ms {where}" for where in parts),
            why=why,
        )
    query, close = median("psycopg2", here, 1), median("psycopg2", here, 2)
    lab.judge(
        "0.12",
        "the query of a new connection takes 5 ms, and the close 10 ms",
        holds=2.5 < query < 10 and 5 < close < 20,
        measured=f"query {query:.2f} ms, close {close:.2f} ms {here}",
        why="The first query of a session fills the server's caches, so it takes longer than later "
        "ones. A close sends a message and does not wait for an answer.",
    )
    extra = totals[far] - totals[here]
    lab.judge(
        "4.1",
        "the overhead of a connect is made of TCP, TLS, the login and session setup",
        holds=min(parts[here].values()) > 0 and median("psycopg2", tls) > totals[here],
        measured=f"each part takes time: the login most {here}; TLS and distance add {extra:.1f} ms",
        why=why,
    )


def parts_of(traces: list[Trace]) -> dict[str, float]:
    """Return the median ms from one message to the next."""
    found, begin = {}, 0.0
    for part, message in (
        ("TCP", "startup"),
        ("server process", "SASL request"),
        ("login", "ready"),
    ):
        end = Times(trace.first(message).at_s * 1e3 for trace in traces).median
        found[part], begin = end - begin, end
    return found
