"""The cost of the local Lambda fleet itself: invokes/s, latency, memory, cold starts.

`python benchmarks/lambda_fleet.py [--seconds 10] [--clients 10] [--frozen 50]`

The handler does `SELECT 1` on a connection that it keeps. So the figures are those of the fleet,
awslambdaric and one round trip to PostgreSQL. Fleet, execution environments, PostgreSQL and the
load generator share this machine; the load generator is a process of its own.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

import psutil

from poolkit.local.postgres import EmbeddedPostgres

HERE = Path(__file__).resolve().parent
MIB = 2**20


@contextlib.contextmanager
def fleet(dsn, log_dir, *, concurrency, freeze=True, statement="SELECT 1"):
    command = [
        *(sys.executable, "-m", "poolkit.lambda_fleet"),
        *("--handler", "select_one_handler.handler", "--task-root", HERE, "--log-dir", log_dir),
        *("--env", "DATABASE_DSN", "--env", f"STATEMENT={statement}"),
        *("--reserved-concurrency", str(concurrency)),
        "--freeze" if freeze else "--no-freeze",
    ]
    environment = {**os.environ, "DATABASE_DSN": dsn}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        url = json.loads(process.stdout.readline())["url"]
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def load(url, clients, seconds):
    address = urllib.parse.urlsplit(url)
    command = [sys.executable, HERE / "closed_loop.py", address.hostname, str(address.port)]
    done = subprocess.run(
        [*command, str(clients), str(seconds)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def look(url, path):
    with urllib.request.urlopen(f"{url}/_fleet/{path}", timeout=30) as answer:
        return answer.read().decode()


def throughput(dsn, log_dir, options, *, freeze):
    with fleet(dsn, log_dir, concurrency=options.clients, freeze=freeze) as (url, pid):
        load(url, options.clients, 1.0)  # the cold starts, and a connection each
        server = psutil.Process(pid)
        before = sum(server.cpu_times()[:2])
        result = load(url, options.clients, options.seconds)
        result["fleet_cpu_share"] = (sum(server.cpu_times()[:2]) - before) / result["elapsed_s"]
        result["stats"] = json.loads(look(url, "stats"))
    return result


def frozen(dsn, log_dir, options):
    """Return memory with `options.frozen` execution environments, each after one invoke."""
    # Long enough that none is idle before all have been started: each has its connection.
    statement = "SELECT 1 FROM pg_sleep(5)"
    with fleet(dsn, log_dir, concurrency=options.frozen, statement=statement) as (url, _):
        load(url, options.frozen, 0.0)
        usage = json.loads(look(url, "usage"))
        states = [psutil.Process(row["pid"]).status() for row in usage]
        cold = [
            float(line.split(",")[4])
            for line in look(url, "invokes.csv").splitlines()[1:]
            if line.split(",")[4]
        ]
    return usage, states, cold


def cold_starts(dsn, log_dir, count=11):
    """Return the client's view and the init phase of `count` cold starts, one after another."""
    init_ms = []
    seen_ms = []
    for _ in range(count):
        with fleet(dsn, log_dir, concurrency=1) as (url, _):
            seen_ms += load(url, 1, 0.0)["latencies_ms"]
            record = look(url, "invokes.csv").splitlines()[1].split(",")
            init_ms.append(float(record[4]))
    return seen_ms, init_ms


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def print_throughput(name, result):
    latencies = result["latencies_ms"]
    print(
        f"| {name:<10} | {len(latencies) / result['elapsed_s']:>9.0f} "
        f"| {statistics.median(latencies):>6.2f} | {percentile(latencies, 0.95):>6.2f} "
        f"| {percentile(latencies, 0.99):>6.2f} | {max(latencies):>6.1f} "
        f"| {len(result['failures']):>8} | {result['stats']['execution_environments_started']:>6} "
        f"| {result['fleet_cpu_share']:>9.2f} | {result['cpu_share']:>8.2f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--frozen", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        with EmbeddedPostgres(scratch / "postgres", max_connections=100) as postgres:
            dsn = postgres.url(driver="psycopg2").replace("postgresql+psycopg2://", "postgresql://")
            report(dsn, scratch / "logs", options)


def report(dsn, log_dir, options):
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"\nSELECT 1 on a kept connection, {options.clients} clients, {options.seconds:g} s\n")
    print(
        "| freeze     | invokes/s | p50 ms | p95 ms | p99 ms | max ms | failures "
        "| starts | fleet CPU | load CPU |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name, freeze in (("on", True), ("off", False)):
        print_throughput(name, throughput(dsn, log_dir, options, freeze=freeze))
    usage, states, cold = frozen(dsn, log_dir, options)
    print(f"\n{len(usage)} execution environments: {states.count('stopped')} stopped, ", end="")
    print(f"RSS {sum(row['rss_bytes'] for row in usage) / MIB:,.0f} MiB, ", end="")
    print(f"PSS {sum(row['pss_bytes'] or 0 for row in usage) / MIB:,.0f} MiB")
    print(f"their init phases, all at once: median {statistics.median(cold):,.0f} ms")
    seen, init = cold_starts(dsn, log_dir)
    print(
        f"\n{len(seen)} cold starts, one at a time: median {statistics.median(seen):.0f} ms, ",
        end="",
    )
    print(f"of which init {statistics.median(init):.0f} ms")


if __name__ == "__main__":
    main()
