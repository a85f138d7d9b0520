"""Histograms of latencies: HdrHistogram's buckets, and sums that lose nothing."""

import json
import math
import sys
import time
import timeit
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.loadtest.latency.counters import Latencies, Name
from poolkit.loadtest.latency.histogram import DENSE_FROM, LatencyHistogram
from poolkit.thresholds.selector import Selector

HdrHistogram = pytest.importorskip("hdrh.histogram", reason="no wheel here").HdrHistogram

microseconds = st.one_of(
    st.integers(0, 5_000), st.integers(0, 5_000_000), st.integers(0, 3_600_000_000)
)
several = st.lists(microseconds, min_size=1, max_size=60)


def histogram(values_us):
    found = LatencyHistogram()
    for us in values_us:
        found.record(us / 1000)
    return found


def nearest_rank(values, p):
    """The smallest value with p percent at or below it; in fractions, which are exact."""
    rank = math.ceil(Fraction(str(p)) * len(values) / 100)
    return sorted(values)[max(rank, 1) - 1]


def hdr(values_us):
    found = HdrHistogram(1, 3_600_000_000, 3)
    for us in values_us:
        assert found.record_value(us)
    return found


@given(values=several)
def test_buckets_are_those_of_hdrhistogram(values):
    """Every value is counted where the reference implementation counts it."""
    counts = enumerate(hdr(values).counts)
    assert histogram(values).buckets() == [(i, count) for i, count in counts if count]


@given(values=several, p=st.sampled_from([0, 1, 50, 90, 95, 99, 99.9, 100]))
def test_a_percentile_is_the_exact_one_to_three_digits(values, p):
    """It is the upper end of the bucket that nearest rank over the raw values falls into."""
    exact = nearest_rank(values, p)
    found = histogram(values).percentile(p)
    assert found == pytest.approx(hdr([exact]).get_highest_equivalent_value(exact) / 1000)
    assert exact / 1000 <= found <= exact / 1000 * 1.001 + 0.001


@given(values=several)
def test_mean_and_maximum_are_those_of_the_values_to_three_digits(values):
    """A bucket is a thousandth wide at most."""
    found = histogram(values)
    assert found.count == len(values)
    assert found.mean == pytest.approx(sum(values) / len(values) / 1000, rel=0.0006, abs=0.0006)
    assert found.max == pytest.approx(max(values) / 1000, rel=0.001, abs=0.001)
    assert found.max == found.percentile(100)


@given(first=several, second=several)
def test_a_sum_is_the_histogram_of_all_values(first, second):
    """Count by count, in any order."""
    total = histogram(first)
    total.add(histogram(second))
    assert total == histogram(first + second)


def test_a_histogram_of_many_buckets_needs_no_more_than_an_array_of_all():
    """A name's memory has a bound; its figures and its encoding stay the same."""
    values = range(1, 40_000_000, 7_001)
    dense, whole = LatencyHistogram(), HdrHistogram(1, 3_600_000_000, 3)
    for begin in range(0, len(values), 1000):
        dense.add(histogram(values[begin : begin + 1000]))
    for value in values:
        whole.record_value(value)
    assert len(dense.buckets()) > DENSE_FROM
    assert sys.getsizeof(dense.counts) < 190_000
    assert dense.percentile(99) * 1000 == whole.get_value_at_percentile(99)
    assert dense.encode() == whole.encode().decode()
    twice = histogram(values[:10])
    twice.add(dense)
    assert twice.count == dense.count + 10


@given(values=st.lists(microseconds, max_size=60))
def test_what_is_encoded_is_read_by_others_and_by_us(values):
    """The package's own decoder finds the same counts; ours finds the same histogram."""
    found = histogram(values)
    read = HdrHistogram.decode(found.encode())
    assert read.get_total_count() == len(values)
    assert [(i, count) for i, count in enumerate(read.counts) if count] == found.buckets()
    assert LatencyHistogram.decode(found.encode()) == found


@pytest.mark.parametrize(
    ("encoded", "said"),
    [
        ("", "not an HdrHistogram"),
        ("HISTFAAAAA", "not an HdrHistogram"),
        ("not base64 at all", "not an HdrHistogram"),
        (HdrHistogram(1, 1000, 2).encode(), "wanted a histogram from 1 to 3600000000 µs"),
    ],
)
def test_what_is_no_such_histogram_is_refused(encoded, said):
    """In one line, whatever is wrong with it."""
    with pytest.raises(ValueError, match=said) as refused:
        LatencyHistogram.decode(encoded)
    assert "\n" not in str(refused.value)


def test_times_out_of_range_are_counted_at_its_ends():
    """A request that took longer than an hour is not lost, nor one before its own start."""
    found = LatencyHistogram()
    for ms in (-5.0, 0.0, 9e9):
        found.record(ms)
    assert found.count == 3
    assert found.percentile(50) == 0
    assert found.max == pytest.approx(3_600_000, rel=0.001)


def test_nothing_measured_has_no_figures():
    """None, not zero: a zero would be a very fast server."""
    empty = LatencyHistogram()
    assert (empty.count, empty.percentile(99), empty.max, empty.mean) == (0, None, None, None)


def test_a_percentile_beyond_100_is_refused():
    """It would be asked for by mistake."""
    with pytest.raises(ValueError, match="from 0 to 100"):
        LatencyHistogram().percentile(101)


def test_names_and_failures_are_apart():
    """A fast failure makes no latency look better; the totals are over all names."""
    found = Latencies()
    found.record("GET", "/", 10)
    found.record("GET", "/", 1, outcome="failed")
    found.record("POST", "/", 30)
    assert found.names() == [Name("GET", "/"), Name("POST", "/")]
    assert found.of(Name("GET", "/")).of("answered") == histogram([10_000])
    assert found.of(Name("POST", "/")).of("failed").count == 0
    total = found.total()
    assert (total.of("answered").count, total.of("failed").count) == (2, 1)


def test_a_message_between_processes_loses_nothing():
    """Also when it went over the wire, where tuples become lists."""
    found = Latencies()
    for number in range(500):
        outcome = "failed" if number % 7 == 0 else "answered"
        found.record("GET", f"/{number % 3}", number**1.7, outcome=outcome)
    sent = json.loads(json.dumps(found.to_message()))
    assert Latencies.from_message(sent) == found
    twice = Latencies()
    twice.add(found)
    twice.add(Latencies.from_message(sent))
    assert twice.total().of("answered").count == 2 * found.total().of("answered").count


A_REQUEST_S = 100e-6
"""Of the processor's time, by benchmarks/load_generator.py: 92 to 125 µs."""


@pytest.mark.alone
def test_recording_is_cheap():
    """It may cost 3 % of what a request costs Locust."""
    found = Latencies()
    # Of the processor's time, and the best of many short tries: others may use the machine, too.
    tries = timeit.repeat(
        lambda: found.record("GET", "/", 12.345), timer=time.thread_time, number=1000, repeat=100
    )
    assert min(tries) / 1000 < 0.03 * A_REQUEST_S


def test_the_requests_of_a_tag_add_up_over_workers():
    """They are in the figures of the run once, and go through a worker's message."""
    worker = Latencies(begin=10.0)
    for scheduled, tags in ((11.0, ("read", "slow")), (9.0, ("read",))):
        worker.record("GET", "/", 5.0, scheduled=scheduled, ended=11.1)
        worker.record_tags(tags, 5.0, "answered", scheduled=scheduled, ended=11.1)
    run = Latencies(begin=10.0)
    for _ in range(2):
        run.add(Latencies.from_message(json.loads(json.dumps(worker.to_message()))))
    assert run.select(Selector("tag", "read")).count == 2
    assert run.select(Selector("tag", "slow")).count == 2
    assert run.select(Selector("tag", "other")) is None
    assert run.total().count == 2
