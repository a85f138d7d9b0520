"""User classes of every kind under an arrival rate."""

import json

import pytest

pytestmark = pytest.mark.process

CLASSES = """
import json
from collections import Counter
from pathlib import Path

import gevent
from locust import FastHttpUser, SequentialTaskSet, TaskSet, constant, events, tag, task

from poolkit import loadtest

loadtest.register()
made, requests = Counter(), Counter()

@events.quitting.add_listener
def write(**_):
    Path("found.json").write_text(json.dumps({"made": made, "requests": requests}))

@events.request.add_listener
def count(name, **_):
    requests[name] += 1

class Counted(FastHttpUser):
    abstract = True

    def __init__(self, *arguments):
        super().__init__(*arguments)
        made[type(self).__name__] += 1

class Inner(TaskSet):
    wait_time = constant(0)

    @task
    def inner(self):
        self.client.get("/", name="nested")

class Outer(SequentialTaskSet):
    tasks = [Inner]

    def wait(self):
        pass

class Nested(Counted):
    tasks = [Outer]

    def on_start(self):
        self.wait_time = constant(0)

class Heavy(Counted):
    weight = 3

    @tag("read")
    @task
    def read(self):
        self.client.get("/", name="heavy")

class Admin(Counted):
    weight = 0
    fixed_count = 1
    wait_time = constant(0.2)

    @task
    def look(self):
        self.client.get("/", name="admin")

class Watching(Counted):
    fixed_count = 1

    def run(self):
        while True:
            self.client.get("/", name="watching")
            gevent.sleep(0.2)

class Prepared(Counted):
    def run(self):
        self.ready = True
        super().run()

    @task
    def prepared(self):
        assert self.ready
        self.client.get("/", name="prepared")

class Never(Counted):
    weight = 0

    @task
    def never(self):
        self.client.get("/", name="never")
"""
OWN_RUN = """
class Running(Counted):
    def run(self):
        self.client.get("/", name="running")
"""
PYTEST = """
from poolkit import loadtest

loadtest.register()

def test_first(session):
    session.get("/", name="first")

def test_second(fastsession):
    fastsession.get("/", name="second")
    fastsession.get("/", name="third")
"""


def under_a_rate(locust, folder, code, *arguments):
    """Start the classes under 20 arrivals a second.

    A busy machine may leave an arrival at the end that was never sent, which is status 1 otherwise.
    """
    (folder / "classes.py").write_text(code)
    return locust(
        *("-f", "classes.py", "--headless", "--users", "8", "--arrival-rate", "20"),
        *("--json-file", "result", "--csv", "run", "--exit-code-on-error", "0", *arguments),
    )


def begun(run):
    """Return the number of arrivals that ended as a finished task."""
    load = run.document()["load"]
    return load["arrivals"] - load["unsent"] - load["unanswered"]


def test_each_class_has_its_share_its_own_count_or_no_user(locust, tmp_path):
    """Weights share the rate, `fixed_count` keeps its users and wait times, weight 0 has none."""
    run = under_a_rate(locust, tmp_path, CLASSES, "--run-time", "10m")
    run.wait_for("Admin, Watching keep their own wait times")
    wanted = {"nested", "heavy", "admin", "watching", "prepared"}
    run.wait_until(lambda: {row["Name"] for row in run.rows("run_stats.csv")} >= wanted)
    run.wait_for_seconds(3)
    assert run.stop() == 0, run.text
    found = json.loads((tmp_path / "found.json").read_text())
    made, requests = found["made"], found["requests"]
    assert (made["Admin"], made["Watching"], made.get("Never")) == (1, 1, None)
    # The weights are 1, 3 and 1.
    bound = requests["nested"] + requests["heavy"] + requests["prepared"]
    assert abs(bound - begun(run)) <= 2
    assert 0.5 < requests["heavy"] / bound < 0.7
    assert "Traceback" not in run.text


def test_a_class_without_a_task_for_the_tags_has_no_share(locust, tmp_path):
    """Its users wait; in a closed loop each would fail again and again."""
    classes = ("Heavy", "Prepared")
    run = under_a_rate(locust, tmp_path, CLASSES, "--tags", "read", "--run-time", "4", *classes)
    assert run.wait() == 0, run.text
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["requests"] == {"heavy": begun(run)}
    assert begun(run) > 5


@pytest.mark.parametrize(
    ("arguments", "more", "refusal"),
    [
        ((), OWN_RUN, "--arrival-rate cannot schedule Running: a run() of its own"),
        (("Admin", "Never"), "", "a fixed_count keeps its own number of users (Admin)"),
        (("Heavy", "--tags", "none"), "", "no task with these tags (Heavy)"),
    ],
)
def test_a_rate_without_a_class_for_it_is_refused(locust, tmp_path, arguments, more, refusal):
    """At once, or at the start of the test if the tags are the reason; with exit status 2."""
    run = under_a_rate(locust, tmp_path, CLASSES + more, "--run-time", "10m", *arguments)
    assert run.wait() == 2, run.text
    assert refusal in run.text
    assert "Traceback" not in run.text


def test_an_arrival_is_a_test_function_of_a_pytest_style_file(locust, tmp_path):
    """Each function is a user class of its own."""
    # Users come to the end of their functions, however many have begun one.
    words = ("--run-time", "4", "--stop-timeout", "60")
    run = under_a_rate(locust, tmp_path, PYTEST, *words)
    assert run.wait() == 0, run.text
    counts = {row["name"]: row["requests"] for row in run.document()["latency_ms"]}
    assert abs(counts["first"] + counts["second"] - begun(run)) <= 2
    assert abs(counts["first"] - counts["second"]) <= 5
    assert abs(counts["third"] - counts["second"]) <= 2
