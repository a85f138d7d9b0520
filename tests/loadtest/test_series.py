"""The rows of a run, thinned out for a chart."""

from dataclasses import replace

import pytest

from poolkit.activity.by_target import Connected, by_target, total
from poolkit.activity.server import Backend, Sample
from poolkit.loadtest.latency.counters import Rates
from poolkit.loadtest.recording import MOST_POINTS, Second, Series


def second(number, connections=1, *, opened=0, ms=None):
    targets = (
        None if connections is None else (Connected(target="web", instances=1, idle=connections),)
    )
    return Second(
        time=float(number),
        targets=targets,
        opened=None if connections is None else opened,
        users=1,
        rates=Rates(10.0, 0.0, *((None,) * 3 if ms is None else (ms, 2 * ms, 3 * ms))),
    )


def backend(target, instance, state):
    return Backend(
        target=target, instance=instance, pid=1, state=state, age_s=1, state_age_s=1, wait_event=""
    )


def sample(*backends, sessions=0):
    """Return a sample with backends of `web` in each state, and one of another name."""
    return Sample(time=1.0, backends=backends, sessions=sessions, xacts=0)


def test_backends_are_counted_by_target_and_state():
    """An aborted transaction is idle in transaction, a rare state is "other", no name has one."""
    found = by_target(
        sample(
            backend("web", "1", "active"),
            backend("web", "2", "idle in transaction (aborted)"),
            backend("web", "2", "fastpath function call"),
            backend("", "", "idle"),
        )
    )
    web = Connected(
        target="web",
        instances=2,
        active=1,
        idle_in_transaction=1,
        other=1,
        longest_idle_in_transaction_s=1,
    )
    unnamed = Connected(target="(unnamed)", instances=1, idle=1)
    assert found == (unnamed, web)
    assert total(found).total == 4
    assert total(found).longest_idle_in_transaction_s == 1


def test_a_point_has_the_other_databases_of_its_own_sample():
    """What stands on one another in a chart was there at one moment."""
    series = Series()
    series.step_s = 2
    for connections, elsewhere in ((5, 1), (3, 9), (None, 0), (None, 0)):
        series.add(replace(second(0, connections), elsewhere=elsewhere))
    assert series.columns()["other_databases"] == [1, None]
    assert series.points[0].on_server == 6


def test_a_long_run_needs_no_more_room_and_keeps_its_peak():
    """Neighbours become one point, the fuller of the two; opened connections are not lost."""
    series = Series()
    for number in range(5 * MOST_POINTS):
        series.add(second(number, 40 if number == 777 else 3, opened=2))
    columns = series.columns()
    assert MOST_POINTS <= len(series.points) < 2 * MOST_POINTS
    assert series.step_s == 4
    assert max(columns["targets"]["web"]) == 40
    assert set(columns["opened_per_s"]) == {2.0}
    assert {len(columns[name]) for name in ("time", "users", "p95_ms")} == {len(series.points)}


@pytest.mark.parametrize("spike", [4, 5], ids=["first of a pair", "second of a pair"])
def test_a_spike_of_latency_survives_the_thinning(spike):
    """The higher percentiles of two neighbours are kept, whichever of them has them."""
    series = Series()
    for number in range(2 * MOST_POINTS):
        series.add(second(number, ms=900.0 if number == spike else 10.0))
    columns = series.columns()
    assert [max(columns[name]) for name in ("p50_ms", "p95_ms", "p99_ms")] == [900, 1800, 2700]


def test_a_second_without_an_answer_is_a_gap():
    """It is null in every column of connections, not zero."""
    series = Series()
    series.add(second(1, 2))
    series.add(second(2, None))
    columns = series.columns()
    assert columns["targets"] == {"web": [2, None]}
    assert columns["states"]["idle"] == [2, None]
    assert columns["opened_per_s"] == [0.0, None]
