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
    """Return a sample with backends of `web` in each state, and one of another name."""
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


def test_the_target_s_own_connections_count(figures):
    """Those of other names are on the same server."""
    figures.take_sample(sample(BEGIN - 1, idle=40))
    figures.take_sample(sample(BEGIN, idle=4, idle_in_transaction=1))
    figures.take_sample(sample(BEGIN + 0.1, active=3))
    found = figures.so_far(BEGIN + 2)
    assert (found["db.connections.max"], found["db.connections.mean"]) == (5, 4)
    assert found["db.connections.share"] == pytest.approx(0.1)
    assert found["db.idle_in_transaction.max"] == 1


def test_requests_and_samples_are_known_up_to_the_same_moment(figures):
    """A request that ended a moment ago may not be written yet: then there would seem to be fewer."""
    for tenth in range(31):
        figures.take_sample(sample(BEGIN + tenth / 10, sessions=100 + 2 * tenth))
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
    """Under the names that thresholds have."""
    figures.take_request(BEGIN, BEGIN, 1, "")
    figures.take_sample(sample(BEGIN))
    found = figures.so_far(BEGIN + 3, cold_starts=3)
    known = {name for name, value in found.items() if value is not None}
    assert known == {name for name, metric in METRICS.items() if not metric.at_end}
