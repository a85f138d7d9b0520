"""Requests/s of the web app's GET /articles/{id} against the same endpoint by hand.

    python benchmarks/web_get_article.py [--rounds 7] [--seconds 3] [--clients 16] [--only sync]

Every variant runs in a uvicorn process of its own with the same options, on one real PostgreSQL.
Each round loads each variant once, in a changing order, so that a disturbance of the machine
affects all of them. The result is the median of the rounds' own ratios. The goal is at least 0.95
against every bare variant. The load generator is wrk, or closed_loop.py if wrk is not installed.
"""

import http.client
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import closed_loop
import psycopg2
from harness import ROOT, compare, postgresql, read_options

from poolkit.alembic import Scripts
from poolkit.local.ports import free_port

GOAL = 0.95
UVICORN = (
    *("--log-level", "warning", "--no-access-log", "--ws", "none", "--timeout-keep-alive", "75"),
    *("--app-dir", str(Path(__file__).parent)),
)
OURS = {"sync": "webapp.app", "async": "webapp.async_app"}


def variants(kind):
    """Yield each variant's name, its application, and the variables it needs."""
    yield OURS[kind], f"{OURS[kind]}:app", {}
    for style, ping in itertools.product(("core", "orm"), (True, False)):
        name = f"bare {style}, {'pool_pre_ping' if ping else 'no ping'}"
        yield name, f"bare_web:{style}_{kind}", {"BARE_PRE_PING": str(int(ping))}


@contextmanager
def serving(app, variables):
    """Run an application under uvicorn; yield the address of an article as soon as it answers."""
    port = free_port()
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), *UVICORN]
    process = subprocess.Popen(command, env=environ | variables, cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("a server did not start")
            with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
                try:
                    connection.request("GET", "/articles/7")
                    status = connection.getresponse().status
                except OSError:
                    time.sleep(0.05)
                    continue
            if status != 200:
                raise SystemExit(f"wanted 200 from port {port}, found {status}")
            break
        yield f"http://127.0.0.1:{port}/articles/7"
    finally:
        process.terminate()
        process.wait(timeout=30)


def load(address, seconds, clients):
    """Return requests/s; any answer but 200 ends the benchmark."""
    if not shutil.which("wrk"):
        result = closed_loop.load(address, clients, seconds)
        if result["failures"]:
            raise SystemExit(f"wanted 200, found {result['failures'][0]}")
        return len(result["latencies_ms"]) / result["elapsed_s"]
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", address]
    output = subprocess.check_output(command, text=True)
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(output)
    return float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])


def measure(kind, url, options):
    """Print the table of one kind; return whether the goal is reached."""
    common = {"POOLKIT_ENVIRONMENT": "prod", "DATABASE_URL": url}
    with ExitStack() as stack:
        arms = {}
        for name, app, variables in variants(kind):
            address = stack.enter_context(serving(app, common | variables))
            arms[name] = partial(load, address, options.seconds, options.clients)
            load(address, 1, options.clients)  # warm: connections open, statements prepared
        result = compare(arms, rounds=options.rounds, warmup=0)
    ours, *others = arms
    print(f"\n{kind}: median of {options.rounds} rounds")
    print(f"{'':32} {'requests/s':>10} {'ratio':>6}  lowest to highest ratio")
    print(f"{ours:32} {result.median(ours):10.0f}")
    for name in others:
        ratios = result.ratios(ours, to=name)
        ratio = result.ratio(ours, to=name)
        print(
            f"{name:32} {result.median(name):10.0f} {ratio:6.2f}  "
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        )
    reached = all(result.ratio(ours, to=name) >= GOAL for name in others)
    print(f"goal of {GOAL:.2f} x {'reached' if reached else 'MISSED'}")
    return reached


def main():
    options = read_options(__doc__, rounds=7, seconds=3.0, clients=16, only=tuple(sorted(OURS)))
    kinds = [options.only] if options.only else list(OURS)
    with postgresql(max_connections=200) as server:
        url = server.url(driver="")
        Scripts(ROOT / "articles/migrations").upgrade(server.url())
        with (
            closing(psycopg2.connect(url)) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(
                "INSERT INTO articles (title, body)"
                " SELECT 'Title ' || n, repeat('word ', 200) FROM generate_series(1, 100) AS n"
            )
        results = [measure(kind, url, options) for kind in kinds]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
