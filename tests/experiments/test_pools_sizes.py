"""How large a pool should be, measured and by the formulas."""

import os

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process
# Enough that queries which compute have to share the cores.
CLIENTS = min(80, max(24, 6 * (os.cpu_count() or 1)))


@pytest.mark.slow
def test_the_formulas_are_littles_law_or_have_a_wrong_unit(judged):
    """Rate x time counts the connections in use; divided by a duration it is ten times too much."""
    verdicts = judged("sizing_formulas", clients=CLIENTS)
    assert verdicts["1.40"].verdict is Verdict.DEPENDS
    assert verdicts["1.40"].condition == (
        "true for requests/s x query, concurrent x query / request; "
        "false for requests/s x query / request"
    )
    assert verdicts["2.24"].verdict is Verdict.DEPENDS
    assert verdicts["2.24"].condition == (
        "true for queries that wait; false for queries that compute"
    )


@pytest.mark.slow
def test_a_request_of_a_second_hides_the_wrong_unit(judged):
    """To divide by one second changes no number, and a wish below the real time stays a wish."""
    verdicts = judged(
        "sizing_formulas", clients=CLIENTS, elsewhere_ms=950, desired_ms=400, rounds=3
    )
    assert verdicts["1.40"].verdict is Verdict.TRUE
    assert verdicts["2.24"].verdict is Verdict.FALSE


@pytest.mark.alone
def test_the_best_size_depends_on_what_queries_do(judged):
    """Queries that wait need a connection each; those that compute need a few for the cores."""
    verdicts = judged("pool_size", cores=2)
    assert {each.verdict for each in verdicts.values()} == {Verdict.DEPENDS}
    for row in ("1.10", "4.13"):
        assert "queries that wait" in verdicts[row].condition.partition("; false")[0]
        assert "queries that compute" in verdicts[row].condition.partition("; false")[2]
    assert verdicts["4.12"].condition == (
        "true for queries that compute; false for queries that wait"
    )


@pytest.mark.alone
def test_a_few_clients_need_a_small_pool(judged):
    """With fewer clients than connections, the rule is enough for any query, and 20 are no help."""
    verdicts = judged("pool_size", cores=2, clients=4)
    assert verdicts["4.12"].verdict is Verdict.TRUE
    assert verdicts["1.10"].verdict is Verdict.FALSE


@pytest.mark.alone
def test_the_default_pool_is_enough_for_some_loads(judged):
    """Not for many queries that wait: those need a larger pool."""
    verdicts = judged("default_pool")
    assert verdicts["1.46"].condition.endswith("; false for 40 clients with queries that wait")
    assert verdicts["1.52"].condition == (
        "true for queries that wait; false for queries that compute"
    )
    assert verdicts["2.27"].verdict is verdicts["3.27"].verdict is Verdict.TRUE


@pytest.mark.alone
def test_a_step_that_must_bring_much_ends_the_search_too_early(judged):
    """Twice the connections bring twice the throughput at the most, so the pool stays small."""
    verdicts = judged("default_pool", worth=4)
    assert verdicts["2.27"].verdict is not Verdict.TRUE


@pytest.mark.alone
def test_the_default_pool_is_enough_for_up_to_its_size(judged):
    """Twelve clients do not exhaust fifteen connections, so a larger pool is no help."""
    verdicts = judged("default_pool", many=12)
    assert verdicts["1.46"].verdict is Verdict.TRUE
    assert verdicts["1.52"].verdict is Verdict.FALSE
