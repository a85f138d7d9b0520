"""Locust in an open loop, as a person starts it, on servers that stall, stop and end."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

STUB = Path(__file__).with_name("stub_server.py")
NEVER_S = 3600
VISITOR = """
import time
from locust import FastHttpUser, constant, task
from poolkit import loadtest

loadtest.register()

class Visitor(FastHttpUser):
    wait_time = constant(0.005)

    @task
    def visit(self):
        end = time.perf_counter() + {busy_s}
        while time.perf_counter() < end:
            pass
        self.client.get("/")
"""


@pytest.fixture
def stub():
    """Give a function that starts a server which stalls so long, every so often: its process, URL."""
    with contextlib.ExitStack() as ending:

        def start(stall_s=0.0, every_s=NEVER_S):
            command = [sys.executable, str(STUB), str(stall_s), str(every_s)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            ending.enter_context(process)
            ending.callback(process.kill)
            return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"

        yield start


@pytest.fixture
def load(locust, tmp_path):
    """Give a function that starts Locust on a URL, its results to be read with `found`."""
    names = iter("abcdefgh")

    def start(url, *arguments, busy_s=0.0):
        name = next(names)
        file = tmp_path / f"{name}.py"
        file.write_text(VISITOR.format(busy_s=busy_s))
        run = locust(
            *("-f", str(file), "--headless", "--host", url, "--json-file", f"out/{name}"),
            *arguments,
        )
        run.name = name
        return run

    return start


def found(run):
    return json.loads((run.folder / f"out/{run.name}_connections.json").read_text())


def total(run):
    return found(run)["latency_ms"][-1]


def open_loop(per_s, run_time_s, *more):
    return ("--arrival-rate", str(per_s), "--run-time", f"{run_time_s}s", "--users", "5", *more)


def check_stall(stub, load, stall_s, every_s, run_time_s):
    """Compare both loops with what can be computed by hand.

    Arrivals come at one rate, so a share of stall/every of them falls into a stall, and these are
    delayed by what is left of it: evenly between 0 and the stall. One per cent of all arrivals is
    delayed by more than the p99, which is 1 % / (stall/every) of the delayed ones, so
    p99 = stall x (1 - 0.01 x every / stall) = stall - 0.01 x every: 1.9 s for 2 s every 10 s,
    0.38 s for 0.4 s every 2 s. In a closed loop two users meet each stall with a request each, of
    several hundred in between: less than one per cent.
    """
    _, one = stub(stall_s, every_s)
    _, other = stub(stall_s, every_s)
    opened = load(one, *open_loop(50, run_time_s, "--stop-timeout", "5"))
    closed = load(other, "--users", "2", "--run-time", f"{run_time_s}s", "--stop-timeout", "5")
    assert opened.wait(run_time_s + 30) == 0, opened.said
    assert closed.wait(30) == 0, closed.said
    expected_ms = (stall_s - 0.01 * every_s) * 1000
    # For the documentation, which has these figures; pytest's -s shows them.
    p99 = {
        "by hand": expected_ms,
        "open loop": total(opened)["p99"],
        "closed": total(closed)["p99"],
    }
    print(f"p99 in ms: {p99}; longest in the closed loop: {total(closed)['max']} ms")  # noqa: T201
    assert total(opened)["p99"] == pytest.approx(expected_ms, rel=0.1)
    assert total(closed)["p99"] < expected_ms / 4
    # It was there, and one request a user met it.
    assert total(closed)["max"] > stall_s * 900
    assert (found(opened)["load"]["loop"], found(closed)["load"]["loop"]) == ("open", "closed")


def test_an_open_loop_shows_a_stall_that_a_closed_one_hides(stub, load):
    """A server that stands still for 0.4 s every 2 s: the p99 of both loops, by hand and measured."""
    check_stall(stub, load, stall_s=0.4, every_s=2.0, run_time_s=8)


@pytest.mark.slow
def test_an_open_loop_shows_a_long_stall_that_a_closed_one_hides(stub, load):
    """The same with 2 s every 10 s."""
    check_stall(stub, load, stall_s=2.0, every_s=10.0, run_time_s=30)


def check_counts(run):
    """Every arrival is finished, unanswered or unsent, and what is finished was a request."""
    counts = found(run)["load"]
    requests = total(run)["requests"]
    assert counts["arrivals"] == requests + counts["unanswered"] + counts["unsent"]
    return counts


@pytest.mark.slow
def test_no_arrival_is_dropped_when_the_server_stands_still(stub, load):
    """Those that it never answered and those for which no user was left are counted."""
    server, url = stub()
    run = load(url, *open_loop(50, 4, "--max-users", "20"))
    run.wait_for("All users spawned")
    time.sleep(1.5)  # of the run
    os.kill(server.pid, signal.SIGSTOP)
    assert run.wait() == 0, run.said
    os.kill(server.pid, signal.SIGCONT)
    counts = check_counts(run)
    assert counts["unanswered"] == counts["users_max"] == 20
    assert counts["unsent"] > 20
    assert counts["arrivals"] == pytest.approx((4 - 0.5) * 50, abs=15)
    assert "all 20 users (--max-users) were waiting for answers" in counts["saturated_by"]
    assert run.said.count("WARNING/poolkit.loadtest: saturated: class Visitor") == 1
    assert "SATURATED: class Visitor began" in run.said


def test_no_arrival_is_dropped_when_the_server_ends(stub, load):
    """Whom nobody answers any more has failed, at the moment at which it was due."""
    server, url = stub()
    run = load(url, *open_loop(50, 4, "--exit-code-on-error", "0"))
    run.wait_for("All users spawned")
    time.sleep(1.5)  # of the run
    server.kill()
    assert run.wait() == 0, run.said
    counts = check_counts(run)
    assert total(run)["failures"] > 40
    assert counts["unanswered"] + counts["unsent"] <= 5
    assert counts["saturated_by"] == ""


@pytest.mark.slow
def test_a_task_that_uses_up_the_core_is_named_as_such(stub, load):
    """No number of users would help: it is this process that has no time."""
    _, url = stub()
    run = load(url, *open_loop(100, 3), busy_s=0.02)
    assert run.wait() == 0, run.said
    counts = check_counts(run)
    assert "class Visitor" in counts["saturated_by"]
    assert "this process is busy" in counts["saturated_by"]
    assert counts["users_max"] < 100


@pytest.mark.slow
def test_users_are_made_as_they_are_needed(stub, load):
    """One user is ready; a stall of the server is met with as many as it takes, and no more."""
    _, url = stub(0.5, 2.0)
    run = load(url, *open_loop(50, 4, "--users", "1", "--stop-timeout", "3"))
    assert run.wait() == 0, run.said
    counts = check_counts(run)
    assert counts["unanswered"] == counts["unsent"] == 0
    assert 20 <= counts["users_max"] <= 60


def moments(run):
    """When requests were due, from the rows that `poolkit compare` has written."""
    with (run.folder / "requests.csv").open() as file:
        return sorted(float(row["due"]) for row in csv.DictReader(file))


def test_arrivals_keep_one_beat(stub, locust, tmp_path):
    """Each is due 1/rate seconds after the one before it, from the first to the last."""
    _, url = stub(0.2, 1.0)
    (tmp_path / "host").write_text(url)
    (tmp_path / "visitor.py").write_text(VISITOR.format(busy_s=0))
    plugin = Path(sys.modules["poolkit"].__file__).parent / "compare/locust_plugin.py"
    run = locust(
        *("-f", f"{plugin},{tmp_path / 'visitor.py'}", "--headless", "--run-time", "4s"),
        POOLKIT_LOAD_REQUESTS="requests.csv",
        POOLKIT_LOAD_ARRIVAL_RATE="40",
        POOLKIT_LOAD_HOST="host",
    )
    assert run.wait() == 0, run.said
    due = moments(run)
    assert len(due) >= 120
    # Unix time is set now and then, also while this test runs.
    steps = [moment - due[0] - number / 40 for number, moment in enumerate(due)]
    assert max(map(abs, steps)) < 0.02


FAMILY = """
from locust import FastHttpUser, SequentialTaskSet, constant, task
from poolkit import loadtest

loadtest.register()

class Parent(FastHttpUser):
    weight = 3

    def on_start(self):
        self.client.get("/start")

    @task
    def visit(self):
        self.client.get("/parent")

class Child(Parent):
    weight = 1

    class Steps(SequentialTaskSet):
        wait_time = constant(60)

        @task
        def one(self):
            self.client.get("/one")

        @task
        def two(self):
            self.client.get("/two")

    tasks = {Parent.visit: 0, Steps: 1}

    def on_start(self):
        super().on_start()
"""


def test_classes_share_the_rate_and_start_once(stub, locust, tmp_path):
    """By weight; a class whose parent is another's, and whose tasks are nested, waits no more."""
    _, url = stub()
    (tmp_path / "family.py").write_text(FAMILY)
    run = locust(
        *("-f", str(tmp_path / "family.py"), "--headless", "--host", url, "--json-file", "out/a"),
        *open_loop(40, 4, "--users", "4"),
    )
    run.name = "a"
    assert run.wait() == 0, run.said
    assert "Traceback" not in run.said
    requests = {row["name"]: row["requests"] for row in found(run)["latency_ms"]}
    counts = found(run)["load"]
    assert requests["/start"] == counts["users_max"]
    assert requests["Aggregated"] - requests["/start"] == counts["arrivals"]
    assert requests["/one"] + requests["/two"] >= 25


@pytest.mark.parametrize("ending", ["SIGSTOP", "SIGKILL"])
def test_the_rows_of_a_comparison_have_every_arrival(stub, locust, tmp_path, ending):
    """What was never sent, or never answered, is a row that says so."""
    server, url = stub()
    (tmp_path / "host").write_text(url)
    (tmp_path / "visitor.py").write_text(VISITOR.format(busy_s=0))
    plugin = Path(sys.modules["poolkit"].__file__).parent / "compare/locust_plugin.py"
    run = locust(
        *("-f", f"{plugin},{tmp_path / 'visitor.py'}", "--headless", "--run-time", "3s"),
        POOLKIT_LOAD_REQUESTS="requests.csv",
        POOLKIT_LOAD_ARRIVAL_RATE="40",
        POOLKIT_LOAD_ARRIVALS="poisson",
        POOLKIT_LOAD_MAX_USERS="10",
        POOLKIT_LOAD_HOST="host",
    )
    run.wait_until(lambda: (tmp_path / "requests.csv").exists() and len(moments(run)) > 10)
    os.kill(server.pid, getattr(signal, ending))
    run.wait()
    os.kill(server.pid, signal.SIGKILL)
    with (tmp_path / "requests.csv").open() as file:
        errors = [row["error"] for row in csv.DictReader(file)]
    assert len(errors) == pytest.approx(2.5 * 40, abs=45), "Poisson: four standard deviations"
    if ending == "SIGSTOP":
        assert errors.count("unanswered") == 10
        assert errors.count("unsent") > 10
    else:
        assert errors.count("ConnectionRefusedError") > 10


def ports(free_port):
    port = str(free_port())
    return ("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port)


@pytest.mark.slow
def test_processes_share_the_rate(stub, load, free_port):
    """Two workers together begin as many tasks as one would, and the counts are of both."""
    _, url = stub()
    run = load(url, *open_loop(80, 3, "--processes", "2"), *ports(free_port))
    assert run.wait() == 0, run.said
    counts = check_counts(run)
    assert counts["arrivals"] == pytest.approx(2.3 * 80, rel=0.25)
    assert counts["saturated_by"] == ""


@pytest.mark.slow
def test_the_rate_is_dealt_again_when_a_worker_dies(stub, load, locust, free_port):
    """One line says so, what it took along is counted, and the one left has the whole rate."""
    _, url = stub()
    port = str(free_port())
    master = load(
        url,
        *open_loop(40, 60, "--master", "--master-bind-host", "127.0.0.1", "--expect-workers", "2"),
        *("--master-bind-port", port, "--csv", "out/run", "--stop-timeout", "2"),
    )
    file = str(master.folder / f"{master.name}.py")
    at = ("--master-host", "127.0.0.1", "--master-port", port)
    _, other = (locust("--worker", *at, "-f", file) for _ in range(2))
    master.wait_for("All users spawned")
    time.sleep(3.5)  # of the run: until both have reported once
    other.process.kill()
    master.wait_for("is gone, and the rate of 40/s is dealt again, to 1;", timeout_s=15)
    assert master.said.count("is dealt again") == 1
    # A moment until it holds, two reports until the rate shows it.
    master.wait_until(lambda: rates_per_s(master)[-1] > 32, timeout_s=20)
    began = time.monotonic()
    master.interrupt()
    assert master.wait() == 0, master.said
    assert time.monotonic() - began < 15
    counts = check_counts(master)
    assert counts["unanswered"] >= 40
    assert "Traceback" not in master.said


def rates_per_s(run):
    with (run.folder / "out/run_connections.csv").open() as file:
        return [float(row["Requests/s"]) for row in csv.DictReader(file) if row["Requests/s"]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--arrival-rate", "0"), "--arrival-rate is 0; wanted arrivals per second"),
        (("--arrival-rate", "nan"), "--arrival-rate is nan; wanted arrivals per second"),
        (("--arrival-rate=-1",), "--arrival-rate is -1; wanted arrivals per second"),
        (("--arrival-rate", "1e9", "--processes", "2"), "at most 100,000"),
        (("--arrival-rate", "5", "--arrivals", "uniform"), "wanted one of constant, poisson"),
        (("--arrivals", "poisson"), "--arrivals is for an open loop; say --arrival-rate too"),
        (("--arrival-rate", "5", "--max-users", "0"), "--max-users is 0; wanted 1 or more"),
        (("--arrival-rate", "5", "--max-users", "2", "--users", "3"), "more than --max-users 2"),
    ],
)
def test_options_that_cannot_be_are_one_line_and_status_2(locust, options, said):
    """Before anything starts, and whatever the number of processes."""
    run = locust("--headless", *options)
    assert run.wait() == 2, run.said
    assert said in run.said
    assert len(run.said.splitlines()) == 1


def test_a_shape_beside_an_arrival_rate_is_refused(locust, tmp_path, free_port):
    """A shape says how many users wait; no process of Locust is left behind."""
    ramp = Path(__file__).parents[2] / "loadtests/ramp.py"
    run = locust(
        *("-f", f"{tmp_path / 'visitors.py'},{ramp}", "--headless", "--processes", "2"),
        *("--arrival-rate", "5", *ports(free_port)),
    )
    run.wait_for("--arrival-rate and the shape Ramp cannot be used together")
    children = psutil.Process(run.process.pid).children()
    assert run.wait() == 2, run.said
    assert not psutil.wait_procs(children, 5)[1]
    assert "Traceback" not in run.said


def test_ctrl_c_ends_an_open_loop_at_once_and_leaves_its_counts(stub, load):
    """Also while every user waits for a server that stands still."""
    server, url = stub()
    run = load(url, *open_loop(50, 60))
    run.wait_for("All users spawned")
    time.sleep(1.5)  # of the run
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(0.5)  # of the run
    began = time.monotonic()
    run.interrupt()
    run.wait()
    assert time.monotonic() - began < 6
    os.kill(server.pid, signal.SIGCONT)
    assert found(run)["partial"] is True
    assert check_counts(run)["unanswered"] > 10
    assert "Traceback" not in run.said


TASKS = """
import time
from locust import constant, task
from poolkit import loadtest
from poolkit.compare.locust_task_user import TaskUser

loadtest.register()

class Sender(TaskUser):
    wait_time = constant(1)
    committed = '''
        SELECT key FROM unnest(CAST(:keys AS text[])) AS key
        WHERE CAST(key AS float) < extract(epoch FROM clock_timestamp())
    '''

    @task
    def send(self):
        self.submit("task", key=str(time.time() + 0.3), send=lambda: None)
"""


@pytest.mark.slow
def test_many_tasks_of_a_queue_are_in_flight_at_once(locust, database, tmp_path):
    """A sender of tasks has an open loop too, though each waits for its committed result."""
    (tmp_path / "sender.py").write_text(TASKS)
    run = locust(
        *("-f", str(tmp_path / "sender.py"), "--headless", "--json-file", "out/a"),
        *open_loop(40, 4, "--stop-timeout", "3"),
        url=database.monitor_url(""),
    )
    run.name = "a"
    assert run.wait() == 0, run.said
    counts = check_counts(run)
    assert counts["unanswered"] == counts["unsent"] == 0
    assert counts["users_max"] >= 12
    assert 300 <= total(run)["p50"] < 400
