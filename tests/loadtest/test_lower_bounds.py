"""Latencies of a run whose last answers never came."""

import pytest

from poolkit.loadtest.latency.histogram import Latencies
from poolkit.loadtest.latency.lower_bounds import (
    LatenciesAtLeast,
    failed_unanswered,
    long_ms,
    words,
)


def latencies(answered=(), unanswered=(), unsent=()):
    found = Latencies()
    for ms in answered:
        found.record("GET", "/", ms)
    for ms in unanswered:
        found.unanswered.record(ms)
    for ms in unsent:
        found.unsent.record(ms)
    return found


def figures(found):
    shown = LatenciesAtLeast(found)
    return [*shown.percentiles((50, 95, 99)), shown.max, shown.mean]


def test_what_waited_for_long_counts_with_the_time_it_had_waited():
    """Half of the arrivals were never answered: the p95 is that of all of them."""
    found = latencies([5] * 100, unanswered=range(100, 6100, 100), unsent=[7000] * 40)
    p50, p95, p99, longest, mean = figures(found)
    assert p50 == pytest.approx(5, rel=0.001)
    assert (p95, p99, longest) == pytest.approx((7000, 7000, 7000), rel=0.001)
    assert mean == pytest.approx((500 + sum(range(100, 6100, 100)) + 280_000) / 200, rel=0.001)


def test_what_was_sent_just_before_the_end_lowers_nothing():
    """Their latencies would have been longer; nobody knows by how much."""
    answered = latencies(range(100, 200))
    assert figures(latencies(range(100, 200), unanswered=[1] * 50)) == figures(answered)


def test_without_an_answer_no_latency_is_known():
    """There is nothing to be at least."""
    assert figures(latencies(unanswered=[5000])) == [None] * 5


def test_what_waited_for_longer_than_a_second_has_failed():
    """What was just sent has not: every run ends with some of those."""
    found = latencies([5] * 100, unanswered=[0.5, 900, 1500, 30_000])
    assert failed_unanswered(found) == 2
    (said,) = words(found)
    assert said == (
        "4 requests had no answer at the end; 2 of them had waited for more than 1,000 ms and count "
        "as failed"
    )


def test_what_takes_long_as_a_rule_has_not_failed_because_the_run_ends():
    """The bound is the p99 of the answered, if that is longer than a second."""
    found = latencies([3000] * 100, unanswered=[1500, 2999, 4000])
    assert long_ms(found) == pytest.approx(3000, rel=0.001)
    assert failed_unanswered(found) == 1


def test_nothing_is_said_of_a_run_that_ended_as_runs_do():
    """A handful of requests is always under way."""
    assert list(words(latencies([5] * 100, unanswered=[1, 2, 3]))) == []


def test_a_message_between_processes_has_what_was_cut_off():
    """Workers know it, and the master adds it up."""
    found = latencies([5], unanswered=[100, 2000], unsent=[30])
    total = Latencies.from_message(found.to_message())
    assert total == found
    total.add(found)
    assert (total.unanswered.count, total.unsent.count, failed_unanswered(total)) == (4, 2, 2)
