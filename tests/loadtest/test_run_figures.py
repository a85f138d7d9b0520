"""The figures of a run by the names that thresholds have."""

from types import SimpleNamespace

from poolkit.activity.by_target import by_target
from poolkit.activity.server import Backend, Sample
from poolkit.loadtest.figures import Held, MetricAccumulator
from poolkit.loadtest.run_figures import NOT_HERE, figures, why_not_known
from poolkit.thresholds import METRICS

BEGIN = 1_000.0


def backend(target, state="idle"):
    return Backend(
        target=target, instance="1", pid=1, state=state, age_s=1, state_age_s=1, wait_event=""
    )


def recording(*samples, answered=0, opened=0, note=None):
    """What figures read of a `Recording`; the real one needs a Locust that runs."""
    measured = MetricAccumulator(BEGIN, max_connections=100)
    for _ in range(answered):
        measured.requests.add(BEGIN, BEGIN, 1.0, "answered")
    for number, backends in enumerate(samples):
        sample = Sample(
            time=BEGIN,
            backends=tuple(backends),
            sessions=100 + (opened if number else 0),
            xacts=0,
        )
        held = {one.target: Held(one.total, one.idle_in_transaction) for one in by_target(sample)}
        measured.connections.add_sample(sample.time, sample.sessions, held)
    return SimpleNamespace(measured=measured, note=note)


def test_without_a_request_nothing_is_known():
    """No latency, and no share of nothing; that there was no request is known."""
    found = figures(recording(), "", BEGIN + 1)
    unknown = {name for name in METRICS if found.get(name) is None}
    assert unknown == set(METRICS) - {"http.requests", "http.rate"}
    assert why_not_known(recording(), "")["http.p95"] == "no request was answered"


BUSY = [backend("web", "active"), backend("web", "idle in transaction"), backend("lambda")]
CALM = [backend("lambda", "idle in transaction"), backend("lambda", "idle in transaction")]


def test_connections_are_everybodys_without_a_target():
    """Peaks and means are over all samples."""
    found = figures(recording(BUSY, CALM, answered=10, opened=4), "", BEGIN + 1)
    assert found["db.connections.max"] == 3
    assert found["db.connections.mean"] == 2.5
    assert found["db.connections.share"] == 0.03
    assert found["db.idle_in_transaction.max"] == 2
    assert found["db.opened"] == 4
    assert found["db.opened_per_request"] == 0.4


def test_connections_are_the_targets_with_one():
    """Those of other names are not counted; opened ones are the whole database's."""
    found = figures(recording(BUSY, CALM, answered=10, opened=4), "web", BEGIN + 1)
    assert found["db.connections.max"] == 2
    assert found["db.connections.mean"] == 1
    assert found["db.connections.share"] == 0.02
    assert found["db.idle_in_transaction.max"] == 1
    assert found["db.opened"] == 4


def test_a_target_that_nobody_has_is_not_known():
    """A name that was mistyped must not pass with no connection."""
    run = recording(BUSY, answered=1)
    assert figures(run, "wep", BEGIN + 1).get("db.connections.max") is None
    reasons = why_not_known(run, "wep")
    assert reasons["db.opened"] == "no connection is named wep; seen: lambda, web"


def test_without_a_database_the_reason_is_the_recordings():
    """What it has said in the log is said again behind the threshold."""
    assert why_not_known(recording(note="no URL"), "")["db.opened"] == "no URL"


def test_every_metric_is_known_or_named_as_not_here():
    """A new metric cannot be forgotten."""
    found = figures(recording(BUSY, answered=1), "", BEGIN + 1)
    assert set(found) | set(NOT_HERE) == set(METRICS)
