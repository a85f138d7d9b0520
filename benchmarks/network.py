"""What the proxy that makes a distance adds by itself, and how exact the distance is.

python benchmarks/network.py [ROUNDS]
"""

import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg2

from poolkit.local.distance import Distance, own_cost, way_to
from poolkit.local.postgres import EmbeddedPostgres

DISTANCES = ("0", "same-az", "cross-az", "10ms")


def statements(connections, rounds):
    """Return the median of a statement over each connection, asked in turn, in ms."""
    times = {name: [] for name in connections}
    for _ in range(rounds):
        for name, connection in connections.items():
            with connection.cursor() as cursor:
                began = time.perf_counter()
                cursor.execute("SELECT 1")
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) * 1e3 for name, found in times.items()}


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    print(f"A round trip of 64 bytes through the proxy, median of {rounds}:")
    print("| distance | beyond the distance | CPU of the proxy |")
    print("|---|---|---|")
    for text in DISTANCES:
        distance = Distance.parse(text)
        cost = own_cost(distance, min(rounds, 200) if distance.rtt_s > 0.005 else rounds)
        cpu = cost.cpu_s_per_round_trip * 1e6
        print(f"| {distance} | {cost.added_s * 1e3:.3f} ms | {cpu:.0f} us |")
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        with EmbeddedPostgres(folder) as postgres:
            print("\nSELECT 1 with psycopg2, medians:")
            print("| distance | TLS | statement | beyond loopback and distance |")
            print("|---|---|---|---|")
            for text in DISTANCES:
                for tls in (False, True):
                    distance = Distance.parse(text, tls=tls)
                    with way_to(postgres.host, postgres.port, distance) as way:
                        compare(postgres, way, distance, rounds)


def compare(postgres, way, distance, rounds):
    login = {"user": "poolkit", "password": postgres.password(), "dbname": "poolkit"}
    sslmode = "require" if distance.tls else "disable"
    connections = {
        "near": psycopg2.connect(
            host=postgres.host, port=postgres.port, sslmode="disable", **login
        ),
        "far": psycopg2.connect(
            host=way.network.host, port=way.network.port, sslmode=sslmode, **login
        ),
    }
    for connection in connections.values():
        connection.autocommit = True
    found = statements(connections, min(rounds, 200) if distance.rtt_s > 0.005 else rounds)
    for connection in connections.values():
        connection.close()
    added = found["far"] - found["near"] - distance.rtt_s * 1e3
    print(
        f"| {distance.rtt_s * 1e3:g} ms | {'yes' if distance.tls else 'no'} "
        f"| {found['far']:.2f} ms | {added:.3f} ms |"
    )


if __name__ == "__main__":
    main()
