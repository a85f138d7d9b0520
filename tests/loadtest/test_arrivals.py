"""The moments at which tasks are scheduled."""

import dataclasses
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
    times = share().scheduled_times(ArrivalRate.constant(per_s))
    last = next(itertools.islice(times, 1_000_000, None))
    assert last == pytest.approx(BEGIN + 1_000_000 / per_s, abs=1e-6)


@pytest.mark.parametrize("of", [2, 3, 4])
def test_the_shares_of_a_constant_rate_are_together_that_rate(of):
    """Every arrival of the whole is in exactly one share."""
    rate = ArrivalRate.constant(30.0)
    whole = first(of * 20, share().scheduled_times(rate))
    shares = [first(20, share(i, of).scheduled_times(rate)) for i in range(of)]
    assert sorted(itertools.chain(*shares)) == whole


@pytest.mark.parametrize("passed", [0.0, 0.5, 1.0, 7 / 30, 100.0, 100.0001])
def test_a_new_distribution_goes_on_in_the_same_beat(passed):
    """Until a moment two shares, from then on three: no arrival is missed or doubled."""
    rate, since = ArrivalRate.constant(30.0), BEGIN + passed
    before = [until(since, share(i, 2).scheduled_times(rate)) for i in range(2)]
    after = [first(10, share(i, 3, since=since).scheduled_times(rate)) for i in range(3)]
    together = sorted(itertools.chain(*before, *after))
    assert together == first(len(together), share().scheduled_times(rate))


def test_poisson_arrivals_have_the_rate_and_are_independent():
    """The gaps have the mean of an exponential distribution, and its standard deviation."""
    moments = first(20_000, share(seed=1).scheduled_times(ArrivalRate.constant(50.0, "poisson")))
    gaps = [b - a for a, b in itertools.pairwise([BEGIN, *moments])]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.03)


def test_a_seed_reproduces_poisson_arrivals_and_each_share_has_its_own():
    """A random run can be repeated, and processes do not send in step."""
    rate = ArrivalRate.constant(50.0, "poisson")
    one = first(5, share(0, 2, seed=7).scheduled_times(rate))
    assert one == first(5, share(0, 2, seed=7).scheduled_times(rate))
    assert one != first(5, share(1, 2, seed=7).scheduled_times(rate))
    assert one != first(5, share(0, 2, seed=8).scheduled_times(rate))


@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_user_classes_share_a_rate_by_their_weight(kind):
    """Each arrival belongs to one class, and the shares hold from the beginning."""
    whole = first(40, share(seed=1).scheduled_times(ArrivalRate.constant(10.0, kind)))
    of_class = [list(of_user_class(iter(whole), [3.0, 1.0], index)) for index in range(2)]
    assert [len(one) for one in of_class] == [30, 10]
    assert sorted(itertools.chain(*of_class)) == whole


def ends(text, kind="constant"):
    return dataclasses.replace(ArrivalRate.parse(text, kind), ends=True)


@pytest.mark.parametrize(
    ("text", "arrivals"),
    [("10..200/5m", 31_500), ("50/1m,50..200/5m,200/2m", 64_500), ("0..3/2s,0/9s,8..0/1s", 7)],
)
def test_the_number_of_arrivals_is_the_integral_of_the_rate(text, arrivals):
    """Of a ramp, of stages and of pauses, exactly; and all of them before the end."""
    rate = ends(text)
    moments = list(share().scheduled_times(rate))
    assert len(moments) == arrivals
    assert moments[-1] < BEGIN + rate.seconds


def test_a_ramp_is_linear():
    """At half of its time, a quarter of the arrivals of a ramp from 0 have come."""
    moments = list(share().scheduled_times(ends("0..100/1m")))
    assert sum(one < BEGIN + 30 for one in moments) == 750
    assert ArrivalRate.parse("10..200/5m").at(150) == 105


def test_nothing_arrives_in_a_pause():
    """The arrival that is next waits for the end of the pause."""
    moments = list(share().scheduled_times(ends("0/10s,2/1s,0/1m,2/1s")))
    assert moments == [BEGIN + 10, BEGIN + 10.5, BEGIN + 71, BEGIN + 71.5]


def test_the_last_rate_goes_on_in_a_longer_run():
    """Stages that do not end the run leave their last rate."""
    moments = first(43, share().scheduled_times(ArrivalRate.parse("10/1s,4/2s")))
    assert moments[-1] == BEGIN + 1 + 32 / 4


@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_the_shares_of_a_ramp_are_together_that_ramp(kind):
    """Also if workers join in the middle of it."""
    rate, since = ends("5..100/20s", kind), BEGIN + 7.3
    before = [until(since, share(i, 2).scheduled_times(rate)) for i in range(2)]
    after = [list(share(i, 3, since=since).scheduled_times(rate)) for i in range(3)]
    together = sorted(itertools.chain(*before, *after))
    if kind == "constant":
        assert together == list(share().scheduled_times(rate))
    assert len(together) == pytest.approx(1050, abs=150)


def test_poisson_arrivals_of_a_ramp_are_as_random_as_those_of_a_constant_rate():
    """By the integral, the gaps are exponentially distributed with a mean of 1."""
    rate = ends("10..500/40s", "poisson")
    moments = list(share(seed=2).scheduled_times(rate))
    reached = [0.0, *(rate.arrivals(one - BEGIN) for one in moments)]
    gaps = [b - a for a, b in itertools.pairwise(reached)]
    assert statistics.mean(gaps) == pytest.approx(1, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("of", [1, 2])
def test_a_rate_that_changes_every_second_keeps_its_sum(of):
    """1.5 arrivals a second for 60 s are 90, not 120: what a second leaves over is not lost."""
    rate = ArrivalRate.constant(1.5)
    whole, found = share(), []
    for second in range(60):
        parts = whole.split(of)
        found += [until(BEGIN + second + 1, part.scheduled_times(rate)) for part in parts]
        whole = whole.changed(rate, BEGIN + second + 1)
    assert len(sorted(itertools.chain(*found))) == 90


def test_a_changing_rate_does_not_begin_with_the_same_class_each_time():
    """One arrival a second goes to two classes in turn, though the rate is set again each second."""
    whole, rate, chosen = share(), ArrivalRate.constant(1.0), []
    for second in range(10):
        moments = until(BEGIN + second + 1, whole.scheduled_times(rate))
        for index in range(2):
            found = of_user_class(iter(moments), [1.0, 1.0], index, whole.number)
            chosen += [index for _ in found]
        whole = whole.changed(rate, BEGIN + second + 1)
    assert chosen == [0, 1] * 5


def test_a_rate_goes_to_workers_as_it_is():
    """Through a message, and as a text."""
    rate = ends("10..200/5m,200/90s,0/30s", "poisson")
    assert ArrivalRate.from_message(rate.to_message()) == rate
    assert str(rate) == "10..200/5m,200/90s,0/30s"
    assert ends(str(rate), "poisson") == rate


@pytest.mark.parametrize(
    "text",
    [
        "10..200",
        "50,60/1m",
        "50/1m,",
        "50/s",
        "50/0s",
        "50/1x",
        "..5/1m",
        "0/1m,0",
        "5..-1/1m",
        "5-9/1m",
    ],
)
def test_wrong_stages_are_refused_with_the_option_s_name(text):
    """A ramp without a duration, a stage that never ends before another, and no rate at all."""
    with pytest.raises(ConfigurationError, match=r"^--arrival-rate is "):
        ArrivalRate.parse(text)


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
