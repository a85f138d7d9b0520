"""The load shapes: with any locustfile, in the time and with the users that a person says."""

import json
from itertools import pairwise

import pytest
from processes import ROOT, run_python

pytestmark = pytest.mark.process

TICKS = [
    ("spike", 50, 100, {1: 5, 39: 5, 41: 50, 59: 50, 61: 5, 99: 5, 101: None}),
    ("spike", None, None, {1: 10, 150: 100, 299: 10, 301: None}),
    ("ramp", 20, 100, {1: 2, 11: 4, 55: 12, 99: 20, 101: None}),
    ("ramp", 3, 100, {1: 1, 99: 3, 101: None}),
    ("soak", 20, 100, {1: 20, 94: 20, 96: 1, 101: None}),
    ("soak", None, None, {1: 20, 27_000: 20, 28_801: None}),
]

# In a process of its own: importing Locust replaces half of the standard library.
SCRIPT = """
import json, sys, time
from types import SimpleNamespace
from locust.util.load_locustfile import load_locustfile

found = []
for name, users, run_time, moments in json.load(sys.stdin):
    (shape,) = load_locustfile(f"loadtests/{name}.py")[1]
    options = SimpleNamespace(num_users=users, run_time=run_time)
    shape.runner = SimpleNamespace(environment=SimpleNamespace(parsed_options=options))
    ticks = []
    for moment in moments:
        passed = moment + 1
        while passed > moment + 0.5:  # the machine stood still in between
            shape.start_time = time.perf_counter() - moment
            tick = shape.tick()
            passed = time.perf_counter() - shape.start_time
        ticks.append(tick)
    found.append(ticks)
print(json.dumps(found))
"""


def test_the_users_of_a_shape_at_a_moment():
    """By --users and --run-time, or by the defaults of its docstring without them."""
    cases = [[name, users, run_time, list(ticks)] for name, users, run_time, ticks in TICKS]
    done = run_python("-c", SCRIPT, typed=json.dumps(cases))
    assert done.returncode == 0, done.stderr
    for (name, *_, expected), ticks in zip(TICKS, json.loads(done.stdout), strict=True):
        assert [tick and tick[0] for tick in ticks] == list(expected.values()), name
        assert all(tick[1] > 0 for tick in ticks if tick)


def users_of(run):
    return [int(row["User Count"]) for row in run.rows() if row["User Count"]]


def spiking(locust, run_time):
    return locust(
        *("-f", f"visitors.py,{ROOT / 'loadtests/spike.py'}", "--headless"),
        *("--csv", "run", "--json-file", "result", "--users", "20", "--run-time", run_time),
    )


def partial(run):
    return json.loads((run.folder / "result_connections.json").read_text())["partial"]


@pytest.mark.slow
def test_a_shape_ends_by_itself(locust):
    """That is no partial run, and Locust takes --users and --run-time with it."""
    run = spiking(locust, "6s")
    assert run.wait() == 0, run.text
    # Without --users they would be 10, then 100; a row a second may miss one of the two.
    assert {2, 20} & set(users_of(run))
    assert max(users_of(run)) <= 20
    assert "ignored" not in run.text
    assert partial(run) is False


@pytest.mark.slow
def test_a_shape_that_was_interrupted_is_partial(locust):
    """Its own end was still to come."""
    run = spiking(locust, "10m")
    run.wait_until(lambda: len(users_of(run)) >= 2)
    run.stop()
    assert partial(run) is True


COUNTED = """
import time
from pathlib import Path
from locust import LoadTestShape, events

moments = []

class Counted(LoadTestShape):
    def tick(self):
        moments.append(time.perf_counter())
        return (len(moments), 10) if len(moments) < 3 else None

@events.quit.add_listener
def write(**_):
    Path(f"{MODE}.txt").write_text(" ".join(map(str, moments)))
"""


@pytest.mark.slow
def test_a_shape_is_asked_as_often_as_without_the_kit(locust, tmp_path):
    """Once in a second, since a `tick()` may count its calls."""
    visitors = (tmp_path / "visitors.py").read_text() + COUNTED
    plain = visitors.replace("loadtest.register()", "")
    for mode, text in (("plain", plain), ("kit", visitors)):
        (tmp_path / f"{mode}.py").write_text(text.replace("{MODE}", mode))
    runs = [locust("-f", f"{mode}.py", "--headless") for mode in ("plain", "kit")]
    assert [run.wait() for run in runs] == [0, 0], runs[-1].text
    for mode in ("plain", "kit"):
        moments = [float(one) for one in (tmp_path / f"{mode}.txt").read_text().split()]
        assert len(moments) == 3, mode
        assert all(after - before > 0.9 for before, after in pairwise(moments)), moments
