"""What a load test reports, beside what the server wrote down itself.

    python benchmarks/truth_table.py [--seconds 15] [--only stalling]

Each row is one run of Locust with poolkit's plugin against a server with known faults. The server
logs the moment at which each request arrived and the moment at which its answer had left. The
truth is computed from that log alone, and from the rate that the run was asked for:

* closed loop: from the arrival of a request to the end of its answer;
* open loop: from the moment at which the request was scheduled. Arrival number k is scheduled
  k / rate seconds after the first, so the log's order gives its moment. No clock and no figure of
  the load generator is used.

Every request has a number of its own. So a request that a client sends again, on another connection,
is one request with two lines in the log. The service times are 400 ms and more: the log cannot see
the millisecond or two that Locust itself needs.

The goal is that p50, p95 and p99 differ by 2 % at most, and that the numbers of answered and of failed
requests are equal. A run with two workers on their own has a master that begins before them.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from harness import machine, read_options

GOAL = 0.02
RATE_PER_S = 60
USERS = 40
QUANTILES = (50, 95, 99)

# Of the requests that are reset, most succeed when they are sent again. One key in 32 never does.
SERVER = r"""
import asyncio, itertools, json, socket, struct, sys, time

log = open(sys.argv[1], "w", buffering=1)
numbers = itertools.count(1)
began = time.time()
BODY = b"x" * 64

async def sleep_until(moment):
    await asyncio.sleep(max(0.0, moment - time.time()))

async def answer(kind, key, number, received, writer):
    status, ms = 200, 400
    if kind == "bimodal":
        ms = 1200 if number % 10 == 0 else 400
    elif kind == "failing" and number % 20 == 0:
        status = 500
    elif kind == "stalling" and (into := (received - began) % 5) < 1:
        await sleep_until(received + 1 - into)
        received = time.time()
    elif kind == "resetting" and (number % 8 == 0 or key < "08"):
        await sleep_until(received + 0.1)
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()
        return 0
    await sleep_until(received + ms / 1000)
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    if kind == "dripping":
        writer.write(head)
        for at in range(0, len(BODY), 8):
            await asyncio.sleep(0.02)
            writer.write(BODY[at:at + 8])
            await writer.drain()
    else:
        writer.write(head + BODY)
    await writer.drain()
    return status

async def serve(reader, writer):
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            received = time.time()
            kind, _, key = head.split(b" ", 2)[1].decode().strip("/").partition("/")
            status = await answer(kind, key, next(numbers), received, writer)
            log.write(json.dumps([key, received, time.time(), status]) + "\n")
            if not status:
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""

LOCUSTFILE = """
import os, random, uuid
import gevent
from locust import FastHttpUser, between, task
from poolkit import loadtest

loadtest.register()

class Visitor(FastHttpUser):
    wait_time = between(0.1, 0.3)

    def on_start(self):
        # Users that begin at once would wait for each other inside Locust, unseen by the server.
        gevent.sleep(random.random())

    @task
    def visit(self):
        self.client.get(f"/{os.environ['KIND']}/{uuid.uuid4().hex}", name="/visit")
"""


@dataclass(frozen=True)
class Row:
    """One run: the server's fault, the loop, and how Locust is started."""

    kind: str
    loop: str
    start: str = "1 process"
    max_users: int = 500

    @property
    def title(self) -> str:
        few = f", {self.max_users} users at most" if self.max_users < 500 else ""
        return f"{self.kind}, {self.loop}, {self.start}{few}"


KINDS = ("constant", "bimodal", "stalling", "failing", "dripping", "resetting")
ROWS = (
    *(Row(kind, loop) for kind in KINDS for loop in ("closed", "open")),
    Row("stalling", "open", max_users=30),
    *(
        Row(kind, loop, start)
        for start in ("2 processes", "4 processes", "master, 2 workers")
        for kind in ("bimodal", "stalling")
        for loop in ("closed", "open")
    ),
)


@dataclass(frozen=True)
class Figures:
    """Of one run: numbers of requests, and percentiles of the answered ones in ms."""

    answered: int
    failed: int
    ms: tuple[float, ...]


def truth(log: Path, row: Row) -> Figures:
    """Return the figures of the server's own log."""
    sent = defaultdict(list)
    for line in log.read_text().splitlines():
        key, received, ended, status = json.loads(line)
        sent[key].append((received, ended, status))
    # A request that was sent again began with its first line, and ended with its last one.
    requests = sorted((min(lines)[0], max(lines)[1], max(lines)[2]) for lines in sent.values())
    due = [received for received, _, _ in requests]
    if row.loop == "open":
        first = min(received - k / RATE_PER_S for k, received in enumerate(due))
        due = [first + k / RATE_PER_S for k in range(len(due))]
    ms = sorted(
        (ended - moment) * 1000
        for moment, (_, ended, status) in zip(due, requests, strict=True)
        if status == 200
    )
    ranks = [math.ceil(q / 100 * len(ms)) - 1 for q in QUANTILES]
    return Figures(len(ms), len(requests) - len(ms), tuple(ms[rank] for rank in ranks))


def reported(document: Path) -> Figures:
    """Return the figures that Locust with poolkit wrote.

    A dropped arrival is a failure of the report. It was never sent, so no server has a line about it.
    """
    found = json.loads(document.read_text())
    total, dropped = found["latency_ms"][-1], found["load"]["unsent"]
    failed = total["failures"] - dropped
    return Figures(
        total["requests"] - total["failures"], failed, tuple(total[f"p{q}"] for q in QUANTILES)
    )


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def load(row: Row, host: str, folder: Path, seconds: float) -> None:
    """Run Locust as a person starts it; requests under way at the end may end."""
    (folder / "locustfile.py").write_text(LOCUSTFILE)
    users = min(USERS, row.max_users)
    locust = [sys.executable, "-m", "locust", "-f", "locustfile.py"]
    options = [
        *("--headless", "--host", host, "--run-time", f"{seconds:g}s", "--stop-timeout", "10"),
        *("--users", str(users), "--spawn-rate", str(users), "--json-file", "result"),
    ]
    if row.loop == "open":
        options += ["--arrival-rate", str(RATE_PER_S), "--max-users", str(row.max_users)]
    port = str(free_port())
    workers = []
    if row.start.startswith("master"):
        options += ["--master", "--master-bind-port", port, "--expect-workers", "2"]
        worker = [*locust, "--worker", "--master-port", port]
        workers = [worker, worker]
    elif not row.start.startswith("1 "):
        options += ["--processes", row.start.split()[0], "--master-bind-port", port]
        options += ["--master-port", port]
    environ = os.environ | {"KIND": row.kind}
    running = []
    try:
        with (folder / "locust.log").open("w") as output:
            # One after the other, so that those which began are stopped if the next one cannot.
            running.extend(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environ,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
                for command in ([*locust, *options], *workers)
            )
            for process in running:
                process.wait(timeout=seconds + 90)
    finally:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if not (folder / "result_connections.json").exists():
        sys.exit((folder / "locust.log").read_text())


def measure(row: Row, seconds: float) -> tuple[Figures, Figures]:
    """Return the truth and the report of one run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "server.log"
        command = [sys.executable, "-c", SERVER, str(log)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            host = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            load(row, host, folder, seconds)
        finally:
            server.kill()
            server.wait()
        return truth(log, row), reported(folder / "result_connections.json")


def main() -> int:
    options = read_options(__doc__, seconds=15.0, only="")
    print(machine("locust", "gevent", "geventhttpclient"))
    print(
        f"{'':46}  {'answered':>11}  {'failed':>9}  "
        + "".join(f"{f'p{q} ms':>17}" for q in QUANTILES)
    )
    worst, wrong = 0.0, []
    for row in ROWS:
        if options.only not in row.title:
            continue
        server, kit = measure(row, options.seconds)
        counts_agree = (server.answered, server.failed) == (kit.answered, kit.failed)
        deviation = max(abs(b / a - 1) for a, b in zip(server.ms, kit.ms, strict=True))
        worst = max(worst, deviation)
        if not counts_agree or deviation > GOAL:
            wrong.append(row.title)
        pairs = "".join(f"{f'{a:.1f} {b:.1f}':>17}" for a, b in zip(server.ms, kit.ms, strict=True))
        print(
            f"{row.title:46}  {f'{server.answered} {kit.answered}':>11}  "
            f"{f'{server.failed} {kit.failed}':>9}  {pairs}  {deviation:6.2%}",
            flush=True,
        )
    print(
        f"each pair: the server's log, the report; goal {GOAL:.0%}, largest deviation {worst:.2%}"
    )
    for title in wrong:
        print(f"beyond the goal: {title}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
