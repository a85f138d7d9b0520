"""The load shapes: with any locustfile, in the time and with the users that a person says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]

# In a process of its own: importing Locust replaces half of the standard library.
TICKS = """
import json, sys, time
from types import SimpleNamespace
from locust.util.load_locustfile import load_locustfile

file, users, run_time, *moments = sys.argv[1:]
(shape,) = load_locustfile(file)[1]
options = SimpleNamespace(
    num_users=int(users) if users else None, run_time=int(run_time) if run_time else None
)
shape.runner = SimpleNamespace(environment=SimpleNamespace(parsed_options=options))
ticks = []
for moment in map(float, moments):
    passed = moment + 1
    while passed > moment + 0.5:  # the machine stood still in between
        shape.start_time = time.perf_counter() - moment
        tick = shape.tick()
        passed = time.perf_counter() - shape.start_time
    ticks.append(tick)
print(json.dumps(ticks))
"""


@pytest.mark.parametrize(
    ("shape", "users", "run_time", "expected"),
    [
        ("spike", 50, 100, {1: 5, 39: 5, 41: 50, 59: 50, 61: 5, 99: 5, 101: None}),
        ("spike", None, None, {1: 10, 150: 100, 299: 10, 301: None}),
        ("ramp", 20, 100, {1: 2, 11: 4, 55: 12, 99: 20, 101: None}),
        ("ramp", 3, 100, {1: 1, 99: 3, 101: None}),
        ("soak", 20, 100, {1: 20, 94: 20, 96: 1, 101: None}),
        ("soak", None, None, {1: 20, 27_000: 20, 28_801: None}),
    ],
)
def test_a_shape_has_so_many_users_at_a_moment(shape, users, run_time, expected):
    """By --users and --run-time, or by what its docstring says where they are not given."""
    command = [sys.executable, "-c", TICKS, str(ROOT / f"loadtests/{shape}.py")]
    words = [str(users or ""), str(run_time or ""), *map(str, expected)]
    answer = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    ticks = json.loads(answer.stdout)
    assert [tick and tick[0] for tick in ticks] == list(expected.values())
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
    assert run.wait() == 0, run.said
    # Without --users they would be 10, then 100; a row a second may miss one of the two.
    assert {2, 20} & set(users_of(run))
    assert max(users_of(run)) <= 20
    assert "ignored" not in run.said
    assert partial(run) is False


def test_a_shape_that_was_interrupted_is_partial(locust):
    """Its own end was still to come."""
    run = spiking(locust, "10m")
    run.wait_until(lambda: len(users_of(run)) >= 2)
    run.stop()
    assert partial(run) is True
