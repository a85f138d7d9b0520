"""What an id in the request name costs the load test: plain Locust, and with poolkit's recording.

    python benchmarks/many_names.py [--rounds 5] [--seconds 30] [--names 4000] [--distributed]

Each arm sends 500 requests a second to a server that answers at once, under thousands of names, with
`--csv` and an open page. The figures are the p99 of the requests, the longest pause of the event loop
and the 99th percentile of its pauses, each measured by the locustfile in the same way. Locust's own
files and pages take their time in both arms; the goal is about the difference. With `--distributed` a
worker sends and is measured, and a master writes the files.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from harness import ROOT, answering_server, compare, machine, read_options

from poolkit.local.ports import free_port

GOAL_MS = 2.0
PER_S = 500
USERS = 50
PLAIN, KIT = "plain Locust", "with poolkit"
LOCUSTFILE = """
import json, os, random, time
import gevent
from locust import FastHttpUser, constant_throughput, events, task

if os.environ.get("KIT"):
    from poolkit import loadtest
    loadtest.register()

NAMES, PER_USER = int(os.environ["NAMES"]), float(os.environ["PER_USER"])
took, pauses = [], []

@events.request.add_listener
def note(response_time, **_):
    took.append(response_time)

def watch():
    while True:
        before = time.perf_counter()
        gevent.sleep(0.002)
        pauses.append((time.perf_counter() - before) * 1000 - 2)

@events.test_start.add_listener
def begin(environment, **_):
    gevent.spawn(watch)

@events.test_stopping.add_listener
def write(environment, **_):
    if took:  # a master sends nothing
        with open(os.environ["FOUND"], "w") as file:
            json.dump([took, pauses], file)

class Visitor(FastHttpUser):
    wait_time = constant_throughput(PER_USER)

    @task
    def visit(self):
        self.client.get("/", name=f"/item/{random.randrange(NAMES)}")
"""


def look_at_pages(base, paths, ended):
    """Fetch pages once a second, as open ones do."""
    while not ended.wait(1):
        for path in paths:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(base + path, timeout=30) as page,
            ):
                page.read()


def run(host, options, *, kit):
    """Run Locust; return p99, longest pause and 99th percentile of pauses, in ms."""
    with tempfile.TemporaryDirectory() as folder:
        file, found, port = Path(folder, "visitors.py"), Path(folder, "found.json"), free_port()
        file.write_text(LOCUSTFILE)
        variables = {"NAMES": str(options.names), "PER_USER": str(PER_S / USERS)}
        environ = os.environ | variables | {"FOUND": str(found), "PYTHONPATH": str(ROOT)}
        environ |= {"KIT": "1"} if kit else {}
        locust = [sys.executable, "-m", "locust", "-f", str(file)]
        master = [*locust, "--host", host, "--autostart", "--autoquit", "0", "--csv", "run"]
        master += [
            "--users",
            str(USERS),
            "--spawn-rate",
            "50",
            "--run-time",
            f"{options.seconds:g}s",
        ]
        master += ["--web-host", "127.0.0.1", "--web-port", str(port)]
        commands, quiet = [master], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if options.distributed:
            at = str(free_port())
            master += ["--master", "--master-bind-port", at, "--expect-workers", "1"]
            commands.append([*locust, "--worker", "--master-port", at])
        ended = threading.Event()
        paths = ["/stats/requests", *(["/connections.json"] if kit else [])]
        looking = threading.Thread(
            target=look_at_pages, args=(f"http://127.0.0.1:{port}", paths, ended)
        )
        processes = [subprocess.Popen(one, cwd=folder, env=environ, **quiet) for one in commands]
        looking.start()
        try:
            for process in processes:
                process.wait(options.seconds + 120)
        finally:
            ended.set()
            looking.join()
            for process in processes:
                process.kill()
                process.wait()
        deadline = time.monotonic() + 5
        while not found.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        took, pauses = json.loads(found.read_text())
    percentile = statistics.quantiles(took, n=100)[98]
    return percentile, max(pauses), statistics.quantiles(pauses, n=100)[98]


def main():
    options = read_options(__doc__, rounds=5, seconds=30.0, names=4000, distributed=False)
    with answering_server() as host:
        arms = {
            PLAIN: lambda: run(host, options, kit=False),
            KIT: lambda: run(host, options, kit=True),
        }
        found = compare(arms, rounds=options.rounds, warmup=0)
    print(machine("locust", "gevent", "geventhttpclient"))
    how = "by a worker" if options.distributed else "by one process"
    print(f"{options.names:,} names at {PER_S}/s for {options.seconds:g} s, {how}")
    titles = ("p99 of the requests", "longest pause of the event loop", "p99 of its pauses")
    for index, title in enumerate(titles):
        print(f"{title}\n{found.part(index).table(baseline=PLAIN, unit='ms', scale=1)}")
    pairs = zip(found.figures[KIT], found.figures[PLAIN], strict=True)
    more_ms = statistics.median(kit[0] - plain[0] for kit, plain in pairs)
    print(f"p99: goal at most {GOAL_MS:g} ms more than plain Locust, measured {more_ms:+.2f} ms")
    return 0 if more_ms <= GOAL_MS else 1


if __name__ == "__main__":
    sys.exit(main())
