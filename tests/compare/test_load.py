"""Figures while a run is measured: from the growing file of requests, and from samples."""

from dataclasses import replace
from functools import partial

import pytest

from poolkit.activity.server import Sample
from poolkit.compare.results.run_folder import Level
from poolkit.compare.run import load
from poolkit.compare.run.load import OVER_S
from poolkit.compare.run.window_figures import WindowFigures
from poolkit.loadtest.figures import Held
from poolkit.thresholds import METRICS

HEADER = "due,started,latency_ms,service_ms,method,name,status,error\n"
ONE_USER = Level(users=1, rate_per_user=1.0)
NOW = 1_800_000_000.0
LiveFigures = partial(load.LiveFigures, clock=lambda: NOW + 0.001)


def row(started, latency_ms):
    return f"{started},{started},{latency_ms},{latency_ms},GET,/,200,\n"


def test_there_are_no_figures_without_a_file(tmp_path):
    """Before Locust has written a row, the figures are 0."""
    figures = LiveFigures(tmp_path / "requests.csv", ONE_USER)
    assert figures.update() == 0
    assert (figures.per_s, figures.p95_ms) == (0, 0)


def test_rows_are_counted_as_they_arrive_and_half_a_row_waits(tmp_path):
    """An incomplete line is read when its end is written."""
    file = tmp_path / "requests.csv"
    figures = LiveFigures(file, ONE_USER)
    first, second = row(NOW, 5), row(NOW + 0.1, 7)
    file.write_text(HEADER + first + second[:10])
    assert figures.update() == 1
    assert figures.first == NOW
    with file.open("a") as more:
        more.write(second[10:])
    assert figures.update() == 2


def test_figures_look_back_a_few_seconds(tmp_path):
    """Old rows count for the total only."""
    file = tmp_path / "requests.csv"
    old = "".join(row(NOW - 60 + i / 100, 1000) for i in range(50))
    new = "".join(row(NOW - 0.5, latency) for latency in range(1, 101))
    file.write_text(HEADER + old + new)
    figures = LiveFigures(file, ONE_USER)
    assert figures.update() == 150
    assert figures.per_s == 100 / OVER_S
    assert figures.p95_ms == 96


FOUR_USERS = Level(users=4, rate_per_user=2.0)
CONSTANT = Level(users=10, arrival_rate=40.0, arrivals="constant", max_users=10)
RANDOM = replace(CONSTANT, arrivals="poisson")
EVERY_125_MS = [row(NOW - 2 + i / 8, 5) for i in range(16)]
THREE_USERS = [text for i, text in enumerate(EVERY_125_MS) if i % 4]
LATE = [f"{NOW - 2 + i / 8},{NOW - 1.8 + i / 8},205,5,GET,/,200,\n" for i in range(16)]
EVERY_25_MS = [row(NOW - 2 + i / 40, 5) for i in range(80)]
THREE_OF_FOUR = [text for i, text in enumerate(EVERY_25_MS) if i % 4]
THROTTLED = [text.replace(",200,", ",429,429") for text in EVERY_25_MS]


@pytest.mark.parametrize(
    ("level", "rows", "is_steady"),
    [
        pytest.param(FOUR_USERS, EVERY_125_MS, True, id="every user is answered in time"),
        # A user that waits for a cold start sends nothing.
        pytest.param(FOUR_USERS, THREE_USERS, False, id="one user waits"),
        pytest.param(FOUR_USERS, [], False, id="nothing is sent"),
        pytest.param(FOUR_USERS, LATE, False, id="each request waited for the one before it"),
        pytest.param(CONSTANT, EVERY_25_MS, True, id="every arrival is answered"),
        pytest.param(CONSTANT, THREE_OF_FOUR, False, id="a quarter is missing"),
        pytest.param(RANDOM, THREE_OF_FOUR, True, id="within the range of chance"),
        pytest.param(RANDOM, EVERY_25_MS[::4], False, id="three quarters are missing"),
        # A function answers 429 at once while its execution environments start.
        pytest.param(CONSTANT, [*EVERY_25_MS[:-1], THROTTLED[-1]], False, id="throttled now"),
        pytest.param(CONSTANT, [*THROTTLED[:2], *EVERY_25_MS[2:]], True, id="throttled before"),
    ],
)
def test_a_target_is_steady_when_it_answers_all_of_the_last_whole_period(
    tmp_path, level, rows, is_steady
):
    """In a closed loop each user's tasks, in an open loop the arrivals of the rate."""
    file = tmp_path / "requests.csv"
    file.write_text(HEADER + "".join(rows))
    figures = LiveFigures(file, level)
    figures.update()
    assert figures.is_steady is is_steady


# -- in the names of thresholds -------------------------------------------------------------


BEGIN = 1_000.0


@pytest.fixture
def figures():
    return WindowFigures(BEGIN, target="web", max_connections=50, sessions=100)


def take(figures, moment, sessions=100, **states):
    """Give the figures a sample in which the target has connections in each state."""
    taken = Sample(time=moment, backends=(), sessions=sessions, xacts=1)
    figures.take_sample(taken, Held(sum(states.values()), states.get("idle_in_transaction", 0)))


def test_connections_of_the_measured_time_count(figures):
    """Before the measured time they do not."""
    take(figures, BEGIN - 1, idle=40)
    take(figures, BEGIN, idle=4, idle_in_transaction=1)
    take(figures, BEGIN + 0.1, active=3)
    found = figures.so_far(BEGIN + 2)
    assert (found["db.connections.max"], found["db.connections.mean"]) == (5, 4)
    assert found["db.connections.share"] == pytest.approx(0.1)
    assert found["db.idle_in_transaction.max"] == 1


def test_requests_and_samples_are_known_up_to_the_same_moment(figures):
    """A request that ended a moment ago may not be written yet: then there would seem to be fewer."""
    for tenth in range(31):
        take(figures, BEGIN + tenth / 10, sessions=100 + 2 * tenth)
        if tenth < 25:
            figures.take_request(BEGIN, BEGIN + tenth / 10, 1, "")
    found = figures.so_far(BEGIN + 3)
    assert (found["db.opened"], found["http.requests"]) == (40, 21)
    assert found["db.opened_per_request"] == pytest.approx(40 / 21)
    assert figures.so_far(BEGIN + 3.2)["db.opened_per_request"] == pytest.approx(44 / 23)


def test_a_rate_is_not_known_at_once(figures):
    """At the begin nothing is answered yet, which is no low rate; failures are no answers."""
    for hundredth in range(300):
        ended = BEGIN + hundredth / 100
        figures.take_request(ended, ended, 1, "503" if hundredth % 4 == 0 else "")
    assert figures.so_far(BEGIN + 1.5)["http.rate"] is None
    assert figures.so_far(BEGIN + 3)["http.rate"] == pytest.approx(75, abs=1)


def test_every_metric_that_may_end_a_run_is_there(figures):
    """The figures have the names that thresholds use."""
    figures.take_request(BEGIN, BEGIN, 1, "")
    take(figures, BEGIN)
    found = figures.so_far(BEGIN + 3, cold_starts=3)
    known = {name for name, value in found.items() if value is not None}
    assert known == {name for name, metric in METRICS.items() if not metric.at_end}
