"""An engine for each request, and a pool in each call."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process


def test_one_engine_opens_one_connection_for_all_iterations(judged):
    """An engine per iteration and NullPool open one for each, and all claims are true."""
    verdicts = judged("engine_per_request", iterations=20)
    assert {found.verdict for found in verdicts.values()} == {Verdict.TRUE}
    assert verdicts["1.22"].measured == "20 connections for 20 queries"
    assert "one engine: 1 connection(s), " in verdicts["1.6"].measured


def test_a_slow_query_hides_what_its_connect_costs(judged):
    """As many connections are opened, but the time of a query is no longer twice as long."""
    verdicts = judged("engine_per_request", iterations=3, query_ms=300)
    assert verdicts["1.49"].verdict is Verdict.FALSE
    assert verdicts["1.5"].verdict is Verdict.FALSE
    assert verdicts["1.22"].verdict is Verdict.TRUE
    assert verdicts["1.1"].condition == (
        "true for the number of connections; false for the time of a query"
    )


def test_a_pool_of_three_survives_three_unclosed_connections(judged):
    """The bad program of the second pair only fails on a pool that is smaller than what it takes."""
    verdicts = judged("engine_per_request", iterations=10, pool_size=3)
    assert verdicts["1.3"].condition == "true for no pooling; false for pool exhaustion"


def test_a_pool_in_each_call_costs_more_than_one_pool(judged):
    """Each call opens minconn connections; and the printed line does not run."""
    found = judged("pool_in_a_function", calls=5)["3.24"]
    assert found.verdict is Verdict.TRUE
    assert found.measured.startswith("a pool opens 5 connections")
    assert found.measured.endswith("raises UnboundLocalError")


def test_a_pool_in_each_call_does_not_matter_for_a_slow_query(judged):
    """The query then takes most of the time."""
    found = judged("pool_in_a_function", calls=3, query_ms=500, minconn=1)["3.24"]
    assert found.verdict is Verdict.FALSE
