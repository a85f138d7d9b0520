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
    assert verdicts["1.24"].verdict is Verdict.DEPENDS
    assert verdicts["1.24"].condition == (
        "true for connections held while frozen; false for latency"
    )
    assert verdicts["1.26"].verdict is Verdict.DEPENDS
    assert verdicts["1.33"].condition == (
        "true for a function timeout of 4 s; false for a function timeout of 1.2 s"
    )


@pytest.mark.slow
def test_an_execution_environment_of_one_invoke_needs_no_pool(judged):
    """The claims about short lives hold for one request in each process; a longer wait does not."""
    verdicts = judged("lambda_pools", environments=2, invokes_each=1, connect_timeout_s=6)
    assert verdicts["1.25"].verdict is Verdict.TRUE
    assert verdicts["1.26"].verdict is Verdict.TRUE
    assert verdicts["1.33"].verdict is Verdict.FALSE


def test_one_thread_needs_a_connection_and_threads_need_a_pool(judged):
    """A kept connection is as good as a pool for one thread, and a script connects once."""
    verdicts = judged("etl", documents=100)
    assert verdicts["3.15"].verdict is Verdict.FALSE
    assert verdicts["3.16"].verdict is Verdict.TRUE
    assert verdicts["3.20"].verdict is Verdict.TRUE
    assert verdicts["3.21"].condition == (
        "true for one kept connection; false for a connection for each query"
    )
    assert verdicts["3.23"].condition == "true for 8 threads; false for one thread"


def test_a_batch_job_of_many_connects_far_away_takes_as_long_as_is_said(judged):
    """Over 15 ms with TLS a connect takes about 100 ms, and a script with many pays it often."""
    verdicts = judged("etl", documents=40, rtt_ms=15, script=5)
    assert verdicts["3.15"].verdict is Verdict.DEPENDS
    assert verdicts["3.15"].condition == "true for 15 ms away; false for here"
    assert verdicts["3.20"].verdict is Verdict.FALSE
    assert verdicts["3.20"].measured.endswith("5 without a pool, 1 with one")


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
    assert verdicts["2.1"].condition == (
        "true for one event loop; false for 2 event loops with a pool each"
    )
    assert verdicts["2.5"].condition == (
        "true for 3 starts; false for an application that starts once"
    )
    assert "[20, 20, 20] with an engine of the lifespan, [20, 0, 0]" in verdicts["2.5"].measured
    assert verdicts["2.6"].verdict is Verdict.TRUE


def test_an_application_with_one_event_loop_may_keep_its_engine_anywhere(judged):
    """One start, one loop: a variable does what the lifespan and app.state do."""
    verdicts = judged("event_loops", starts=1, loops=1)
    assert verdicts["2.1"].verdict is Verdict.TRUE
    assert verdicts["2.5"].verdict is Verdict.FALSE
    assert verdicts["2.6"].verdict is Verdict.FALSE


def test_connections_of_psycopg_work_in_any_event_loop(judged):
    """Started again, an application finds psycopg's connections usable."""
    assert judged("event_loops", driver="psycopg")["2.5"].verdict is Verdict.FALSE
