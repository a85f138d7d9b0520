"""Requests/s of the web app's GET /articles/{id} against the same endpoint by hand.

    python benchmarks/web_get_article.py [--rounds 7] [--seconds 3] [--clients 16]

Every variant runs in a uvicorn process of its own with the same options, on one real PostgreSQL.
Each round loads each variant once, in a changing order, so that a disturbance of the machine
affects all of them. The result is the median of the rounds' own ratios. The goal is at least 0.95
against every bare variant.
"""

import argparse
import asyncio
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from articles.migrations import upgrade
from poolkit.local.ports import free_port
from poolkit.local.postgres import EmbeddedPostgres

HERE = Path(__file__).parent
GOAL = 0.95
UVICORN = (
    "--log-level",
    "warning",
    "--no-access-log",
    "--ws",
    "none",
    "--timeout-keep-alive",
    "75",
)


@dataclass(frozen=True)
class Variant:
    name: str
    app: str
    variables: tuple[tuple[str, str], ...] = ()


def bare(kind: str, style: str, *, ping: bool) -> Variant:
    name = f"bare {style}, {'pool_pre_ping' if ping else 'no ping'}"
    return Variant(name, f"bare_web_{kind}:{style}", (("BARE_PRE_PING", str(int(ping))),))


GROUPS = {
    "sync": [
        Variant("webapp.app", "webapp.app:app"),
        *(bare("sync", style, ping=ping) for style in ("core", "orm") for ping in (True, False)),
    ],
    "async": [
        Variant("webapp.async_app", "webapp.async_app:app"),
        *(bare("async", style, ping=ping) for style in ("core", "orm") for ping in (True, False)),
    ],
}


@contextmanager
def database() -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedPostgres(Path(directory), max_connections=200) as server,
    ):
        upgrade(server.url())
        connection = psycopg2.connect(server.url(driver=""))
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO articles (title, body)"
                " SELECT 'Title ' || n, repeat('word ', 200) FROM generate_series(1, 100) AS n"
            )
        connection.close()
        yield server.url(driver="")


@contextmanager
def serving(variant: Variant, url: str) -> Iterator[str]:
    port = free_port()
    environ = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        "POOLKIT_ENVIRONMENT": "prod",
        "DATABASE_URL": url.replace("postgresql://", "postgresql+psycopg2://")
        if variant.app.startswith("bare")
        else url,
        **dict(variant.variables),
    }
    command = [sys.executable, "-m", "uvicorn", variant.app, "--port", str(port), *UVICORN]
    process = subprocess.Popen([*command, "--app-dir", str(HERE)], env=environ, cwd=HERE.parent)
    try:
        address = f"http://127.0.0.1:{port}/articles/7"
        wait_until_served(process, port)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_served(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            status, _ = asyncio.run(get(port))
        except OSError:
            time.sleep(0.05)
            continue
        if status != 200:
            raise SystemExit(f"wanted 200 from port {port}, found {status}")
        return
    raise SystemExit("a server did not start")


async def get(port: int) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await request(reader, writer)
    finally:
        writer.close()


async def request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, bytes]:
    writer.write(b"GET /articles/7 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    body = await reader.readexactly(int(length[1]) if length else 0)
    return int(head.split(b" ", 2)[1]), body


def load(address: str, seconds: float, clients: int) -> float:
    """Return requests/s; any answer but 200 ends the benchmark."""
    if shutil.which("wrk"):
        return load_by_wrk(address, seconds, clients)
    port = int(re.search(r":(\d+)/", address)[1])
    # In a process of its own, so that this one's work is not part of the client's.
    command = [sys.executable, __file__, "--client", str(port), "--seconds", str(seconds)]
    output = subprocess.check_output([*command, "--clients", str(clients)], text=True)
    return float(output)


def load_by_wrk(address: str, seconds: float, clients: int) -> float:
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", address]
    output = subprocess.check_output(command, text=True)
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(output)
    return float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])


async def client(port: int, seconds: float, clients: int) -> float:
    end = time.perf_counter() + seconds

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        done = 0
        while time.perf_counter() < end:
            status, _ = await request(reader, writer)
            if status != 200:
                raise SystemExit(f"wanted 200, found {status}")
            done += 1
        writer.close()
        return done

    return sum(await asyncio.gather(*(one() for _ in range(clients)))) / seconds


def measure(group: list[Variant], url: str, options: argparse.Namespace) -> list[dict[str, float]]:
    with ExitStack() as stack:
        served = {v.name: stack.enter_context(serving(v, url)) for v in group}
        for address in served.values():
            load(address, 1, options.clients)  # warm: connections open, statements prepared
        rounds = []
        for _ in range(options.rounds):
            order = random.sample(list(served), len(served))
            rounds.append({n: load(served[n], options.seconds, options.clients) for n in order})
    return rounds


def report(kind: str, group: list[Variant], rounds: list[dict[str, float]]) -> bool:
    ours, *others = (variant.name for variant in group)
    print(f"\n{kind}: median of {len(rounds)} rounds")
    print(f"{'':32} {'requests/s':>10} {'ratio':>6}  lowest to highest ratio")
    print(f"{ours:32} {statistics.median(r[ours] for r in rounds):10.0f}")
    reached = True
    for name in others:
        ratios = sorted(r[ours] / r[name] for r in rounds)
        ratio = statistics.median(ratios)
        reached = reached and ratio >= GOAL
        median = statistics.median(r[name] for r in rounds)
        print(f"{name:32} {median:10.0f} {ratio:6.2f}  {ratios[0]:.2f} to {ratios[-1]:.2f}")
    print(f"goal of {GOAL:.2f} x {'reached' if reached else 'MISSED'}")
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--only", choices=sorted(GROUPS))
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(asyncio.run(client(options.client, options.seconds, options.clients)))
        return 0
    kinds = [options.only] if options.only else list(GROUPS)
    with database() as url:
        results = [report(k, GROUPS[k], measure(GROUPS[k], url, options)) for k in kinds]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
