"""The start of an open loop: slow listeners, slow logins, late workers, and a run without load."""

import json
import re

import psutil
import pytest

pytestmark = pytest.mark.process

# It notes in files, one for each process, when a user has logged in and when requests were scheduled.
LOGIN = """
import os, time
import gevent
from locust import FastHttpUser, events, runners, task
from poolkit import loadtest

def number(name):
    return float(os.environ.get(name, 0))

@events.init.add_listener
def read_test_data(environment, **_):
    if isinstance(environment.runner, runners.WorkerRunner):
        gevent.sleep(number("INIT_S"))

loadtest.register()
runners.HEARTBEAT_LIVENESS = 8

@events.test_start.add_listener
def fill_a_table(**_):
    gevent.sleep(number("LISTENER_S"))

def note(name, moment):
    with open(f"{name}-{os.getpid()}", "a") as file:
        file.write(f"{moment}\\n")

@events.request.add_listener
def sent(start_time, **_):
    note("sent", start_time)

class Visitor(FastHttpUser):
    def on_start(self):
        note("login", time.time())
        gevent.sleep(number("LOGIN_S"))
        note("ready", time.time())

    @task
    def visit(self):
        if not number("IDLE"):
            self.client.get("/")
"""


@pytest.fixture
def load(locust, stub, tmp_path):
    """A function that starts a run with an arrival rate on a server that answers at once."""
    file = tmp_path / "login.py"
    file.write_text(LOGIN)
    _, url = stub()

    def start(*arguments, **variables):
        headless = () if "--worker" in arguments else ("--headless", "--host", url)
        given = () if "-f" in arguments else ("-f", str(file))
        return locust(*given, *headless, *arguments, **variables)

    return start


ENDED = (0, 1)
"""The exit status of Ctrl-C: 1 if a busy machine dropped an arrival at the end."""
OPEN = ("--arrival-rate", "40", "--users", "3", "--json-file", "result")


def moments(run, name):
    """Return the moments that each process has noted, by its file."""
    files = {file.name: file.read_text() for file in run.folder.glob(f"{name}-*")}
    return {
        name: [float(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        for name, text in files.items()
    }


def all_moments(run, name):
    return [moment for found in moments(run, name).values() for moment in found]


def test_arrivals_begin_when_listeners_and_logins_have_ended(load):
    """No arrival is late because of the start, and the report says how long that took."""
    # A process that stands still may see the first user only when its login has begun.
    run = load(*OPEN, "--run-time", "10m", LISTENER_S="0.7", LOGIN_S="2.5")
    run.wait_until(lambda: len(all_moments(run, "sent")) > 20)
    assert run.stop() in ENDED, run.text
    load_report = run.document()["load"]
    assert load_report["began"] > max(all_moments(run, "ready")[:3])
    assert min(all_moments(run, "sent")) >= load_report["began"]
    assert load_report["listeners_s"] > 0.6
    assert load_report["users_s"] > 0.4
    assert load_report["waited_for"] == ""
    assert re.search(r"began \d+\.\d s after the start of the test.*test_start listeners", run.text)


def test_a_login_that_never_ends_ends_the_run_with_an_error(load):
    """The wait for users is bounded, and the message names the class."""
    run = load(*OPEN, "--run-time", "10m", "--on-start-within", "0.5", LOGIN_S="3600")
    assert run.wait() == 1, run.text
    assert "3 of 3 users (Visitor) have not ended their on_start within 0.5 s" in run.text
    assert all_moments(run, "sent") == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("LISTENER_S", "the test_start listeners had run for"),
        pytest.param("LOGIN_S", "3 of 3 users were in their on_start", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_ends_before_its_first_arrival_fails_with_the_reason(load, name, reason):
    """It has measured nothing, which is no success."""
    # Time enough to see the users, if the process stands still when they start.
    run = load(*OPEN, "--run-time", "4s", **{name: "3600"})
    assert run.wait() == 1, run.text
    assert "no request was sent: the run ended before the first arrival" in run.text
    assert reason in run.document()["load"]["waited_for"]


@pytest.mark.slow
def test_tasks_without_a_request_are_no_load(load):
    """Arrivals that send nothing measure nothing."""
    run = load(*OPEN, "--run-time", "5s", IDLE="1")
    assert run.wait() == 1, run.text
    assert re.search(r"no request was answered or failed: \d+ arrivals", run.text)


def test_a_worker_with_a_slow_init_joins_the_open_loop(load, master_port):
    """Its master starts the test meanwhile; its users wait for arrivals as all others do."""
    run = load(*OPEN, "--run-time", "10m", "--processes", "2", *master_port, INIT_S="1.5")
    run.wait_until(
        lambda: [len(found) > 20 for found in moments(run, "sent").values()] == [True] * 2
    )
    assert run.stop() in ENDED, run.text
    counts = run.document()["load"]
    assert (
        counts["arrivals"]
        == len(all_moments(run, "sent")) + counts["unsent"] + counts["unanswered"]
    )


@pytest.fixture
def master(load, free_port):
    """A master that waits for one worker, and a function that starts another worker on it."""
    port = str(free_port())
    bind = ("--master-bind-host", "127.0.0.1", "--master-bind-port", port)
    master = load(*OPEN, "--run-time", "10m", "--master", *bind, "--expect-workers", "1")

    def work(*arguments, **variables):
        at = ("--master-host", "127.0.0.1", "--master-port", port)
        return load("--worker", *at, *arguments, **variables)

    return master, work


def sent_by(run, process):
    return len(moments(run, "sent").get(f"sent-{process.process.pid}", []))


@pytest.mark.slow
def test_a_worker_that_joins_or_restarts_takes_its_share(master):
    """One comes during the run, is killed, and comes again; its login delays nobody else."""
    master, work = master
    first = work()
    master.wait_until(lambda: sent_by(master, first) > 20)
    second = work(LOGIN_S="1")
    master.wait_until(lambda: sent_by(master, second) > 20)
    second.process.kill()
    master.wait_for("is gone, and the rate of 40/s is distributed again, over 1;")
    third = work(LOGIN_S="1")
    master.wait_until(lambda: sent_by(master, third) > 20)
    assert master.stop() in ENDED, master.text
    counts = json.loads((master.folder / "result_connections.json").read_text())["load"]
    assert counts["unanswered"] >= 1
    assert "Traceback" not in master.text


@pytest.mark.slow
def test_a_worker_outside_the_open_loop_ends_the_run(master, tmp_path):
    """Its locustfile has not registered, so its users would wait for their answers unnoticed."""
    master, work = master
    closed = tmp_path / "closed.py"
    closed.write_text(LOGIN.replace("loadtest.register()", ""))
    worker = work("-f", str(closed))
    assert master.wait() == 1, master.text
    assert "worker 0 runs 3 users in a closed loop beside the arrival rate" in master.text
    assert worker.wait() is not None


@pytest.mark.slow
def test_a_login_that_never_ends_on_a_worker_ends_the_run(load, master_port):
    """Its master has the reason, and the worker that sent it."""
    run = load(
        *(*OPEN, "--run-time", "10m", "--processes", "2", *master_port),
        *("--on-start-within", "1"),
        LOGIN_S="3600",
    )
    children = psutil.Process(run.process.pid).children()
    assert run.wait() == 1, run.text
    assert re.search(
        r"worker \d: \d of \d users \(Visitor\) have not ended their on_start", run.text
    )
    assert psutil.wait_procs(children, 60)[1] == []


@pytest.mark.slow
def test_a_listener_of_the_master_is_named_when_no_worker_has_begun(load, master_port):
    """It keeps the workers from starting, so that they have nothing to report."""
    run = load(*OPEN, "--run-time", "3s", "--processes", "2", *master_port, LISTENER_S="3600")
    assert run.wait() == 1, run.text
    assert "test_start listeners of the master were running" in run.text
