"""The figures of a run by the names that thresholds have."""

from types import SimpleNamespace

import pytest

from poolkit.activity.by_target import by_target
from poolkit.activity.server import Backend, Sample
from poolkit.loadtest.latency.histogram import Latencies
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.run_figures import NOT_HERE, figures, why_not_known
from poolkit.loadtest.tally import Tally
from poolkit.thresholds import METRICS


def backend(target, state="idle"):
    return Backend(
        target=target, instance="1", pid=1, state=state, age_s=1, state_age_s=1, wait_event=""
    )


def tally(*samples, opened=0):
    found = Tally()
    for number, backends in enumerate(samples):
        sessions = 100 + (opened if number else 0)
        sample = Sample(time=0.0, backends=tuple(backends), sessions=sessions, xacts=0)
        found.add(sample, by_target(sample))
    return found


def recording(answered=(), failed=0, found=None, *, unsent=0, note=None, unanswered=()):
    latencies = Latencies()
    for ms in answered:
        latencies.record("GET", "/", ms)
    for _ in range(failed):
        latencies.record("GET", "/", 9_999, failed=True)
    for ms in unanswered:
        latencies.unanswered.record(ms)
    return SimpleNamespace(
        latencies=latencies,
        tally=found or Tally(),
        limits=SimpleNamespace(max_connections=100),
        note=note,
        loop=lambda: LoopReport(unsent=unsent),
    )


def test_the_share_is_of_what_the_whole_server_takes():
    """Those of other databases take room as well; a target's share is its own."""
    found = Tally()
    for elsewhere, count in ((80, 1), (10, 3)):
        seen = Sample(
            time=0.0, backends=(backend("web"),) * count, sessions=1, xacts=0, elsewhere=elsewhere
        )
        found.add(seen, by_target(seen))
    everybody = figures(recording(found=found), "", 10)
    assert (everybody["db.connections.share"], everybody["db.connections.max"]) == (0.81, 3)
    assert figures(recording(found=found), "web", 10)["db.connections.share"] == 0.03


def test_latencies_are_those_of_answered_requests():
    """A request that failed after ten seconds is an error, not a latency."""
    found = figures(recording(answered=range(1, 1001), failed=1000), "", 10)
    assert found["http.p50"] == pytest.approx(500, rel=1e-3)
    assert found["http.p99.9"] == pytest.approx(999, rel=1e-3)
    assert found["http.max"] == pytest.approx(1000, rel=1e-3)
    assert found["http.mean"] == pytest.approx(500.5, rel=1e-3)
    assert found["http.errors"] == 0.5
    assert found["http.requests"] == 2000
    assert found["http.rate"] == 100


def test_an_arrival_that_was_never_sent_is_an_error():
    """An open loop whose users were all waiting must not look better for it."""
    found = figures(recording(answered=[5] * 6, failed=1, unsent=1), "", 1)
    assert found["http.errors"] == 0.25
    assert found["http.requests"] == 7


def test_what_had_no_answer_at_the_end_is_in_the_figures():
    """As an error if it had waited for long, and in any case with the time it had waited."""
    found = figures(recording(answered=[5] * 6, unanswered=[3, 4000, 6000]), "", 2)
    assert found["http.max"] == pytest.approx(6000, rel=1e-3)
    assert found["http.p95"] == pytest.approx(6000, rel=1e-3)
    assert found["http.p50"] == pytest.approx(5, rel=1e-3)
    assert found["http.errors"] == 0.25
    assert found["http.requests"] == 8
    assert found["http.rate"] == 3


def test_without_a_request_nothing_is_known():
    """No latency, and no share of nothing; that there was no request is known."""
    found = figures(recording(), "", 1)
    unknown = {name for name in METRICS if found.get(name) is None}
    assert unknown == set(METRICS) - {"http.requests", "http.rate"}
    assert why_not_known(recording(), "")["http.p95"] == "no request was answered"


BUSY = [backend("web", "active"), backend("web", "idle in transaction"), backend("lambda")]
CALM = [backend("lambda", "idle in transaction"), backend("lambda", "idle in transaction")]


def test_connections_are_everybodys_without_a_target():
    """Peaks and means are over all samples."""
    found = figures(recording([1] * 10, found=tally(BUSY, CALM, opened=4)), "", 1)
    assert found["db.connections.max"] == 3
    assert found["db.connections.mean"] == 2.5
    assert found["db.connections.share"] == 0.03
    assert found["db.idle_in_transaction.max"] == 2
    assert found["db.opened"] == 4
    assert found["db.opened_per_request"] == 0.4


def test_connections_are_the_targets_with_one():
    """Those of other names are not counted; opened ones are the whole database's."""
    found = figures(recording([1] * 10, found=tally(BUSY, CALM, opened=4)), "web", 1)
    assert found["db.connections.max"] == 2
    assert found["db.connections.mean"] == 1
    assert found["db.connections.share"] == 0.02
    assert found["db.idle_in_transaction.max"] == 1
    assert found["db.opened"] == 4


def test_a_target_that_nobody_has_is_not_known():
    """A name that was mistyped must not pass with no connection."""
    run = recording([1], found=tally(BUSY))
    assert figures(run, "wep", 1).get("db.connections.max") is None
    reasons = why_not_known(run, "wep")
    assert reasons["db.opened"] == "no connection is named wep; seen: lambda, web"


def test_without_a_database_the_reason_is_the_recordings():
    """What it has said in the log is said again behind the threshold."""
    assert why_not_known(recording(note="no URL"), "")["db.opened"] == "no URL"


def test_every_metric_is_known_or_named_as_not_here():
    """A new metric cannot be forgotten."""
    found = figures(recording([1], found=tally(BUSY)), "", 1)
    assert set(found) | set(NOT_HERE) == set(METRICS)
