"""The moments at which tasks are scheduled."""

import itertools
import statistics
from types import SimpleNamespace

import pytest

from poolkit.errors import ConfigurationError
from poolkit.loadtest.open_loop import arrivals
from poolkit.loadtest.open_loop.arrivals import ArrivalRate, Share, of_user_class

BEGIN = 1_700_000_000.0


def first(count, times):
    return list(itertools.islice(times, count))


def until(moment, times):
    return list(itertools.takewhile(lambda scheduled: scheduled < moment, times))


def share(index=0, of=1, *, since=BEGIN, seed=0):
    return Share(begin=BEGIN, since=since, index=index, of=of, seed=seed)


@pytest.mark.parametrize("per_s", [0.1, 3.0, 200.0, 7919.0])
def test_a_constant_rate_does_not_drift(per_s):
    """The millionth arrival is a million gaps after the first, to a microsecond."""
    times = share().scheduled_times(ArrivalRate(per_s))
    last = next(itertools.islice(times, 1_000_000, None))
    assert last == pytest.approx(BEGIN + 1_000_000 / per_s, abs=1e-6)


@pytest.mark.parametrize("of", [2, 3, 4])
def test_the_shares_of_a_constant_rate_are_together_that_rate(of):
    """Every arrival of the whole is in exactly one share."""
    rate = ArrivalRate(30.0)
    whole = first(of * 20, share().scheduled_times(rate))
    shares = [first(20, share(i, of).scheduled_times(rate)) for i in range(of)]
    assert sorted(itertools.chain(*shares)) == whole


@pytest.mark.parametrize("passed", [0.0, 0.5, 1.0, 7 / 30, 100.0, 100.0001])
def test_a_new_distribution_goes_on_in_the_same_beat(passed):
    """Until a moment two shares, from then on three: no arrival is missed or doubled."""
    rate, since = ArrivalRate(30.0), BEGIN + passed
    before = [until(since, share(i, 2).scheduled_times(rate)) for i in range(2)]
    after = [first(10, share(i, 3, since=since).scheduled_times(rate)) for i in range(3)]
    together = sorted(itertools.chain(*before, *after))
    assert together == first(len(together), share().scheduled_times(rate))


def test_poisson_arrivals_have_the_rate_and_are_independent():
    """The gaps have the mean of an exponential distribution, and its standard deviation."""
    moments = first(20_000, share(seed=1).scheduled_times(ArrivalRate(50.0, "poisson")))
    gaps = [b - a for a, b in itertools.pairwise([BEGIN, *moments])]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.03)


def test_a_seed_reproduces_poisson_arrivals_and_each_share_has_its_own():
    """A random run can be repeated, and processes do not send in step."""
    rate = ArrivalRate(50.0, "poisson")
    one = first(5, share(0, 2, seed=7).scheduled_times(rate))
    assert one == first(5, share(0, 2, seed=7).scheduled_times(rate))
    assert one != first(5, share(1, 2, seed=7).scheduled_times(rate))
    assert one != first(5, share(0, 2, seed=8).scheduled_times(rate))


@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_user_classes_share_a_rate_by_their_weight(kind):
    """Each arrival belongs to one class, and the shares hold from the beginning."""
    whole = first(40, share(seed=1).scheduled_times(ArrivalRate(10.0, kind)))
    of_class = [list(of_user_class(iter(whole), [3.0, 1.0], index)) for index in range(2)]
    assert [len(one) for one in of_class] == [30, 10]
    assert sorted(itertools.chain(*of_class)) == whole


@pytest.mark.parametrize("per_s", ["0", "nan", "-1", "1e9", "inf", "fast"])
def test_an_impossible_rate_is_refused_with_the_option_s_name(per_s):
    """Nothing, less than nothing, too much, and no number."""
    with pytest.raises(ConfigurationError, match=r"^--arrival-rate is .*; wanted "):
        ArrivalRate.parse(per_s)


def test_an_unknown_kind_is_refused():
    """The message lists the known ones."""
    with pytest.raises(ConfigurationError, match="constant, poisson"):
        ArrivalRate.parse("10", "uniform")


def test_users_are_distributed_without_a_rest():
    """The users of the shares add up to --max-users, and each share has one at least."""
    whole = Share(begin=BEGIN, since=BEGIN, max_users=10)
    assert [one.max_users for one in whole.split(3)] == [4, 3, 3]
    assert [one.max_users for one in Share(begin=0, since=0, max_users=1).split(2)] == [1, 1]


def test_a_worker_whose_clock_is_wrong_begins_as_long_after_the_message(monkeypatch):
    """A difference that a message's way can explain is not taken for a wrong clock."""
    clocks = iter([BEGIN, BEGIN + 0.2, BEGIN, BEGIN + 3600])  # the sender's, the receiver's
    monkeypatch.setattr(arrivals, "time", SimpleNamespace(time=lambda: next(clocks)))
    sent = Share(begin=BEGIN, since=BEGIN)
    assert Share.from_message(sent.to_message()) == sent
    assert Share.from_message(sent.to_message()).begin == BEGIN + 3600
