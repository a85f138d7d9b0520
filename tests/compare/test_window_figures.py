"""What a measured time has come to so far, in the names of thresholds."""

import pytest

from poolkit.activity import Backend, Sample
from poolkit.compare.window_figures import WindowFigures
from poolkit.thresholds import METRICS

BEGIN = 1_000.0


@pytest.fixture
def figures():
    return WindowFigures(BEGIN, backends="web", max_connections=50)


def sample(moment, **states):
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
    return Sample(time=moment, backends=(*backends, other), sessions=1, xacts=1)


def test_only_what_was_due_in_it_counts(figures):
    """What the warm-up left behind is served in the measured time, and not due in it."""
    figures.take_request(BEGIN - 1, BEGIN - 0.9, 100, "")
    figures.take_request(BEGIN - 1, BEGIN + 0.1, 1100, "")
    for number in range(1, 100):
        figures.take_request(BEGIN + number / 100, BEGIN + 1, number, "")
    figures.take_request(BEGIN + 1, BEGIN + 1, 0.5, "503")
    found = figures.so_far(BEGIN + 2, opened=10)
    assert found["http.requests"] == 100
    assert found["http.errors"] == pytest.approx(0.01)
    assert found["http.rate"] == pytest.approx(99 / 2)
    assert found["http.p95"] == pytest.approx(95, rel=0.001)
    assert found["http.max"] == pytest.approx(99, rel=0.001)
    assert found["db.opened_per_request"] == pytest.approx(10 / 101)


def test_connections_are_those_of_the_target(figures):
    """The most at once, their mean, and the share of what the server takes."""
    figures.take_sample(sample(BEGIN - 1, idle=40))
    figures.take_sample(sample(BEGIN, idle=4, idle_in_transaction=1))
    figures.take_sample(sample(BEGIN + 0.1, active=3))
    found = figures.so_far(BEGIN + 1, opened=None)
    assert (found["db.connections.max"], found["db.connections.mean"]) == (5, 4)
    assert found["db.connections.share"] == pytest.approx(0.1)
    assert found["db.idle_in_transaction.max"] == 1
    assert found["db.opened"] is None


def test_without_a_request_nothing_is_known_of_latencies(figures):
    """What is not known ends nothing."""
    found = figures.so_far(BEGIN, opened=0)
    assert (found["http.p95"], found["http.errors"], found["http.requests"]) == (None, None, 0)


def test_every_metric_that_may_end_a_run_is_there(figures):
    """Under the names that thresholds have."""
    figures.take_sample(sample(BEGIN))
    found = figures.so_far(BEGIN + 1, opened=0, cold_starts=3)
    assert set(found) == {name for name, metric in METRICS.items() if not metric.at_end}
