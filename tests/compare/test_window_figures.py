"""What a measured time has come to so far, in the names of thresholds."""

import pytest

from poolkit.activity.server import Backend, Sample
from poolkit.compare.run.window_figures import WindowFigures
from poolkit.thresholds import METRICS

BEGIN = 1_000.0


@pytest.fixture
def figures():
    return WindowFigures(BEGIN, backends="web", max_connections=50, sessions=100)


def sample(moment, sessions=100, **states):
    """Return a sample with so many backends of `web` in each state, and one of somebody else."""
    named = [("web", state.replace("_", " ")) for state in states]
    backends = [
        Backend(
            target=target,
            instance="1",
            pid=1,
            state=state,
            age_s=1,
            state_age_s=1,
            wait_event="",
        )
        for target, state in named
        for _ in range(states[state.replace(" ", "_")])
    ]
    other = Backend(
        target="x", instance="", pid=2, state="idle", age_s=1, state_age_s=1, wait_event=""
    )
    return Sample(time=moment, backends=(*backends, other), sessions=sessions, xacts=1)


def test_only_what_was_due_in_it_counts(figures):
    """What the warm-up left behind is served in the measured time, and not due in it."""
    figures.take_request(BEGIN - 1, BEGIN - 0.9, 100, "")
    figures.take_request(BEGIN - 1, BEGIN + 0.1, 1100, "")
    for number in range(1, 100):
        figures.take_request(BEGIN + number / 100, BEGIN + 1, number, "")
    figures.take_request(BEGIN + 1, BEGIN + 1, 0.5, "503")
    found = figures.so_far(BEGIN + 2)
    assert found["http.requests"] == 100
    assert found["http.errors"] == pytest.approx(0.01)
    assert found["http.p95"] == pytest.approx(95, rel=0.001)
    assert found["http.max"] == pytest.approx(99, rel=0.001)


def test_connections_are_those_of_the_target(figures):
    """The most at once, their mean, and the share of what the server takes."""
    figures.take_sample(sample(BEGIN - 1, idle=40))
    figures.take_sample(sample(BEGIN, idle=4, idle_in_transaction=1))
    figures.take_sample(sample(BEGIN + 0.1, active=3))
    found = figures.so_far(BEGIN + 1)
    assert (found["db.connections.max"], found["db.connections.mean"]) == (5, 4)
    assert found["db.connections.share"] == pytest.approx(0.1)
    assert found["db.idle_in_transaction.max"] == 1


def test_connections_opened_and_requests_are_counted_up_to_the_same_moment(figures):
    """What ended a moment ago may not be written yet, and then there would seem to be fewer."""
    for tenth in range(31):
        figures.take_sample(sample(BEGIN + tenth / 10, sessions=100 + 2 * tenth))
        if tenth < 25:
            figures.take_request(BEGIN, BEGIN + tenth / 10, 1, "")
    found = figures.so_far(BEGIN + 3)
    assert found["db.opened"] == 60
    assert found["db.opened_per_request"] == pytest.approx(40 / 21)
    assert figures.so_far(BEGIN + 3.2)["db.opened_per_request"] == pytest.approx(44 / 23)


def test_a_rate_is_not_known_at_once(figures):
    """At the begin nothing is answered yet, which is no low rate; failures are no answers."""
    for hundredth in range(300):
        ended = BEGIN + hundredth / 100
        figures.take_request(ended, ended, 1, "503" if hundredth % 4 == 0 else "")
    assert figures.so_far(BEGIN + 0.5)["http.rate"] is None
    assert figures.so_far(BEGIN + 3)["http.rate"] == pytest.approx(75, abs=1)


def test_a_counter_that_was_reset_says_nothing(figures):
    """As it is after a crash of the server."""
    figures.take_request(BEGIN, BEGIN, 1, "")
    figures.take_sample(sample(BEGIN, sessions=3))
    found = figures.so_far(BEGIN + 2)
    assert (found["db.opened"], found["db.opened_per_request"]) == (None, None)


def test_without_a_request_nothing_is_known_of_latencies(figures):
    """What is not known ends nothing."""
    found = figures.so_far(BEGIN)
    assert (found["http.p95"], found["http.errors"], found["http.requests"]) == (None, None, 0)


def test_every_metric_that_may_end_a_run_is_there(figures):
    """Under the names that thresholds have."""
    figures.take_sample(sample(BEGIN))
    found = figures.so_far(BEGIN + 3, cold_starts=3)
    assert set(found) == {name for name, metric in METRICS.items() if not metric.at_end}
