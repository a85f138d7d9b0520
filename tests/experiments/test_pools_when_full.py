"""What happens when more requests come than a pool has connections."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process

TRUE, FALSE, DEPENDS = Verdict.TRUE, Verdict.FALSE, Verdict.DEPENDS


def test_request_31_of_30_waits_and_gets_what_comes_back(judged):
    """Thirty connections are open, overflow among them; request 31 waits, or is refused."""
    verdicts = judged("one_too_many")
    assert {row: each.verdict for row, each in verdicts.items()} == {
        "0.18": TRUE,
        "0.19": TRUE,
        "0.20": DEPENDS,
        "1.12": TRUE,
        "1.13": TRUE,
        "1.14": TRUE,
        "4.5": DEPENDS,
    }
    assert verdicts["0.18"].measured == "30 open for 30 requests, 30 for 31"
    assert verdicts["4.5"].measured.startswith(
        "0 opened for a second crowd of 10, 20 for one of 30"
    )


def test_a_pool_with_more_overflow_serves_request_31_at_once(judged):
    """Below its limit the pool opens a connection: no wait, no error, and not the most yet."""
    verdicts = judged("one_too_many", max_overflow=30, timeout_s=0.4)
    assert verdicts["0.18"].verdict is FALSE
    assert verdicts["0.20"].verdict is FALSE
    assert verdicts["1.14"].verdict is FALSE


def test_a_pool_without_overflow_reuses_all_of_its_connections(judged):
    """Without overflow no connection is closed on return, so no crowd has to log in again."""
    verdicts = judged("one_too_many", max_overflow=0, requests=11, timeout_s=0.4)
    assert verdicts["4.5"].verdict is TRUE


def test_of_the_full_pools_only_those_of_psycopg2_do_not_wait(outcome_of):
    """psycopg2's refuses at once, QueuePool and psycopg_pool after a time, asyncpg's never."""
    outcome = outcome_of("full_pools")
    verdicts = {each.row: each.verdict for each in outcome.judgements}
    assert verdicts == {"3.12": FALSE, "4.37": TRUE}
    answers = {pool: answer for pool, answer, _ in outcome.tables[0].rows}
    assert answers == {
        "QueuePool": "TimeoutError",
        "psycopg2's pool": "PoolError",
        "psycopg_pool": "PoolTimeout",
        "asyncpg's pool": "TimeoutError",
        "asyncpg's, no timeout": "still waits",
    }


def test_a_queue_pool_with_overflow_is_not_full_yet(judged):
    """With overflow the sixth request is served, so not every pool makes it wait."""
    verdicts = judged("full_pools", max_overflow=10, timeout_s=0.3)
    assert verdicts["4.37"].verdict is DEPENDS
    assert "false for QueuePool" in verdicts["4.37"].condition


@pytest.mark.slow
def test_ten_threads_on_a_pool_of_five(outcome_of):
    """Five connections only without overflow; psycopg2's pool fails five threads."""
    outcome = outcome_of("ten_threads")
    verdicts = {each.row: each for each in outcome.judgements}
    assert {each.verdict for each in verdicts.values()} == {DEPENDS}
    assert verdicts["4.39"].condition.startswith("true for QueuePool;")
    assert verdicts["4.40"].condition.startswith("true for short queries;")
    assert verdicts["4.41"].condition.startswith("true for 20 threads at once;")
    figures = {row[0]: row[1:4] for row in outcome.tables[0].rows}
    assert figures == {
        "QueuePool": ("5", "10", "0"),
        "QueuePool, default overflow": ("10", "10", "0"),
        "psycopg2's pool": ("5", "5", "5"),
        "no pool": ("10", "10", "0"),
    }


@pytest.mark.alone
def test_five_threads_on_a_pool_of_five(judged):
    """As many threads as connections: each pool serves them, and none opens more."""
    assert judged("ten_threads", threads=5, hold_s=0.3)["4.39"].verdict is TRUE
