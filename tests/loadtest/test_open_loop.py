"""Locust in an open loop, as a person starts it, on servers that stall, stop and end."""

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from loadtest.conftest import PATIENT
from processes import stopped

pytestmark = pytest.mark.process

# In files beside it, it says how many of its users wait for an answer now and waited at most, and every
# 20 ms how long that was: a busy machine lets it stand still.
VISITOR = """
import time
from pathlib import Path

import gevent
from locust import FastHttpUser, constant, events, task
from poolkit import loadtest

loadtest.register()

waiting = most = 0

def note(change):
    global waiting, most
    waiting += change
    most = max(most, waiting)
    Path(__file__).with_suffix(".waiting").write_text(f"{{waiting}} {{most}}\\n")

class Visitor(FastHttpUser):
    wait_time = constant(0.005)

    @task
    def visit(self):
        end = time.perf_counter() + {busy_s}
        while time.perf_counter() < end:
            pass
        note(1)
        try:
            self.client.get("/")
        finally:
            note(-1)

def beat():
    with Path(__file__).with_suffix(".beats").open("w", buffering=1) as file:
        while True:
            began = time.monotonic()
            gevent.sleep(0.02)
            file.write(str(time.monotonic() - began) + "\\n")

events.init.add_listener(lambda **_: gevent.spawn(beat))
"""
BEAT_S = 0.02
HICCUP_S = 0.03


@pytest.fixture
def load(locust, tmp_path):
    """Give a function that starts Locust on a URL, its results to be read with `found`."""
    names = iter("abcdefgh")

    def start(url, *arguments, busy_s=0.0, more=""):
        name = next(names)
        file = tmp_path / f"{name}.py"
        file.write_text(VISITOR.format(busy_s=busy_s) + more)
        run = locust(
            *("-f", str(file), "--headless", "--host", url, "--json-file", f"out/{name}"),
            *arguments,
        )
        run.name = name
        return run

    return start


@pytest.fixture
def compared(locust, tmp_path):
    """Give a function that starts Locust on a URL with the plugin of `poolkit compare`."""

    def start(url, **variables):
        (tmp_path / "host").write_text(url)
        (tmp_path / "visitor.py").write_text(VISITOR.format(busy_s=0))
        plugin = Path(sys.modules["poolkit"].__file__).parent / "loadtest/compare_plugin.py"
        run = locust(
            *("-f", f"{plugin},{tmp_path / 'visitor.py'}", "--headless", "--run-time", "10m"),
            POOLKIT_LOAD_REQUESTS="requests.csv",
            POOLKIT_LOAD_ARRIVAL_RATE="40",
            POOLKIT_LOAD_HOST="host",
            **variables,
        )
        run.name = "visitor"
        return run

    return start


def found(run):
    return json.loads((run.folder / f"out/{run.name}_connections.json").read_text())


def total(run):
    return found(run)["latency_ms"][-1]


# A busy machine may leave an arrival at the end that was never sent, which is status 1 otherwise.
LEFT_IS_FINE = ("--exit-code-on-error", "0")


def open_loop(per_s, *more, run_time="10m"):
    return ("--arrival-rate", str(per_s), "--run-time", run_time, "--users", "5", *more)


def waiting(run, *, most=False):
    """Return how many users wait for an answer now, or at most; the file may be about to be written."""
    file = run.folder / f"{run.name}.waiting"
    text = file.read_text() if file.exists() else ""
    return int(text.split()[most]) if text.endswith("\n") else 0


def beats(run):
    file = run.folder / f"{run.name}.beats"
    text = file.read_text() if file.exists() else ""
    return [float(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def stood_still_s(run):
    """Return for how long the process could not do what was due, all in all."""
    return sum(beat - BEAT_S for beat in beats(run) if beat > BEAT_S + HICCUP_S)


def wait_while_it_runs(run, seconds):
    """Wait until it has run for so long; it may stand still as well."""
    run.wait_for("All users spawned")
    before = len(beats(run))
    run.wait_until(lambda: (len(beats(run)) - before) * BEAT_S > seconds)


def check_stall(stub, load, stall_s, every_s, run_time_s):
    """Compare both loops with what can be computed by hand.

    Arrivals come at one rate, so a share of stall/every of them falls into a stall, and these are
    delayed by what is left of it: evenly between 0 and the stall. One per cent of all arrivals is
    delayed by more than the p99, which is 1 % / (stall/every) of the delayed ones, so
    p99 = stall x (1 - 0.01 x every / stall) = stall - 0.01 x every: 1.9 s for 2 s every 10 s,
    0.96 s for 1 s every 3.75 s. In a closed loop two users meet each stall with a request each, of
    several hundred in between: less than one per cent; on a machine that does everything ten times as
    slowly, or stands still itself now and then, less than ten.
    """
    stalling, one = stub(stall_s, every_s)
    _, other = stub(stall_s, every_s)
    ending = ("--stop-timeout", "60", *LEFT_IS_FINE)
    opened = load(one, *open_loop(50, *ending, run_time=f"{run_time_s}s"))
    closed = load(other, "--users", "2", "--run-time", f"{run_time_s}s", *ending)
    assert opened.wait() == 0, opened.text
    assert closed.wait() == 0, closed.text
    by_hand = {p: (stall_s - (1 - p / 100) * every_s) * 1000 for p in (90, 99)}
    # For the documentation, which has these figures; pytest's -s shows them.
    p99 = {
        "by hand": by_hand[99],
        "open loop": total(opened)["p99"],
        "closed": total(closed)["p99"],
    }
    print(f"p99 in ms: {p99}; longest in the closed loop: {total(closed)['max']} ms")  # noqa: T201
    stalling.kill()
    more_ms = (stood_still_s(opened) + sum(map(float, stalling.stdout))) * 1000
    for p, ms in by_hand.items():
        assert 0.9 * ms < total(opened)[f"p{p}"] < 1.1 * ms + more_ms
    assert total(closed)["p90"] < by_hand[90] / 2
    # It was there, and one request a user met it.
    assert total(closed)["max"] > stall_s * 500
    assert (found(opened)["load"]["loop"], found(closed)["load"]["loop"]) == ("open", "closed")


@pytest.mark.alone
def test_an_open_loop_shows_a_stall_that_a_closed_one_hides(stub, load):
    """A server that stands still for 1 s every 3.75 s: both loops, by hand and measured."""
    check_stall(stub, load, stall_s=1.0, every_s=3.75, run_time_s=8)


@pytest.mark.slow
def test_an_open_loop_shows_a_long_stall_that_a_closed_one_hides(stub, load):
    """The same with 2 s every 10 s."""
    check_stall(stub, load, stall_s=2.0, every_s=10.0, run_time_s=30)


def check_counts(run):
    """Every arrival is finished, unanswered or unsent, and what is finished was a request."""
    counts = found(run)["load"]
    # The sum of all rows has the requests without an answer too.
    requests = sum(row["requests"] for row in found(run)["latency_ms"] if row["method"])
    assert counts["arrivals"] == requests + counts["unanswered"] + counts["unsent"]
    return counts


def check_none_was_left(counts):
    """What was due was begun, but for what the load generator itself was late with at the end."""
    assert counts["unanswered"] == 0
    assert counts["unsent"] <= counts["late"] + 3


@pytest.mark.slow
def test_no_arrival_is_dropped_when_the_server_stands_still(stub, load):
    """Those that it never answered and those for which no user was left are counted."""
    server, url = stub()
    run = load(url, *open_loop(50, "--max-users", "20"))
    wait_while_it_runs(run, 1)
    with stopped(server.pid):
        run.wait_until(lambda: waiting(run) == 20)
        moment = time.time()
        # Longer than arrivals waited because the machine was busy, also meanwhile: that would be
        # named instead.
        before = len(beats(run))
        run.wait_until(lambda: (len(beats(run)) - before) * BEAT_S > 1 + stood_still_s(run))
        assert run.stop() == 1, "an arrival that was never sent has failed"
        ended = time.time()
    counts = check_counts(run)
    assert counts["unanswered"] == counts["users_max"] == 20
    assert counts["unsent"] > 20
    began = counts["began"]
    assert (moment - began) * 50 - 2 < counts["arrivals"] < (ended - began) * 50 + 2
    assert "all 20 users (--max-users) were waiting for answers" in counts["saturated_by"]
    assert "the target is too slow for this rate" in counts["saturated_by"]
    assert run.text.count("WARNING/poolkit.loadtest: saturated: class Visitor") == 1
    assert "SATURATED: class Visitor began" in run.text


def stats(run, column):
    """Return a figure of all requests together, as Locust has written it last."""
    rows = run.rows("out/run_stats.csv")
    return next((int(row[column]) for row in rows if row["Name"] == "Aggregated"), 0)


@pytest.mark.slow
def test_no_arrival_is_dropped_when_the_server_ends(stub, load):
    """A request to a server that has ended fails, and counts from its scheduled moment."""
    server, url = stub()
    ending = (*LEFT_IS_FINE, "--stop-timeout", "60", "--csv", "out/run")
    run = load(url, *open_loop(50, *ending))
    wait_while_it_runs(run, 1)
    server.kill()
    run.wait_until(lambda: stats(run, "Failure Count") > 40)
    assert run.stop() == 0, run.text
    counts = check_counts(run)
    check_none_was_left(counts)
    assert "were waiting for answers" not in counts["saturated_by"]


@pytest.mark.slow
def test_a_task_that_uses_up_the_core_is_named_as_such(stub, load):
    """No number of users would help: it is this process that has no time."""
    _, url = stub()
    run = load(url, *open_loop(100), busy_s=0.02)
    run.wait_for("saturated: class Visitor")
    seen = len(beats(run))
    run.wait_until(lambda: len(beats(run)) > seen + 10)
    run.stop()
    counts = check_counts(run)
    assert "class Visitor" in counts["saturated_by"]
    assert "Locust's own process is busy" in counts["saturated_by"]
    # Half of the arrivals are overdue, and would each have a user, if users were made for them.
    assert counts["users_max"] < max(40, counts["arrivals"] / 4)


@pytest.mark.slow
def test_users_are_made_as_they_are_needed(stub, load):
    """One user is ready; a stall of the server is met with as many as it takes, and no more."""
    _, url = stub(0.5, 2.0)
    run = load(url, *open_loop(50, "--users", "1", "--stop-timeout", "60"))
    # A load generator that stands still itself during a stall makes fewer users for it.
    run.wait_until(lambda: waiting(run, most=True) >= 20)
    run.stop()
    counts = check_counts(run)
    check_none_was_left(counts)
    # Those that are due in the time of the longest answer, and a tenth more.
    assert counts["users_max"] <= 50 * total(run)["max"] / 1000 * 1.2 + 10


def moments(run):
    """When requests were due, from the rows that `poolkit compare` has written."""
    return sorted(float(row["due"]) for row in run.rows("requests.csv"))


def check_beat(due, per_s):
    """Each is due 1/rate seconds after the one before it, from the first to the last."""
    # Unix time is set now and then, also while this test runs.
    steps = [moment - due[0] - number / per_s for number, moment in enumerate(due)]
    assert max(map(abs, steps)) < 0.02


@pytest.mark.slow
def test_arrivals_keep_one_beat(stub, compared):
    """Whatever the server does, and however late they begin."""
    _, url = stub(0.2, 1.0)
    run = compared(url)
    run.wait_until(lambda: len(moments(run)) >= 120)
    assert run.stop() == 0, run.text
    check_beat(moments(run), 40)


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
        self.client.get(f"/{type(self).__name__}")

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

    tasks = [Steps]

    def on_start(self):
        super().on_start()
"""


def test_classes_share_the_rate_and_start_once(stub, locust, tmp_path):
    """By weight; a class whose parent is another's, and whose tasks are nested, waits no more."""
    _, url = stub()
    (tmp_path / "family.py").write_text(FAMILY)
    run = locust(
        *("-f", str(tmp_path / "family.py"), "--headless", "--host", url, "--json-file", "out/a"),
        *open_loop(40, "--users", "4", "--stop-timeout", "60", "--csv", "out/run", *LEFT_IS_FINE),
    )
    run.name = "a"
    run.wait_until(lambda: stats(run, "Request Count") > 100)
    assert run.stop() == 0, run.text
    assert "Traceback" not in run.text
    requests = {row["name"]: row["requests"] for row in found(run)["latency_ms"]}
    counts = found(run)["load"]
    check_none_was_left(counts)
    assert requests["/start"] == counts["users_max"]
    assert requests["Aggregated"] - requests["/start"] == counts["arrivals"] - counts["unsent"]
    share = counts["arrivals"] / 4
    # Locust has a class do its parent's tasks too: until it comes to its steps, which do not end.
    childs = requests["/one"] + requests["/two"] + requests.get("/Child", 0)
    assert share - counts["unsent"] - 1 <= childs <= share + 1
    assert abs(requests["/one"] - requests["/two"]) <= counts["users_max"]


STARTING = """
import gevent
from locust import User, task
from poolkit import loadtest

loadtest.register()

class Slow(User):
    def on_start(self):
        print("starting", flush=True)
        while self._state != "stopping":
            gevent.sleep(0.01)

    @task
    def work(self):
        print("working", flush=True)
"""


@pytest.mark.slow
def test_users_that_have_not_started_yet_end_quietly(locust, tmp_path):
    """With --stop-timeout they come to the end of their on_start, and begin nothing."""
    (tmp_path / "slow.py").write_text(STARTING)
    words = open_loop(10, "--stop-timeout", "60")
    run = locust("-f", str(tmp_path / "slow.py"), "--headless", *words)
    run.wait_for("starting")
    assert run.stop() == 1, "a run without a request measures nothing"
    assert "Traceback" not in run.text
    assert "working" not in run.text


@pytest.mark.parametrize("ending", [pytest.param("SIGSTOP", marks=pytest.mark.slow), "SIGKILL"])
def test_the_rows_of_a_comparison_have_every_arrival(stub, compared, ending):
    """What was never sent, or never answered, is a row that says so."""
    server, url = stub()
    run = compared(url, POOLKIT_LOAD_ARRIVALS="poisson", POOLKIT_LOAD_MAX_USERS="10")
    run.wait_until(lambda: len(moments(run)) > 10)
    os.kill(server.pid, getattr(signal, ending))
    if ending == "SIGSTOP":
        run.wait_until(lambda: waiting(run) == 10)
        wait_while_it_runs(run, 1)
    else:
        run.wait_until(lambda: errors(run).count("ConnectionRefusedError") > 10)
    run.stop()
    os.kill(server.pid, signal.SIGKILL)
    arrivals = json.loads((run.folder / "load.json").read_text())["arrivals"]
    assert len(errors(run)) == arrivals
    if ending == "SIGSTOP":
        assert errors(run).count("unanswered") == 10
        assert errors(run).count("unsent") > 10


def errors(run):
    return [row["error"] for row in run.rows("requests.csv")]


DUE = """
import os

due = open(f"due-{os.getpid()}", "w", buffering=1)

@events.init.add_listener
def reopen(**_):
    # After the fork of --processes.
    global due
    due = open(f"due-{os.getpid()}", "w", buffering=1)

@events.request.add_listener
def write(**_):
    due.write(str(gevent.getcurrent().poolkit_task.scheduled_at) + "\\n")
"""


@pytest.mark.slow
def test_processes_share_the_rate(stub, load, master_port):
    """Two workers together begin as many tasks as one would, and the counts are of both."""
    _, url = stub()
    ending = ("--processes", "2", "--stop-timeout", "60")
    run = load(url, *open_loop(80, *ending), *master_port, more=DUE + PATIENT)
    run.wait_until(lambda: len(dues(run)) == 2 and min(map(len, dues(run))) > 80)
    run.stop()
    check_none_was_left(check_counts(run))
    # Of what one of them did not come to at the end, the other knows nothing.
    end = min(map(max, dues(run)))
    check_beat(sorted(due for part in dues(run) for due in part if due <= end), 80)


def dues(run):
    """When the requests of each process were due."""
    texts = [file.read_text() for file in run.folder.glob("due-*")]
    whole = [text[: text.rfind("\n") + 1].split() for text in texts]
    return [list(map(float, found)) for found in whole if found]


@pytest.mark.slow
def test_the_rate_is_dealt_again_when_a_worker_dies(stub, load, locust, free_port):
    """One line says so, what it took along is counted, and the one left has the whole rate."""
    _, url = stub()
    port = str(free_port())
    master = load(
        url,
        *open_loop(40, "--master", "--master-bind-host", "127.0.0.1", "--expect-workers", "2"),
        *("--master-bind-port", port, "--csv", "out/run", "--stop-timeout", "2"),
        more=PATIENT,
    )
    file = str(master.folder / f"{master.name}.py")
    at = ("--master-host", "127.0.0.1", "--master-port", port)
    _, other = (locust("--worker", *at, "-f", file) for _ in range(2))
    master.wait_until(lambda: max(rates_per_s(master), default=0) > 0)
    other.process.kill()
    master.wait_for("is gone, and the rate of 40/s is distributed again, over 1;")
    # A moment until it holds, two reports until the rate shows it.
    master.wait_until(lambda: rates_per_s(master)[-1] > 32)
    # For a worker that does not answer Locust itself would wait for a minute.
    master.interrupt()
    master.wait(45)
    gone = Counter(re.findall(r"worker (\d) is gone", master.text))
    assert list(gone.values()) == [1]
    counts = check_counts(master)
    assert counts["unanswered"] >= 40
    assert f"worker {next(iter(gone))} was lost with" in counts["saturated_by"]
    assert "Traceback" not in master.text


def rates_per_s(run):
    rows = run.rows("out/run_connections.csv")
    return [float(row["Requests/s"]) for row in rows if row["Requests/s"]]


@pytest.mark.slow
def test_ctrl_c_ends_an_open_loop_at_once_and_leaves_its_counts(stub, load):
    """Also while every user waits for a server that stands still."""
    server, url = stub()
    run = load(url, *open_loop(50))
    wait_while_it_runs(run, 1)
    with stopped(server.pid):
        run.wait_until(lambda: waiting(run) > 10)
        run.interrupt()
        run.wait(45)  # for an answer it would wait for 60 s
    assert found(run)["partial"] is True
    assert check_counts(run)["unanswered"] > 10
    assert "Traceback" not in run.text


TASKS = """
import time
from locust import constant, task
from poolkit import loadtest
from poolkit.loadtest.task_user import TaskUser

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


@pytest.fixture
def send(locust, database, tmp_path):
    """A function that starts Locust with a sender of tasks, in an open loop."""

    def start(tasks, *words):
        file = tmp_path / "sender.py"
        file.write_text(tasks)
        words = ("--headless", "--json-file", "out/sender", "--csv", "out/run", *words)
        run = locust("-f", str(file), *words, url=database.monitor_url(""))
        run.name = "sender"
        run.wait_until(lambda: stats(run, "Request Count") > 3)
        return run

    return start


@pytest.mark.slow
def test_many_tasks_of_a_queue_are_in_flight_at_once(send):
    """A sender of tasks has an open loop too, though each waits for its committed result."""
    run = send(TASKS, *open_loop(40, "--stop-timeout", "60", *LEFT_IS_FINE))
    run.wait_until(lambda: stats(run, "Request Count") > 100)
    until = time.time()
    assert run.stop() == 0, run.text
    took_s = until - found(run)["started"]
    counts = check_counts(run)
    check_none_was_left(counts)
    assert counts["users_max"] >= 12
    assert total(run)["p50"] >= 300
    assert total(run)["requests"] > 3 * took_s / 0.3, "three times what one at a time could be"


@pytest.mark.slow
def test_a_slow_answer_about_finished_work_blocks_no_other_task(send, database):
    """All other tasks go on while the query waits, and a warning names the cause of the latency."""
    _, _, beat = VISITOR.partition("def beat():")
    imports = "import gevent\nfrom locust import events\nfrom pathlib import Path"
    run = send(f"{TASKS}\n{imports}\ndef beat():{beat}", *open_loop(40, *LEFT_IS_FINE))
    (asked,) = database.backends("loadtest:")
    with stopped(asked["pid"]):
        before = len(beats(run))
        run.wait_until(lambda: len(beats(run)) > before + 25)
    run.wait_for("WARNING/poolkit.loadtest: the database took ")
    assert run.stop() == 0, run.text


@pytest.mark.slow
def test_a_database_that_never_answers_is_named_as_the_reason(send, database):
    """A result that could not be queried is not reported as missing."""
    run = send(TASKS.replace("wait_time", "result_timeout = 2.0\n    wait_time"), *open_loop(10))
    (asked,) = database.backends("loadtest:")
    with stopped(asked["pid"]):
        (failed,) = run.wait_until(lambda: run.rows("out/run_failures.csv"))
        assert run.stop() == 1, run.text
    said = "no result within 2 s: the database does not answer whether there is one"
    assert failed["Error"] == f"TimeoutError('{said}')"


# It counts its calls, not the time: what stands still for a second skips no rate.
SHAPE = """
from poolkit.loadtest import ArrivalRateShape

class Steps(ArrivalRateShape):
    rates = iter({rates})

    def arrival_rate(self):
        return next(self.rates, None)
"""


def test_a_shape_can_return_the_rate(stub, load):
    """It is asked once a second, and its end is the end of the run."""
    _, url = stub()
    shape = SHAPE.format(rates=[20, 20, 40, 40, 0, 0])
    run = load(url, "--users", "5", "--stop-timeout", "60", *LEFT_IS_FINE, more=shape)
    assert run.wait() == 0, run.text
    assert check_counts(run)["arrivals"] > 20
    wanted = found(run)["series"]["wanted_per_s"]
    assert [rate for rate in dict.fromkeys(wanted) if rate] in ([20, 40], [40])
    assert wanted[-1] == 0
    assert found(run)["partial"] is False


def test_a_shape_that_returns_no_rate_ends_the_run(stub, load):
    """The message names the shape and the value."""
    _, url = stub()
    run = load(url, more=SHAPE.format(rates=[-3]))
    assert run.wait() != 0
    assert "Steps.arrival_rate() returned -3; wanted tasks per second" in run.text


def test_a_ramp_ends_with_its_last_stage(stub, load):
    """Without --run-time, with the arrivals of its integral, and with both rates in the series."""
    _, url = stub()
    rate = ("--arrival-rate", "5..45/2s,20/1s")
    run = load(url, "--users", "5", *rate, "--stop-timeout", "60", *LEFT_IS_FINE)
    assert run.wait() == 0, run.text
    assert check_counts(run)["arrivals"] == 70
    assert found(run)["load"]["stages"] == "5..45/2s,20/1s"
    assert found(run)["partial"] is False
    series = found(run)["series"]
    assert len(series["wanted_per_s"]) == len(series["arrivals_per_s"])
    assert series["wanted_per_s"][-1] == 20
