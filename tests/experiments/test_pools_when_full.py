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
        "1.14": TRUE,
    }
    assert verdicts["0.18"].measured == "30 open for 30 requests, 30 for 31"


def test_a_pool_with_more_overflow_serves_request_31_at_once(judged):
    """Below its limit the pool opens a connection: no wait, no error, and not the most yet."""
    verdicts = judged("one_too_many", max_overflow=30, timeout_s=0.4)
    assert verdicts["0.18"].verdict is FALSE
    assert verdicts["0.20"].verdict is FALSE
    assert verdicts["1.14"].verdict is FALSE


def test_a_crowd_beyond_pool_size_logs_in_again(judged):
    """Sizes add up to the limit, and a second crowd finds pool_size connections at the most."""
    verdicts = judged("overflow")
    assert verdicts["1.12"].verdict is verdicts["1.13"].verdict is TRUE
    assert verdicts["4.5"].verdict is DEPENDS
    assert verdicts["4.5"].measured == (
        "0 opened for a second crowd of 10, 20 opened for a second crowd of 30"
    )


def test_a_pool_without_overflow_reuses_all_of_its_connections(judged):
    """Without overflow no connection is closed on return, so no crowd has to log in again."""
    assert judged("overflow", max_overflow=0)["4.5"].verdict is TRUE


def test_a_few_requests_do_not_reach_the_limit(judged):
    """Twelve requests open twelve connections, where fifteen are allowed."""
    assert judged("overflow", requests=12)["1.12"].verdict is FALSE


def test_of_the_full_pools_only_those_of_psycopg2_do_not_wait(outcome_of):
    """psycopg2's refuses at once, QueuePool and psycopg_pool after a time, asyncpg's never."""
    outcome = outcome_of("full_pools")
    verdicts = {each.row: each.verdict for each in outcome.judgements}
    assert verdicts == {"3.12": FALSE, "4.37": TRUE}
    answers = {pool: (alone, helped) for pool, alone, _, helped in outcome.tables[0].rows}
    assert answers == {
        "QueuePool": ("TimeoutError", "served"),
        "psycopg2's pool": ("PoolError", "PoolError"),
        "psycopg_pool": ("PoolTimeout", "served"),
        "asyncpg's pool": ("TimeoutError", "served"),
        "asyncpg's, no timeout": ("still waits", "served"),
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


def test_a_pool_above_the_servers_limit_fails_when_it_grows(judged):
    """One request is served. Of twenty the server refuses those beyond its seven free slots."""
    judgement = judged("above_max_connections")["4.41"]
    assert judgement.condition == "true for 20 requests at once; false for one request"
    assert "13 of 20 requests failed" in judgement.measured


def test_a_server_with_more_room_than_pool_size_refuses_no_request(judged):
    """Twenty connections fit into a server of forty, so pool_size is not above its limit."""
    assert judged("above_max_connections", max_connections=40)["4.41"].verdict is FALSE
