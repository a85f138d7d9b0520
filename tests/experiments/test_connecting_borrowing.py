"""What a pool saves a request, and how fast it lends."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = [pytest.mark.process, pytest.mark.alone]


@pytest.mark.slow
def test_what_a_pool_saves_depends_on_the_distance_and_the_query(judged):
    """Never 10 times with a query of 5 ms; and 3 to 4 times with SELECT 1 over a distance."""
    verdicts = judged("connect_or_borrow")
    assert verdicts["0.7"].verdict is Verdict.TRUE
    assert verdicts["0.13"].verdict is Verdict.FALSE
    assert verdicts["0.14"].verdict is Verdict.FALSE
    assert verdicts["1.54"].condition == (
        "true for SELECT 1 across zones, SELECT 1 across regions; "
        "false for a query of 50 ms on loopback"
    )
    assert verdicts["3.3"].condition.startswith("true for cross-region; ")


@pytest.mark.slow
def test_a_pool_is_two_to_six_times_as_fast(judged):
    """The verdict follows the claimed ratio: 3 is right where 10 is wrong."""
    assert (
        judged("connect_or_borrow", claimed_ratio=3, connections=2)["0.13"].verdict is Verdict.TRUE
    )


@pytest.mark.slow
def test_a_long_query_hides_its_connect(judged):
    """A query of 200 ms makes the connect a small part, except between regions."""
    found = judged("connect_or_borrow", query_ms=200, connections=2, times=4)["0.7"]
    assert "loopback" in found.condition.partition("false for")[2]


def test_a_return_is_a_round_trip_and_a_checkout_is_none(judged):
    """Less than 1 ms near the server; a ROLLBACK's round trip far from it."""
    verdicts = judged("borrow_and_return")
    assert verdicts["0.15"].condition == "true for loopback; false for cross-az, cross-region"
    assert verdicts["3.7"].verdict is Verdict.TRUE


def test_getconn_of_a_pool_that_keeps_nothing_connects(judged):
    """With minconn=0 the pool closes what comes back, so each getconn is a connect."""
    assert judged("borrow_and_return", minconn=0, times=3)["3.7"].verdict is Verdict.FALSE
