"""The cost of the local Lambda fleet itself: invokes/s, latency, memory, cold starts.

`python benchmarks/lambda_fleet.py [--seconds 10] [--clients 10] [--frozen 50]`

The handler does `SELECT 1` on a connection that it keeps. So the figures are those of the fleet,
awslambdaric and one round trip to PostgreSQL. Fleet, execution environments, PostgreSQL and the
load generator share this machine; the load generator is a process of its own.
"""

import contextlib
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from functools import partial
from pathlib import Path

import psutil
from closed_loop import load
from harness import cpu_s, machine, postgresql, read_options

MIB = 2**20


@contextlib.contextmanager
def running_fleet(dsn, log_dir, *, concurrency, freeze=True, statement="SELECT 1"):
    """Start a fleet in a process of its own; yield its URL, a client of it, and the process."""
    command = [
        *(sys.executable, "-m", "poolkit.lambda_fleet"),
        *("--handler", "select_one_handler.handler"),
        *("--task-root", Path(__file__).parent, "--log-dir", log_dir),
        *("--env", "DATABASE_DSN", "--env", f"STATEMENT={statement}"),
        *("--reserved-concurrency", str(concurrency)),
        "--freeze" if freeze else "--no-freeze",
    ]
    environment = {**os.environ, "DATABASE_DSN": dsn}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        url = json.loads(process.stdout.readline())["url"]
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def select_one(url, clients, seconds):
    return load(f"{url}/select", clients, seconds, "1")


def read(url, path):
    with urllib.request.urlopen(f"{url}/_fleet/{path}", timeout=30) as answer:
        return answer.read().decode()


def init_phases_ms(url):
    """Return the init phase of each invoke that was a cold start."""
    rows = csv.DictReader(read(url, "invokes.csv").splitlines())
    return [float(row["init_ms"]) for row in rows if row["init_ms"]]


def print_throughput(fleet, options):
    print(f"\nSELECT 1 on a kept connection, {options.clients} clients, {options.seconds:g} s\n")
    print(
        "| freeze     | invokes/s | p50 ms | p95 ms | p99 ms | max ms | failures "
        "| starts | fleet CPU | load CPU |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name, freeze in (("on", True), ("off", False)):
        with fleet(concurrency=options.clients, freeze=freeze) as (url, process):
            select_one(url, options.clients, 1.0)  # the cold starts, and a connection each
            before = cpu_s(process)
            result = select_one(url, options.clients, options.seconds)
            fleet_cpu_share = (cpu_s(process) - before) / result["elapsed_s"]
            stats = json.loads(read(url, "stats"))
        latencies = sorted(result["latencies_ms"])
        p95, p99 = (latencies[int(len(latencies) * share)] for share in (0.95, 0.99))
        print(
            f"| {name:<10} | {len(latencies) / result['elapsed_s']:>9.0f} "
            f"| {statistics.median(latencies):>6.2f} | {p95:>6.2f} "
            f"| {p99:>6.2f} | {latencies[-1]:>6.1f} "
            f"| {len(result['failures']):>8} | {stats['execution_environments_started']:>6} "
            f"| {fleet_cpu_share:>9.2f} | {result['cpu_share']:>8.2f} |"
        )


def print_frozen(fleet, options):
    """Print the memory of `options.frozen` execution environments, each after one invoke."""
    # Long enough that none is idle before all have been started: each has its connection.
    statement = "SELECT 1 FROM pg_sleep(5)"
    with fleet(concurrency=options.frozen, statement=statement) as (url, _):
        select_one(url, options.frozen, 0.0)
        usage = json.loads(read(url, "usage"))
        states = [psutil.Process(row["pid"]).status() for row in usage]
        init_ms = init_phases_ms(url)
    rss_mib = sum(row["rss_bytes"] for row in usage) / MIB
    pss_mib = sum(row["pss_bytes"] or 0 for row in usage) / MIB
    print(
        f"\n{len(usage)} execution environments: {states.count('stopped')} stopped, "
        f"RSS {rss_mib:,.0f} MiB, PSS {pss_mib:,.0f} MiB"
    )
    print(f"their init phases, all at once: median {statistics.median(init_ms):,.0f} ms")


def print_cold_starts(fleet, count=11):
    """Print the client's view and the init phase of cold starts, one after another."""
    seen_ms, init_ms = [], []
    for _ in range(count):
        with fleet(concurrency=1) as (url, _):
            seen_ms += select_one(url, 1, 0.0)["latencies_ms"]
            init_ms += init_phases_ms(url)
    seen, init = statistics.median(seen_ms), statistics.median(init_ms)
    print(f"\n{len(seen_ms)} cold starts, one at a time: median {seen:.0f} ms, ", end="")
    print(f"of which init {init:.0f} ms")


def main():
    options = read_options(__doc__, seconds=10.0, clients=10, frozen=50)
    with tempfile.TemporaryDirectory() as logs, postgresql(max_connections=100) as postgres:
        fleet = partial(running_fleet, postgres.url(driver=""), logs)
        print(machine())
        print_throughput(fleet, options)
        print_frozen(fleet, options)
        print_cold_starts(fleet)


if __name__ == "__main__":
    main()
