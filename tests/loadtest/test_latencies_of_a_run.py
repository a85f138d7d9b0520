"""Latencies of a whole run, of however many processes: none is lost and all files agree."""

import csv
import json

import psutil
import pytest

from poolkit.loadtest.latency.counters import DROPPED, TIMED_OUT, Latencies, LatenciesAtLeast
from poolkit.loadtest.latency.histogram import LatencyHistogram
from poolkit.loadtest.latency.report import NO_ANSWER

pytestmark = pytest.mark.process

HdrHistogram = pytest.importorskip("hdrh.histogram", reason="no wheel here").HdrHistogram
HistogramLogReader = pytest.importorskip("hdrh.log", reason="no wheel here").HistogramLogReader

HEADLESS = ("--headless", "--users", "8", "--spawn-rate", "100")
FILES = ("--csv", "run", "--json-file", "result", "--html", "report.html")

# Beside the plugin's own listener, on the same event: the requests of each process, and the number of
# them at each report to its master. The run ends by itself after a number of requests, as at
# --run-time. Its master waits longer than usual for a worker that a busy machine holds up.
VISITORS = """
import os, time
import gevent
from locust import FastHttpUser, constant, events, runners, task
from poolkit import loadtest

loadtest.register()
runners.HEARTBEAT_LIVENESS = 8

rows = open(f"rows-{os.getpid()}.csv", "w", buffering=1)

@events.init.add_listener
def reopen(environment, **_):
    # After the fork of --processes.
    global rows
    rows = open(f"rows-{os.getpid()}.csv", "w", buffering=1)
    if not isinstance(environment.runner, runners.WorkerRunner):
        gevent.spawn(end_it, environment.runner)

def end_it(runner):
    while runner.stats.total.num_requests < int(os.environ.get("REQUESTS", 1e9)):
        gevent.sleep(0.05)
    runner.quit()

@events.report_to_master.add_listener
def note(**_):
    with open(f"reported-{os.getpid()}", "a") as file:
        file.write(f"{written}\\n")

written = 0

@events.request.add_listener
def write(name, response_time, exception, start_time, **_):
    waited = max(0, start_time - (gevent.getcurrent().poolkit_task.scheduled_at or start_time))
    ms = waited * 1000 + response_time
    rows.write(f"{name},{ms!r},{int(exception is not None)}\\n")
    global written
    written += 1

class Visitor(FastHttpUser):
    wait_time = constant(0.005)

    @task(5)
    def visit(self):
        self.client.get("/")

    @task
    def fail(self):
        with self.client.get("/other", name="/other, one", catch_response=True) as answer:
            answer.failure("as if")
"""


@pytest.fixture
def visitors(locust, tmp_path):
    """The locustfile that writes rows; Locust is started on it."""
    (tmp_path / "visitors.py").write_text(VISITORS)
    return locust


def rows(folder, pid="*"):
    """What the processes wrote down, each row as name, ms, whether it failed."""
    for file in folder.glob(f"rows-{pid}.csv"):
        for line in file.read_text().splitlines():
            name, ms, failed = line.rsplit(",", 2)
            yield name, float(ms), failed == "1"


def histogram_of_rows(folder, name=None, *, failed=False):
    """One histogram of the raw rows of all processes."""
    found = LatencyHistogram()
    for called, ms, has_failed in rows(folder):
        if has_failed is failed and name in (None, called):
            found.record(ms)
    return found


def histogram_of_log(folder, tag=None):
    """The sum of the lines of the log with a tag, read by the package's own reader."""
    found = LatencyHistogram()
    reader = HistogramLogReader(str(folder / "run_latency.hlog"), HdrHistogram(1, 3_600_000_000, 3))
    while line := reader.get_next_interval_histogram():
        if line.get_tag() == tag:
            found.add(LatencyHistogram.decode(line.encode().decode()))
    reader.close()
    return found


def assert_nothing_is_lost(folder):
    """Log, table and document say what one histogram of all rows says."""
    total = histogram_of_rows(folder)
    failed = histogram_of_rows(folder, failed=True)
    assert total.count > 100
    assert failed.count > 10
    assert histogram_of_log(folder).buckets() == total.buckets()
    assert histogram_of_log(folder, "GET_/").buckets() == total.buckets()
    assert histogram_of_log(folder, "failed").buckets() == failed.buckets()
    assert histogram_of_log(folder, "failed_GET_/other_one").buckets() == failed.buckets()
    with (folder / "run_latency.csv").open() as file:
        *_, aggregated = csv.DictReader(file)
    document = json.loads((folder / "result_connections.json").read_text())
    shown, rest = document["latency_ms"][-1], without_answer(document)
    assert shown["requests"] - rest == total.count + failed.count
    assert shown["failures"] - rest == failed.count
    wanted = at_least(folder)
    names = (50, 90, 95, 99, 99.9)
    for p, ms in zip(names, wanted.percentiles(names), strict=True):
        assert shown[f"p{p}"] == ms
        assert float(aggregated[f"p{p}"]) == pytest.approx(ms, rel=1e-5)
    assert (shown["max"], shown["mean"]) == (wanted.max, pytest.approx(wanted.mean, abs=0.001))
    assert document["lost"] == []
    return document


def without_answer(document):
    """The number of its requests of which no event was fired; a busy machine may leave some."""
    return sum(row["requests"] for row in document["latency_ms"] if row["name"] == NO_ANSWER)


def at_least(folder):
    """The figures of the raw rows, and of what the log says was cut off."""
    found = Latencies()
    for name, ms, has_failed in rows(folder):
        found.record("GET", name, ms, outcome="failed" if has_failed else "answered")
    waited = [histogram_of_log(folder, tag) for tag in (TIMED_OUT, DROPPED)]
    return LatenciesAtLeast(found.total().of("answered"), waited)


def test_four_processes_lose_nothing_at_the_end(visitors, master_port):
    """The last reports are there before the master writes its files."""
    run = visitors(*HEADLESS, *FILES, *master_port, "--processes", "4", REQUESTS="400")
    assert run.wait() == 1, run.text  # as Locust says of a run with failures
    assert len({file.name for file in run.folder.glob("rows-*.csv")}) >= 4
    document = assert_nothing_is_lost(run.folder)
    assert document["partial"] is False
    assert document["load"]["loop"] == "closed"
    assert "Closed loop: latencies count from the sending of a request" in run.text


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_loses_nothing(visitors, server, master_port):
    """It goes to the master and all its processes at once."""
    run = visitors(*HEADLESS, *FILES, *master_port, "--processes", "4", "--run-time", "10m")
    run.wait_until(lambda: len(server.moments) > 300)
    workers = psutil.Process(run.process.pid).children()
    run.interrupt()
    for worker in workers:
        worker.send_signal(2)
    run.wait()
    assert assert_nothing_is_lost(run.folder)["partial"] is True
    assert "Traceback" not in run.text


@pytest.mark.slow
def test_ctrl_c_of_the_master_alone_loses_nothing(visitors, server, master_port):
    """Its workers, on machines of their own, are asked for what they have."""
    run = visitors(
        *(*HEADLESS, *FILES, *master_port, "--run-time", "10m", "--expect-workers", "4", "--master")
    )
    workers = [visitors("--worker", *master_port) for _ in range(4)]
    run.wait_until(lambda: len(server.moments) > 300)
    run.interrupt()
    run.wait()
    assert [worker.wait() for worker in workers] == [0] * 4
    assert assert_nothing_is_lost(run.folder)["partial"] is True


# At exit the event loop may run for long enough to wake Locust's writer of CSV files, as it does
# while workers are waited for.
LATER = """
import atexit

atexit.register(gevent.sleep, 1.5)
"""


@pytest.mark.parametrize(
    ("rate", "loop"),
    [pytest.param((), "closed", marks=pytest.mark.slow), (("--arrival-rate", "150"), "open")],
)
def test_a_process_alone_loses_nothing(visitors, tmp_path, rate, loop):
    """Requests of the last moment are in the files, in an open loop too; its CSV files end well."""
    with (tmp_path / "visitors.py").open("a") as file:
        file.write(LATER)
    run = visitors(*HEADLESS, *FILES, *rate, REQUESTS="200")
    assert run.wait() == 1, run.text
    assert "Traceback" not in run.text
    assert (run.folder / "run_stats.csv").read_text().count("\n") >= 2
    document = assert_nothing_is_lost(run.folder)
    assert document["load"]["loop"] == loop
    # Without a database.
    assert document["server"] is None
    assert document["note"].startswith("no DATABASE_URL")
    lines = [line for line in run.text.splitlines() if "connections are not measured" in line]
    assert [line.partition("measured: ")[2] for line in lines] == [
        "no DATABASE_URL and no --database-url was given; this run measures HTTP only"
    ]
    # A closed loop may send all in less than a second, which has no row yet.
    assert run.rows() or loop == "closed"
    assert {row["Connections"] for row in run.rows()} <= {""}
    assert "Connections: not measured" in run.text
    assert f"{loop.capitalize()} loop" in run.text


@pytest.mark.slow
def test_a_killed_worker_costs_one_report_at_most_and_a_warning_says_so(
    visitors, server, master_port
):
    """One clear line, on the console, in the document and in the report."""
    run = visitors(*HEADLESS, *FILES, *master_port, "--processes", "2", "--run-time", "10m")
    run.wait_until(lambda: len(server.moments) > 300)
    worker = psutil.Process(run.process.pid).children()[0]
    worker.kill()
    run.wait_for("ended in the middle")
    run.stop()
    said = [line for line in run.text.splitlines() if "ended in the middle" in line]
    assert len(said) == 2, "when it happened, and in the summary"
    document = json.loads((run.folder / "result_connections.json").read_text())
    (lost,) = document["lost"]
    assert all(line.endswith(lost) for line in said)
    assert lost.endswith("ended in the middle: up to 3 s of its latencies are lost")
    assert lost in (run.folder / "report.html").read_text()
    reported = document["latency_ms"][-1]["requests"] - without_answer(document)
    missing = len(list(rows(run.folder))) - reported
    assert 0 <= missing <= unreported(run.folder, worker.pid)


def unreported(folder, pid):
    """Return how many rows a process wrote after its last report but one: the last may be under way."""
    *_, before_last, _ = ["0", *(folder / f"reported-{pid}").read_text().split()]
    return len(list(rows(folder, pid))) - int(before_last)


@pytest.mark.slow
def test_a_worker_that_is_there_and_sends_no_last_report_is_lost(visitors, server, master_port):
    """One that stands still is not yet missing; that its figures are is not taken back."""
    run = visitors(*HEADLESS, *FILES, *master_port, "--processes", "2", "--run-time", "10m")
    run.wait_until(lambda: len(server.moments) > 300)
    worker = psutil.Process(run.process.pid).children()[0]
    worker.suspend()
    run.interrupt()
    try:
        run.wait_for("ended in the middle")
    finally:
        worker.resume()
    run.wait()
    assert "Traceback" not in run.text
    lost = json.loads((run.folder / "result_connections.json").read_text())["lost"]
    said = "none of its latencies is lost" in run.text
    assert bool(lost) is not said, "one of them, and never both"


# Before its last user is there, requests and a connection were, and have been seen.
SPAWNING = """
import psycopg2
from pathlib import Path

users, make = [], Visitor.__init__

def make_late(self, environment):
    make(self, environment)
    users.append(self)
    if len(users) == 2:
        users.append(psycopg2.connect(os.environ["OPEN_URL"]))
        while not opened_and_sent():
            gevent.sleep(0.05)

def opened_and_sent():
    file = Path("run_connections.csv")
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [line.split(",") for line in lines if "Aggregated" in line]
    return any(row[8] == "1" for row in rows) and any(float(row[10]) > 0 for row in rows)

Visitor.__init__ = make_late
"""


@pytest.mark.slow
def test_statistics_that_are_reset_begin_again(visitors, tmp_path, database):
    """With --reset-stats the time until all users are there does not count, as in Locust's table.

    Nor do the connections of that time: those opened a request would be of two times.
    """
    with (tmp_path / "visitors.py").open("a") as file:
        file.write(SPAWNING)
    spawning = ("--users", "2", "--spawn-rate", "1", "--reset-stats")
    urls = {"url": database.monitor_url(""), "OPEN_URL": database.url("")}
    run = visitors("--headless", *spawning, *FILES, "--run-time", "10m", **urls)
    run.wait_for("All users spawned")
    run.wait_for_seconds(2)
    run.stop()
    document = json.loads((run.folder / "result_connections.json").read_text())
    of_locust = json.loads((run.folder / "result.json").read_text())
    requests, rest = document["latency_ms"][-1]["requests"], without_answer(document)
    assert 0 < requests - rest < len(list(rows(run.folder)))
    # A request on its way at the reset, at most one of each user, is in Locust's table alone.
    assert 0 <= sum(one["num_requests"] for one in of_locust) - requests <= 2
    log = histogram_of_log(run.folder).count + histogram_of_log(run.folder, "failed").count
    assert requests - rest == log
    assert document["run"]["samples"] > 0
    assert document["run"]["opened"] == 0
