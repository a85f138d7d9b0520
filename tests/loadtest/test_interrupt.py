"""Ctrl-C, at moments that a person hits only by chance."""

import json
import os
import signal
import time
from contextlib import contextmanager, suppress

import psutil
import pytest

from poolkit.activity.server import APPLICATION_NAME

pytestmark = pytest.mark.process

FILES = ("--csv", "run", "--html", "report.html", "--json-file", "result")

INTERRUPTED_IN = """
import os, signal
from pathlib import Path
import locust.contrib.fasthttp, locust.stats, poolkit.loadtest.figures, poolkit.loadtest.recording

sent = []

def has_begun():
    # From the second row on, each of the run's greenlets has.
    rows = Path("run_connections.csv")
    return rows.exists() and rows.read_text().count("Aggregated") > 1

def interrupted_in(owner, name):
    called = getattr(owner, name)

    def call(*arguments, **named):
        if not sent and has_begun():
            sent.append(name)
            print("interrupted", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
        return called(*arguments, **named)

    setattr(owner, name, call)

"""


def assert_ended_with_its_files(run):
    """Whatever it waits for would last for minutes: the run, its users, an answer."""
    assert run.wait() == 0, run.text
    assert "Traceback" not in run.text
    assert "Shutting down" in run.text
    assert len(run.rows()) > 0
    assert json.loads((run.folder / "result_connections.json").read_text())["partial"] is True
    assert "poolkit-connections" in (run.folder / "report.html").read_text()


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(
            "locust.stats.StatsCSVFileWriter, '_requests_data_rows'", marks=pytest.mark.slow
        ),
        pytest.param("locust.stats, 'print_stats'", marks=pytest.mark.slow),
        pytest.param("locust.contrib.fasthttp.FastHttpSession, 'request'", marks=pytest.mark.slow),
        "poolkit.loadtest.figures.ConnectionCounters, 'add_sample'",
        pytest.param("poolkit.loadtest.recording.Series, 'add'", marks=pytest.mark.slow),
    ],
)
def test_it_ends_the_run_whichever_greenlet_it_meets(locust, tmp_path, database, where):
    """Locust's writer of CSV files, its tables, a user, the sampling, the row of a second."""
    with (tmp_path / "visitors.py").open("a") as file:
        file.write(f"{INTERRUPTED_IN}interrupted_in({where})\n")
    run = locust("--headless", "--run-time", "10m", *FILES, url=database.monitor_url(""))
    run.wait_for("interrupted")
    assert_ended_with_its_files(run)


@contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_it_ends_the_run_while_the_database_is_silent(locust, database):
    """The end does not wait for an answer that does not come."""
    run = locust("--headless", "--run-time", "10m", *FILES, url=database.monitor_url(""))
    run.wait_for(" of 97 (other databases ")
    (watching,) = database.wait_for_backends(1, APPLICATION_NAME)
    with stopped(watching["pid"]):
        run.wait_for("the database does not answer")
        run.interrupt()
        assert_ended_with_its_files(run)


BUSY = """

import os, time
from locust import User, events

@events.test_stopping.add_listener
def say(**_):
    print(f"waiting: {os.getpid()}", flush=True)

@events.test_start.add_listener
def say_when_asking(environment, **_):
    send = environment.runner.send_message if hasattr(environment.runner, "clients") else None

    def say_and_send(name, *arguments, **named):
        send(name, *arguments, **named)
        if name == "poolkit_last_report":
            print(f"waiting: {os.getpid()}", flush=True)

    if send:
        environment.runner.send_message = say_and_send

class Busy(User):
    @task
    def rest(self):
        print("busy", flush=True)
        time.sleep(300)
"""


@pytest.mark.parametrize(
    "processes", [(), pytest.param(("--processes", "2"), marks=pytest.mark.slow)]
)
def test_a_second_one_ends_the_waiting_for_users_and_not_the_files(
    locust, tmp_path, master_port, processes
):
    """With a long --stop-timeout; in a terminal it goes to the workers, too."""
    with (tmp_path / "visitors.py").open("a") as file:
        file.write(BUSY)
    run = locust(
        *("--headless", "--users", "2", "--spawn-rate", "2", "--stop-timeout", "600"),
        *("--run-time", "10m", *FILES),
        *(*master_port, *processes),
    )
    run.wait_for("busy")
    run.wait_for("Latency, ms")
    workers = psutil.Process(run.process.pid).children()
    press_ctrl_c(run, workers)
    # Before, Locust writes its report, and each process finds out that it is to end.
    for process in (run.process, *workers):
        run.wait_for(f"waiting: {process.pid}")
    press_ctrl_c(run, workers)
    assert_ended_with_its_files(run)
    assert "interrupted again" in run.text
    assert psutil.wait_procs(workers, 60)[1] == []


def press_ctrl_c(run, workers):
    """In a terminal, where it goes to all processes at once."""
    run.interrupt()
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(signal.SIGINT)


SHAPE = """
from locust import LoadTestShape

class Level(LoadTestShape):
    def tick(self):
        return 2, 10
"""


@pytest.mark.slow
@pytest.mark.parametrize(("options", "more"), [((), ""), (("--processes", "2"), ""), ((), SHAPE)])
def test_sigterm_ends_the_run_once(locust, tmp_path, master_port, options, more):
    """CI and `timeout` end runs so, the latter with two of them: one report, one verdict."""
    with (tmp_path / "visitors.py").open("a") as file:
        file.write(more)
    run = locust(
        *("--headless", "--users", "2", *(("--run-time", "10m") if not more else ())),
        *(*FILES, "--threshold", "http.p95 < 0.0001", *options, *master_port),
        GITHUB_ACTIONS="true",
        PYTHONIOENCODING="utf-8",
    )
    run.wait_until(lambda: len(run.rows()) > 1)
    run.wait_for("All users spawned")
    run.process.terminate()
    run.process.terminate()
    assert run.wait() == 1, run.text
    assert "Traceback" not in run.text
    for once in ("\n✗ http.p95 is ", "\n::error ", "Latency in ms, to three digits"):
        assert run.text.count(once) == 1, once
    assert json.loads((run.folder / "result.json").read_text())[0]["num_requests"] > 0
    assert json.loads((run.folder / "result_connections.json").read_text())["partial"] is True
    assert (run.folder / "report.html").read_text().count("</poolkit-connections>") == 1


BLOCKED = """
from locust import events

@events.{event}.add_listener
def block(**_):
    print("blocked", flush=True)
    gevent.sleep(600)
"""


AFTER_SIGTERM_S = 2.5
"""`timeout` sends SIGTERM twice at once, so one within 2 s of another is the same."""


@pytest.mark.parametrize(
    ("event", "status"),
    [("test_stopping", 0), pytest.param("quitting", -signal.SIGINT, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGINT, 0, signal.SIGTERM),
        (signal.SIGTERM, AFTER_SIGTERM_S, signal.SIGTERM),
        pytest.param((signal.SIGTERM, 0, signal.SIGINT), marks=pytest.mark.slow),
    ],
)
def test_a_second_signal_ends_a_listener_of_the_locustfile_that_does_not_return(
    locust, tmp_path, event, status, signals
):
    """While the users are ended the results are written, afterwards they are lost."""
    with (tmp_path / "visitors.py").open("a") as file:
        file.write(f"import gevent\n{BLOCKED.format(event=event)}")
    first, pause_s, second = signals
    run = locust("--headless", "--run-time", "10m", *FILES)
    run.wait_for("All users spawned")
    run.wait_until(lambda: len(run.rows()) > 1)
    run.process.send_signal(first)
    run.wait_for("blocked")
    time.sleep(pause_s)
    run.process.send_signal(second)
    assert run.wait() == status, run.text
    if status == 0:
        assert json.loads((run.folder / "result_connections.json").read_text())["partial"] is True
