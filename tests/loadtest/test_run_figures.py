"""The figures of a run by the names that thresholds have."""

from poolkit.activity.by_target import by_target
from poolkit.activity.server import Backend, Sample
from poolkit.loadtest.figures import ONLY_IN_COMPARE, Held, MetricAccumulator, why_not_known
from poolkit.thresholds import METRICS

BEGIN = 1_000.0


def backend(target, state="idle"):
    return Backend(
        target=target, instance="1", pid=1, state=state, age_s=1, state_age_s=1, wait_event=""
    )


def measured(*samples, answered=0, opened=0):
    """The figures of a run with these requests and samples."""
    found = MetricAccumulator(BEGIN, max_connections=100)
    for _ in range(answered):
        found.requests.add(BEGIN, BEGIN, 1.0, "answered")
    for number, backends in enumerate(samples):
        sample = Sample(
            time=BEGIN, backends=tuple(backends), sessions=100 + (opened if number else 0), xacts=0
        )
        held = {one.target: Held(one.total, one.idle_in_transaction) for one in by_target(sample)}
        found.connections.add_sample(sample.time, sample.sessions, held)
    return found


def test_without_a_request_nothing_is_known():
    """No latency, and no share of nothing; that there was no request is known."""
    found = measured().figures(BEGIN + 1, "")
    unknown = {name for name in METRICS if found.get(name) is None}
    assert unknown == set(METRICS) - {"http.requests", "http.rate"}
    assert why_not_known(measured().connections, "", None)["http.p95"] == "no request was answered"


BUSY = [backend("web", "active"), backend("web", "idle in transaction"), backend("lambda")]
CALM = [backend("lambda", "idle in transaction"), backend("lambda", "idle in transaction")]


def test_without_a_target_all_connections_count():
    """Peaks and means are over all samples."""
    found = measured(BUSY, CALM, answered=10, opened=4).figures(BEGIN + 1, "")
    assert found["db.connections.max"] == 3
    assert found["db.connections.mean"] == 2.5
    assert found["db.connections.share"] == 0.03
    assert found["db.idle_in_transaction.max"] == 2
    assert found["db.opened"] == 4
    assert found["db.opened_per_request"] == 0.4


def test_connections_are_the_targets_with_one():
    """Those of other names are not counted; opened ones are the whole database's."""
    found = measured(BUSY, CALM, answered=10, opened=4).figures(BEGIN + 1, "web")
    assert found["db.connections.max"] == 2
    assert found["db.connections.mean"] == 1
    assert found["db.connections.share"] == 0.02
    assert found["db.idle_in_transaction.max"] == 1
    assert found["db.opened"] == 4


def test_a_target_without_any_connection_is_not_known():
    """A name that was mistyped must not pass with no connection."""
    run = measured(BUSY, answered=1)
    assert run.figures(BEGIN + 1, "wep").get("db.connections.max") is None
    reasons = why_not_known(run.connections, "wep", None)
    assert reasons["db.opened"] == "no connection is named wep; seen: lambda, web"


def test_without_a_database_the_reason_is_the_recordings():
    """The threshold repeats the reason in the log."""
    assert why_not_known(measured().connections, "", "no URL")["db.opened"] == "no URL"


def test_every_metric_is_known_or_named_as_not_here():
    """A new metric cannot be forgotten."""
    found = measured(BUSY, answered=1).figures(BEGIN + 1, "")
    assert set(found) | set(ONLY_IN_COMPARE) == set(METRICS)
