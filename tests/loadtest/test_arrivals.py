"""The moments at which tasks are due."""

import itertools
import statistics
from types import SimpleNamespace

import pytest

from poolkit.errors import ConfigurationError
from poolkit.loadtest.open_loop import parts
from poolkit.loadtest.open_loop.arrivals import ArrivalRate, due_times
from poolkit.loadtest.open_loop.lane import shared
from poolkit.loadtest.open_loop.parts import Part, parts_of

BEGIN = 1_700_000_000.0


def first(count, times):
    return list(itertools.islice(times, count))


@pytest.mark.parametrize("per_s", [0.1, 3.0, 200.0, 7919.0])
def test_a_constant_rate_does_not_drift(per_s):
    """The millionth arrival is due a million gaps after the first, to a microsecond."""
    last = next(itertools.islice(due_times(ArrivalRate(per_s), begin=BEGIN), 1_000_000, None))
    assert last == pytest.approx(BEGIN + 1_000_000 / per_s, abs=1e-6)


@pytest.mark.parametrize("of", [2, 3, 4])
def test_the_parts_of_a_constant_rate_are_together_that_rate(of):
    """Every arrival of the whole is in exactly one part."""
    rate = ArrivalRate(30.0)
    whole = first(of * 20, due_times(rate, begin=BEGIN))
    parts = [first(20, due_times(rate, begin=BEGIN, part=i, of=of)) for i in range(of)]
    assert sorted(itertools.chain(*parts)) == whole


@pytest.mark.parametrize("passed", [0.0, 0.5, 1.0, 7 / 30, 100.0, 100.0001])
def test_parts_that_are_dealt_again_go_on_in_the_same_beat(passed):
    """Until a moment two parts, from then on three: no arrival is missed or doubled."""
    rate, since = ArrivalRate(30.0), BEGIN + passed
    before = [
        list(
            itertools.takewhile(lambda due: due < since, due_times(rate, begin=BEGIN, part=i, of=2))
        )
        for i in range(2)
    ]
    after = [first(10, due_times(rate, begin=BEGIN, part=i, of=3, since=since)) for i in range(3)]
    dealt = sorted(itertools.chain(*before, *after))
    assert dealt == first(len(dealt), due_times(rate, begin=BEGIN))


def test_poisson_arrivals_are_as_many_as_the_rate_says_and_independent():
    """The gaps have the mean of an exponential distribution, and its standard deviation."""
    due = first(20_000, due_times(ArrivalRate(50.0, "poisson"), begin=BEGIN, seed=1))
    gaps = [b - a for a, b in itertools.pairwise([BEGIN, *due])]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.03)


def test_a_seed_gives_the_same_poisson_arrivals_and_each_part_its_own():
    """What was random can be done again, and processes do not send in step."""
    rate = ArrivalRate(50.0, "poisson")
    one = first(5, due_times(rate, begin=BEGIN, seed=7, part=0, of=2))
    assert one == first(5, due_times(rate, begin=BEGIN, seed=7, part=0, of=2))
    assert one != first(5, due_times(rate, begin=BEGIN, seed=7, part=1, of=2))
    assert one != first(5, due_times(rate, begin=BEGIN, seed=8, part=0, of=2))


@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_user_classes_share_a_rate_by_their_weight(kind):
    """Each arrival is one class's, and the shares hold from the beginning."""
    whole = first(40, due_times(ArrivalRate(10.0, kind), begin=BEGIN, seed=1))
    weights = [3.0, 1.0]
    mine = [
        list(
            itertools.takewhile(
                lambda due: due <= whole[-1], shared(iter([*whole, 9e9]), weights, i)
            )
        )
        for i in range(2)
    ]
    assert [len(one) for one in mine] == [30, 10]
    assert sorted(itertools.chain(*mine)) == whole


@pytest.mark.parametrize("per_s", ["0", "nan", "-1", "1e9", "inf", "fast"])
def test_a_rate_that_cannot_be_is_refused_by_the_option_s_name(per_s):
    """Nothing, less than nothing, too much, and no number."""
    with pytest.raises(ConfigurationError, match=r"^--arrival-rate is .*; wanted "):
        ArrivalRate.parse(per_s)


def test_a_kind_that_is_not_known_is_refused():
    """The message lists those that there are."""
    with pytest.raises(ConfigurationError, match="constant, poisson"):
        ArrivalRate.parse("10", "uniform")


def test_users_are_dealt_without_a_rest():
    """The parts' users add up to --max-users, and none has no user."""
    whole = Part(begin=BEGIN, since=BEGIN, max_users=10)
    assert [part.max_users for part in parts_of(whole, 3)] == [4, 3, 3]
    assert [part.max_users for part in parts_of(Part(begin=0, since=0, max_users=1), 2)] == [1, 1]


def test_a_worker_whose_clock_is_wrong_begins_as_long_after_the_message(monkeypatch):
    """Only a difference that is no message's way is taken for a wrong clock."""
    clocks = iter([BEGIN, BEGIN + 0.2, BEGIN, BEGIN + 3600])  # the sender's, the receiver's
    monkeypatch.setattr(parts, "time", SimpleNamespace(time=lambda: next(clocks)))
    part = Part(begin=BEGIN, since=BEGIN)
    near = Part.from_message(part.message())
    assert near == part
    assert Part.from_message(part.message()).begin == BEGIN + 3600
