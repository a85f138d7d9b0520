"""How the drivers' pools grow, shrink, recover and are shared by threads."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process

TRUE, FALSE, DEPENDS = Verdict.TRUE, Verdict.FALSE, Verdict.DEPENDS


@pytest.mark.slow
def test_the_lives_of_four_pools(outcome_of):
    """Which pools start full, keep what they opened, shrink later, and recover."""
    outcome = outcome_of("driver_pools")
    verdicts = {each.row: each for each in outcome.judgements}
    assert verdicts["3.10"].verdict is DEPENDS
    assert verdicts["3.10"].condition == "true for the start, the growth; false for the way back"
    assert verdicts["3.11"].verdict is FALSE
    (table,) = outcome.tables
    assert table.columns == ("", "psycopg2", "psycopg_pool", "asyncpg", "QueuePool")
    steps = {step: tuple(map(int, numbers)) for step, *numbers in table.rows}
    assert steps["made"] == (2, 2, 2, 0)
    assert steps["all lent"] == (10, 10, 10, 10)
    back = dict(zip(table.columns[1:], steps["given back"], strict=True))
    assert (back["psycopg2"], back["QueuePool"]) == (2, 2)
    assert min(back["psycopg_pool"], back["asyncpg"]) > 5
    assert max(steps["rested"]) < 6
    assert steps["failed queries"][:2] == (2, 2)
    assert steps["served again"][0] == 1


@pytest.mark.slow
def test_a_psycopg2_pool_with_equal_bounds_keeps_everything(judged):
    """With minconn=maxconn it closes nothing on return, and it still does not refill."""
    verdicts = judged("driver_pools", minconn=4, maxconn=4)
    assert verdicts["3.10"].verdict is TRUE
    assert verdicts["3.11"].verdict is FALSE


def test_a_psycopg2_pool_that_keeps_one_connection_is_full_again_after_its_loss(judged):
    """With minconn=1 the one connection that serves again is all that it should have."""
    assert judged("driver_pools", minconn=1, maxconn=3)["3.11"].verdict is TRUE


def test_a_psycopg2_pool_reuses_minconn_connections(outcome_of):
    """Beyond minconn each wave of requests connects again; psycopg_pool keeps what it opened."""
    outcome = outcome_of("psycopg2_pools")
    verdicts = {each.row: each for each in outcome.judgements}
    assert verdicts["3.9"].verdict is TRUE
    assert verdicts["3.8"].condition.startswith("true for waves of 2 requests;")
    assert verdicts["3.14"].condition == "true for psycopg_pool; false for psycopg2's pool"
    assert [row[-1] for row in outcome.tables[0].rows] == ["1", "2", "82", "10"]


def test_a_psycopg2_pool_as_large_as_its_waves_connects_once(judged):
    """With minconn=maxconn every connection is kept, so no wave opens any."""
    verdicts = judged("psycopg2_pools", minconn=6, maxconn=6)
    assert verdicts["3.8"].verdict is TRUE
    assert verdicts["3.14"].verdict is TRUE


def test_threads_exceed_the_limit_of_a_simple_connection_pool(outcome_of):
    """Without a lock they open more than maxconn; with one, those that come too late are refused."""
    outcome = outcome_of("sharing_psycopg2_pools")
    verdicts = {each.row: each for each in outcome.judgements}
    assert verdicts["3.6"].condition == "true for one thread; false for threads that share it"
    assert verdicts["3.13"].condition == (
        "true for ThreadedConnectionPool; false for SimpleConnectionPool"
    )
    assert verdicts["4.25"].condition == "true for 10 threads; false for 20 threads"
    assert outcome.tables[0].rows[1] == ("ThreadedConnectionPool", "10", "10")


def test_as_many_threads_as_maxconn_may_share_a_threaded_connection_pool(judged):
    """No thread is refused, and neither pool can exceed its limit."""
    verdicts = judged("sharing_psycopg2_pools", threads=10)
    assert {each.verdict for each in verdicts.values()} == {TRUE}
