"""What the proxy that makes a distance adds by itself, and how exact the distance is.

    python benchmarks/network.py [round trips per row]

The first table is a round trip of 64 bytes through the proxy, beside one past it. The second is a
`SELECT 1` with psycopg2, the third what passes through one connection: a COPY of 100 MB each way.
"""

import contextlib
import threading
from functools import partial
from io import BytesIO

import psutil
import psycopg2
from harness import compare, machine, postgresql, read_options, timed

from poolkit.local.distance import Distance, own_cost, way_to

DISTANCES = ("loopback", "same-az", "cross-az", "10ms")
LONG_S = 0.005
LINE = b"x" * 999 + b"\n"
LINES = 100_000
COPY_OUT = f"COPY (SELECT repeat('x', 999) FROM generate_series(1, {LINES})) TO STDOUT"


def connected(postgres, port, tls):
    """Return a psycopg2 connection in autocommit mode, which is closed with its context."""
    connection = psycopg2.connect(
        host=postgres.host,
        port=port,
        user="poolkit",
        password=postgres.password(),
        dbname="poolkit",
        sslmode="require" if tls else "disable",
    )
    connection.autocommit = True
    return contextlib.closing(connection)


def statement(connection):
    cursor = connection.cursor()
    return timed(lambda: cursor.execute("SELECT 1"))


def print_statements(postgres, rounds):
    print(f"{'':40}  {'statement':>10}  {'beyond loopback and distance':>28}")
    for text in DISTANCES:
        for tls in (False, True):
            distance = Distance.parse(text, tls=tls)
            with (
                way_to(postgres.host, postgres.port, distance) as way,
                connected(postgres, postgres.port, tls=False) as near,
                connected(postgres, way.network.port, tls) as far,
            ):
                arms = {"near": statement(near), "far": statement(far)}
                found = compare(arms, rounds=rounds_of(distance, rounds))
            took, direct = found.median("far") * 1e3, found.median("near") * 1e3
            beyond = took - direct - distance.rtt_s * 1e3
            print(f"{distance!s:40}  {took:>7.2f} ms  {beyond:>25.3f} ms")


class Peak:
    """The most memory of a process while the context is open, in MB above that at its beginning."""

    def __init__(self, pid):
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.mb = 0.0

    def _watch(self):
        before = self._process.memory_info().rss
        while not self._ended.wait(0.02):
            self.mb = max(self.mb, (self._process.memory_info().rss - before) / 1e6)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()


class Nowhere:
    """A file that keeps nothing of what is written to it."""

    def write(self, data):
        return len(data)


def print_copies(postgres):
    print(f"{'':40}  {'out':>10}  {'in':>10}  {'CPU of the proxy':>16}  {'its memory':>10}")
    for text, tls in (("loopback", False), ("same-az", False), ("same-az", True)):
        distance = Distance.parse(text, tls=tls)
        with (
            way_to(postgres.host, postgres.port, distance) as way,
            connected(postgres, way.network.port, tls) as connection,
            connection.cursor() as cursor,
            Peak(way.network.pid) as peak,
        ):
            before = way.network.figures().cpu_s
            took_out = timed(partial(cursor.copy_expert, COPY_OUT, Nowhere()))()
            cursor.execute("CREATE TEMPORARY TABLE lines (line text)")
            data = BytesIO(LINE * LINES)
            took_in = timed(partial(cursor.copy_expert, "COPY lines FROM STDIN", data))()
            cpu_s = way.network.figures().cpu_s - before
        mb = len(LINE) * LINES / 1e6
        print(
            f"{distance!s:40}  {mb / took_out:>5.0f} MB/s  {mb / took_in:>5.0f} MB/s"
            f"  {cpu_s:>14.2f} s  {peak.mb:>7.0f} MB"
        )


def rounds_of(distance, rounds):
    """Return fewer rounds for a long distance."""
    return min(rounds, 200) if distance.rtt_s > LONG_S else rounds


def main():
    rounds = read_options(__doc__, positional=True, rounds=500).rounds
    print(machine("psycopg2-binary"), end="\n\n")
    print(f"{'':40}  {'beyond the distance':>19}  {'CPU of the proxy':>16}")
    for text in DISTANCES:
        distance = Distance.parse(text)
        cost = own_cost(distance, rounds_of(distance, rounds))
        cpu_us = cost.cpu_s_per_round_trip * 1e6
        print(f"{distance!s:40}  {cost.added_s * 1e3:>16.3f} ms  {cpu_us:>13.0f} us")
    with postgresql(durable=False) as postgres:
        print()
        print_statements(postgres, rounds)
        print()
        print_copies(postgres)


if __name__ == "__main__":
    main()
