"""The accumulator of all metrics, fed row by row."""

import json

import pytest

from poolkit.loadtest.figures import ConnectionCounters, Held, MetricAccumulator
from poolkit.loadtest.latency.counters import LatenciesAtLeast, RequestCounters, outcome_of
from poolkit.loadtest.latency.histogram import LatencyHistogram
from poolkit.thresholds import METRICS

BEGIN, END = 1_000.0, 1_010.0


def requests(answered=(), timed_out=(), dropped=(), failed=()):
    """Counters of requests of the measured time, by their latencies in ms."""
    found = RequestCounters()
    rows = {"answered": answered, "timed_out": timed_out, "dropped": dropped, "failed": failed}
    for outcome, latencies in rows.items():
        for ms in latencies:
            found.add(1.0, 1.0 + ms / 1000, ms, outcome)
    return found


def held(**targets):
    return {name: Held(total, 0) for name, total in targets.items()}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [("", "answered"), ("unanswered", "timed_out"), ("unsent", "dropped"), ("503", "failed")],
)
def test_a_row_of_the_run_folder_has_an_outcome(error, outcome):
    """The column `error` names the status or the exception of all other failures."""
    assert outcome_of(error) == outcome


# -- requests -------------------------------------------------------------------------------


def test_a_request_belongs_to_the_time_in_which_it_was_scheduled():
    """One that was scheduled before and answered in it is throughput, and has no latency here."""
    found = RequestCounters(BEGIN, END)
    found.add(BEGIN - 1, BEGIN - 0.5, 500, "answered")
    found.add(BEGIN - 1, BEGIN + 0.5, 1500, "answered")
    found.add(BEGIN, BEGIN + 1, 1000, "failed")
    found.add(END - 1, END + 1, 2000, "answered")
    found.add(END, END + 1, 1, "answered")
    assert (found.count, found.errors, found.served, found.answered_in_time) == (2, 1, 2, 1)
    assert found.latency.max == pytest.approx(2000, rel=0.001)
    assert found.of("answered", earlier=True).count == 1


def test_a_dropped_or_timed_out_request_is_an_error_and_was_not_served():
    """Users that are all busy, or a server that stands still, must not make a run look better."""
    found = requests([5] * 6, timed_out=[30_000], dropped=[1, 2], failed=[3])
    assert (found.count, found.errors, found.served) == (10, 4, 7)


def test_a_wait_counts_in_the_latencies_as_far_as_it_went():
    """Half of the requests were never answered: the p95 is that of all of them."""
    waited = range(100, 6100, 100)
    found = requests([5] * 100, timed_out=waited, dropped=[7000] * 40).latency
    assert found.percentiles((50, 95, 99)) == pytest.approx([5, 7000, 7000], rel=0.001)
    assert found.max == pytest.approx(7000, rel=0.001)
    assert found.mean == pytest.approx((500 + sum(waited) + 280_000) / 200, rel=0.001)


def test_a_request_sent_just_before_the_end_lowers_no_latency():
    """Its own would have been longer by an unknown time."""
    answered = LatencyHistogram.of(range(100, 200))
    found = LatenciesAtLeast(answered, [LatencyHistogram.of([1] * 50)])
    assert (found.max, found.mean) == (answered.max, answered.mean)
    assert found.percentiles((50, 99)) == answered.percentiles((50, 99))


def test_without_an_answer_no_latency_is_known():
    """There is nothing to be a bound of."""
    found = requests(timed_out=[5000], failed=[3]).latency
    assert [*found.percentiles((50, 99)), found.max, found.mean] == [None] * 4


@pytest.mark.parametrize(
    ("answered", "waits", "timed_out"),
    [
        ([5] * 100, [0.5, 900, 1500, 30_000], 2),
        ([3000] * 100, [1500, 2999, 4000], 1),
        ([], [1500], 1),
    ],
    ids=["longer than a second", "longer than the 99th percentile", "nothing answered"],
)
def test_a_request_times_out_when_it_waited_for_long(answered, waits, timed_out):
    """Every run ends with requests under way, and what takes long as a rule has not failed."""
    found = requests(answered, timed_out=waits)
    assert (found.timed_out, found.count) == (timed_out, len(answered) + timed_out)


def test_counters_of_several_processes_add_up():
    """Also when they went over the wire, where tuples become lists."""
    rows = [
        (BEGIN + n / 100, BEGIN + n / 50, n**1.5, "failed" if n % 7 else "answered")
        for n in range(300)
    ]
    whole, parts = RequestCounters(BEGIN, END), [RequestCounters(BEGIN, END) for _ in range(3)]
    for number, row in enumerate(rows):
        whole.add(*row)
        parts[number % 3].add(*row)
    total = RequestCounters(BEGIN, END)
    for part in parts:
        total.merge(RequestCounters.from_message(json.loads(json.dumps(part.to_message()))))
    assert total == whole


# -- connections ----------------------------------------------------------------------------


def test_peaks_and_means_are_over_all_samples_of_the_measured_time():
    """Those of other databases count against the server's limit alone."""
    found = ConnectionCounters(BEGIN, END)
    found.add_sample(BEGIN - 1, 0, held(web=40))
    for number, count in enumerate((1, 5, 3)):
        found.add_sample(BEGIN + number, 0, held(web=count, other=1), elsewhere=10 * number)
    found.add_sample(END + 1, 0, held(web=50))
    assert (found.samples, found.peak, found.server_peak) == (3, 6, 24)
    assert found.of("web") == (5, 3, 0)
    assert found.of()[:2] == (6, 4)
    assert found.of("unknown") is None
    assert found.mean_of("unknown") == 0


def test_connections_are_counted_from_the_last_sample_before_the_measured_time():
    """The counter is the server's, and no connection is too short for it."""
    found = ConnectionCounters(BEGIN, END, sessions=90)
    assert found.opened is None
    found.add_sample(BEGIN - 0.1, 100, {})
    assert found.add_sample(BEGIN + 0.1, 105, {}) == 5
    assert (found.opened, found.sessions) == (5, 105)


def test_a_counter_that_was_reset_is_not_known():
    """How many were opened before the crash was never read; a chart shows what came after."""
    found = ConnectionCounters(BEGIN)
    opened = [found.add_sample(BEGIN + n, read, {}) for n, read in enumerate((100, 103, 0, 2))]
    assert opened == [0, 3, 0, 2]
    assert found.opened is None


def test_seconds_without_a_sample_are_unseen():
    """Those before the first and after the last too; a sample that is a little late is none."""
    found = ConnectionCounters(BEGIN)
    for second in (2, 2.9, 6):
        found.add_sample(BEGIN + second, 0, {})
    assert found.unseen_s(BEGIN + 6.5) == pytest.approx(2 + 3.1)
    assert found.unseen_s(BEGIN + 8) == pytest.approx(2 + 3.1 + 2)


# -- figures --------------------------------------------------------------------------------


def test_every_metric_has_a_figure():
    """A new metric cannot be forgotten."""
    assert set(MetricAccumulator().figures(0.0)) == set(METRICS)


def test_what_was_not_measured_is_not_known():
    """No share of nothing, no rate of an instant; that there was no request is known."""
    found = MetricAccumulator(BEGIN).figures(BEGIN + 0.5)
    assert {name for name, value in found.items() if value is not None} == {"http.requests"}


def test_connections_opened_are_divided_by_the_requests_served_in_the_same_time():
    """A request that was scheduled before the measured time needed its connection in it."""
    measured = MetricAccumulator(BEGIN, END, sessions=100, max_connections=50)
    measured.requests.add(BEGIN - 1, BEGIN + 1, 2000, "answered")
    measured.requests.add(BEGIN + 1, BEGIN + 2, 1000, "failed")
    measured.requests.add(BEGIN + 2, END + 5, 13_000, "answered")
    measured.connections.add_sample(BEGIN + 1, 103, held(web=4, other=1), elsewhere=5)
    found = measured.figures(END, "web")
    assert (found["db.opened"], found["db.opened_per_request"]) == (3, 1.5)
    assert (found["http.requests"], found["http.rate"]) == (2, 0.1)
    assert found["db.connections.share"] == 0.08
    assert measured.figures(END)["db.connections.share"] == 0.2
