"""Pools where the application is deployed: Lambda, batch jobs, forks, event loops."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = [pytest.mark.process]


@pytest.mark.slow
def test_a_frozen_execution_environment_keeps_its_connection(judged):
    """The same connection serves every invoke, and NullPool holds none while frozen."""
    verdicts = judged("lambda_pools", environments=2)
    assert verdicts["1.25"].verdict is Verdict.FALSE
    assert verdicts["1.25"].measured.startswith("2 connections served 20 invokes")
    assert verdicts["1.24"].condition == (
        "true for connections held while frozen; false for latency"
    )
    assert verdicts["1.26"].condition == (
        "true for one unit of work in a process; false for 10 units of work"
    )


@pytest.mark.slow
def test_an_execution_environment_of_one_invoke_needs_no_pool(judged):
    """The claims about short lives hold for one request in each process."""
    verdicts = judged("lambda_pools", environments=2, invokes_each=1)
    assert verdicts["1.25"].verdict is Verdict.TRUE
    assert verdicts["1.26"].verdict is Verdict.TRUE


def test_a_function_needs_a_connect_timeout_below_its_own_limit(judged):
    """Then its handler gets an exception; otherwise Lambda ends it."""
    verdict = judged("lambda_connect_timeout")["1.33"]
    assert verdict.condition == (
        "true for a time limit of 10 s; false for Lambda's default limit of 3 s"
    )
    assert verdict.measured.endswith("without connect_timeout: ended by Lambda")


def test_a_connect_timeout_above_every_limit_is_of_no_use(judged):
    """Lambda ends the functions first."""
    verdict = judged("lambda_connect_timeout", connect_timeout_s=30, limit_s=2)["1.33"]
    assert verdict.verdict is Verdict.FALSE


def test_one_thread_needs_a_connection_and_threads_need_a_pool(judged):
    """A kept connection is as good as a pool for one thread, and threads share a pool."""
    verdicts = judged("etl", documents=100)
    assert verdicts["3.15"].verdict is Verdict.FALSE
    assert verdicts["3.16"].verdict is Verdict.TRUE
    assert verdicts["3.23"].condition == "true for 8 threads; false for one thread"


def test_a_batch_job_of_many_connects_far_away_takes_as_long_as_is_said(judged):
    """Over 15 ms with TLS a connect takes about 100 ms."""
    verdicts = judged("etl", documents=40, rtt_ms=15)
    assert verdicts["3.15"].condition == "true for 15 ms away; false for here"


def test_a_script_needs_no_pool_if_it_keeps_its_connection(judged):
    """One unit of work connects once either way; more need a kept connection, not a pool."""
    verdicts = judged("script_without_pool")
    assert verdicts["3.20"].verdict is Verdict.TRUE
    assert verdicts["3.21"].condition == (
        "true for one kept connection; false for a connection for each query"
    )


def test_a_script_with_many_units_of_work_gains_from_a_pool(judged):
    """Without one it opens as many connections as it does units of work."""
    verdict = judged("script_without_pool", units=5)["3.20"]
    assert verdict.verdict is Verdict.FALSE
    assert "5 without a pool, 1 with one" in verdict.measured


def test_a_script_with_one_query_may_connect_for_it(judged):
    """There is nothing to use again."""
    assert judged("script_without_pool", queries=1)["3.21"].verdict is Verdict.TRUE


def test_children_that_share_a_connection_read_each_others_answers(judged):
    """Four children break it; one alone does not; `dispose(close=False)` is right for all."""
    verdict = judged("forks")["1.56"]
    assert verdict.verdict is Verdict.DEPENDS
    assert verdict.condition == (
        "true for the parent's engine, one child; false for the parent's engine, 4 children"
    )
    assert verdict.measured.endswith(
        "alive: the parent's engine, one child, engine.dispose(close=False) in each child, "
        "a new engine in each child"
    )


def test_one_child_at_a_time_may_use_the_parents_engine(judged):
    """As nothing else uses the socket meanwhile, each answer reaches its query."""
    verdict = judged("forks", children=1, queries=10)["1.56"]
    assert verdict.verdict is Verdict.TRUE


def test_an_engine_of_asyncpg_belongs_to_one_event_loop(judged):
    """The second loop cannot use what the first left, and two at once break each other."""
    verdicts = judged("event_loops")
    assert verdicts["2.5"].condition == (
        "true for the requests of all starts, what stays open; "
        "false for the requests of the first start"
    )
    assert "[20, 20, 20] with an engine of the lifespan, [20, 0, 0]" in verdicts["2.5"].measured
    assert verdicts["2.6"].verdict is Verdict.TRUE


def test_an_application_with_one_event_loop_may_keep_its_engine_anywhere(judged):
    """One start, one loop: a variable does what the lifespan and app.state do."""
    verdicts = judged("event_loops", starts=1, loops=1)
    assert verdicts["2.5"].condition.startswith("true for what stays open; false for")
    assert verdicts["2.6"].verdict is Verdict.FALSE


def test_connections_of_psycopg_work_in_any_event_loop(judged):
    """Started again, an application finds psycopg's connections usable."""
    verdict = judged("event_loops", driver="psycopg")["2.5"]
    assert verdict.condition.startswith("true for what stays open; false for")
    assert "[20, 20, 20] with one of the module" in verdict.measured


def test_a_pool_limits_the_connections_of_its_own_event_loop(judged):
    """Each further loop adds a pool of its own; with one loop the claim is true."""
    assert judged("pool_for_each_loop")["2.1"].condition == (
        "true for one event loop; false for 3 event loops with a pool each"
    )
    assert judged("pool_for_each_loop", loops=1)["2.1"].verdict is Verdict.TRUE
