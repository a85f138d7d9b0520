"""Requests/s of `GET /articles/{id}` on poolkit.fastapi, against the same endpoint by hand.

    python benchmarks/web_get_article.py [--rounds 7] [--seconds 2] [--clients 16] [--only sync]
    python benchmarks/web_get_article.py --parts
    python benchmarks/web_get_article.py --checkout ../another-checkout

Every variant runs in a uvicorn process of its own with the same options, on one real PostgreSQL.
Each round starts new processes, because one may be slower than another of the same code for all its
life, and loads each variant once, in a changing order. The result is the median of the rounds' own ratios: of requests a second, and
of requests for each second of the server process's CPU time, which a busy machine disturbs less.
The goal is at least 1.0 of both against the same code on SQLAlchemy's own engine. The load
generator is wrk, or closed_loop.py if wrk is not installed.

`--parts` measures what each part of the library adds: the whole against the whole without it.
`--checkout` adds the web services of another checkout of this project.
"""

import http.client
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from math import ceil
from pathlib import Path

import closed_loop
import psutil
import psycopg2
from harness import ROOT, Comparison, compare, cpu_s, machine, postgresql, read_options
from kit_web import PARTS

from poolkit.alembic import Scripts
from poolkit.local.ports import free_port

GOAL = 1.0
UVICORN = (
    *("--log-level", "warning", "--no-access-log", "--ws", "none", "--timeout-keep-alive", "75"),
    *("--app-dir", str(Path(__file__).parent)),
)
OURS = {"sync": "webapp.app:app", "async": "webapp.async_app:app"}
APPS = {"sync": "app", "async": "async_app"}


def variants(kind, options):
    """Yield each variant's name, its application, the variables it needs, and its folder."""
    app = APPS[kind]
    if options.parts:
        yield "poolkit.fastapi, whole", f"kit_web:{app}", {}, ROOT
        for part, text in PARTS.items():
            left_out = {"LEFT_OUT": part}
            if part == "checks":
                left_out["POOLKIT_POOL_PRE_PING"] = "false"
            yield f"without {text}", f"kit_web:{app}", left_out, ROOT
        return
    yield OURS[kind], OURS[kind], {"UVICORN_HTTP": "poolkit.fastapi.server:LimitedHttp"}, ROOT
    yield "by hand, pool_pre_ping", f"bare_web:{app}", {"BARE_PRE_PING": "1"}, ROOT
    yield "by hand, no ping", f"bare_web:{app}", {"BARE_PRE_PING": "0"}, ROOT
    if options.checkout:
        yield f"{OURS[kind]} of {options.checkout}", OURS[kind], {}, options.checkout


@contextmanager
def serving(app, variables, folder):
    """Run an application under uvicorn; yield its process and an article's address, once it answers."""
    port = free_port()
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), *UVICORN]
    process = subprocess.Popen(command, env=environ | variables, cwd=folder)
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
        yield psutil.Process(process.pid), f"http://127.0.0.1:{port}/articles/7"
    finally:
        process.terminate()
        process.wait(timeout=30)


def load(process, address, seconds, clients):
    """Return requests/s, and requests for each second of CPU time."""
    before = cpu_s(process)
    count, elapsed_s = count_answers(address, seconds, clients)
    return count / elapsed_s, count / (cpu_s(process) - before)


def count_answers(address, seconds, clients):
    """Return the number of answers and the time they took; any but 200 ends the benchmark."""
    if not shutil.which("wrk"):
        result = closed_loop.load(address, clients, seconds)
        if result["failures"]:
            raise SystemExit(f"wanted 200, found {result['failures'][0]}")
        return len(result["latencies_ms"]), result["elapsed_s"]
    command = ["wrk", "-t1", f"-c{clients}", f"-d{ceil(seconds)}s", address]
    output = subprocess.check_output(command, text=True)
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(output)
    count, elapsed_s = re.search(r"(\d+) requests in ([\d.]+)s", output).groups()
    return int(count), float(elapsed_s)


def measure(kind, url, options):
    """Print the table of one kind; return whether the goal is reached."""
    common = {"POOLKIT_ENVIRONMENT": "prod", "DATABASE_URL": url}
    figures = defaultdict(list)
    for _ in range(options.rounds):
        with ExitStack() as stack:
            arms = {}
            for name, app, variables, folder in variants(kind, options):
                process, address = stack.enter_context(serving(app, common | variables, folder))
                arms[name] = partial(load, process, address, options.seconds, options.clients)
                load(process, address, 1, options.clients)  # connections open, statements prepared
            for name, found in compare(arms, rounds=1, warmup=0).figures.items():
                figures[name] += found
    both = Comparison(figures)
    ours, *others = arms
    print(f"\n{kind}: median of {options.rounds} rounds")
    width = max(map(len, figures))
    ratios = []
    for part, unit in enumerate(("requests/s", "requests/CPU s")):
        result = both.part(part)
        print(f"\n{'':{width}} {unit:>14} {'ratio':>6}  lowest to highest ratio")
        print(f"{ours:{width}} {result.median(ours):14.0f}")
        for name in others:
            low, *_, high = result.ratios(ours, to=name)
            ratio = result.ratio(ours, to=name)
            print(
                f"{name:{width}} {result.median(name):14.0f} {ratio:6.2f}  {low:.2f} to {high:.2f}"
            )
            ratios += [ratio] if name.startswith("by hand") else []
    if options.parts:
        return True
    reached = all(ratio >= GOAL for ratio in ratios)
    print(f"goal of {GOAL:.2f} x {'reached' if reached else 'MISSED'}")
    return reached


def main():
    options = read_options(
        __doc__,
        rounds=7,
        seconds=2.0,
        clients=16,
        only=tuple(sorted(OURS)),
        parts=False,
        checkout="",
    )
    print(machine("SQLAlchemy", "fastapi", "uvicorn", "psycopg2-binary", "asyncpg"))
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
