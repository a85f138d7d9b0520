"""What becomes of connections that have died, and what the check costs."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process


@pytest.mark.slow
def test_a_ping_finds_what_the_server_has_ended(outcome_of):
    """A killed backend and a restart are found by each check, a black hole by the kit's ping alone."""
    outcome = outcome_of("stale_connections")
    (table,) = outcome.tables
    failed = {arm: [int(count) for count in counts] for arm, *counts in table.rows}
    killed, restarted, lost = failed["no check"]
    assert min(killed, restarted) > 0
    assert lost == 5
    assert failed["pool_pre_ping"] == failed["a poll alone"] == [0, 0, 5]
    assert failed["poll and idle ping"] == [0, 0, 0]
    verdicts = {judgement.row: judgement for judgement in outcome.judgements}
    assert verdicts["4.32"].verdict is Verdict.TRUE
    for row in ("0.30", "1.53"):
        assert verdicts[row].verdict is Verdict.DEPENDS
        assert verdicts[row].condition.endswith("false for black hole")
    assert verdicts["4.16"].condition.endswith(
        "false for pool_pre_ping (black hole), a poll alone (black hole)"
    )


def test_an_empty_pool_has_nothing_to_lose(judged):
    """Without pooled connections no request fails, with or without a check."""
    verdicts = judged("stale_connections", connections=0, requests=2)
    for row in ("0.30", "1.53", "4.32"):
        assert verdicts[row].verdict is Verdict.FALSE, row
    assert verdicts["4.16"].verdict is Verdict.TRUE


def test_recycling_in_time_and_a_ping_help_against_an_idle_limit(outcome_of):
    """Without either the first request fails, with the error of the claim."""
    outcome = outcome_of("idle_limit")
    failed = {arm: int(count) for arm, count in outcome.tables[0].rows}
    assert failed.pop("no check") > 0
    assert set(failed.values()) == {0}
    assert {judgement.verdict for judgement in outcome.judgements} == {Verdict.TRUE}
    assert "server closed the connection" in outcome.judgements[1].measured


def test_recycling_later_than_the_idle_limit_comes_too_late(judged):
    """pool_recycle has to be shorter than the server's limit, which a ping need not know."""
    verdicts = judged("idle_limit", recycle_s=600)
    assert verdicts["1.16"].verdict is Verdict.FALSE
    assert verdicts["2.20"].condition == "true for pool_pre_ping; false for pool_recycle"


def test_a_ping_costs_a_round_trip(outcome_of):
    """It is a third of a request with one query, and little of a request with ten."""
    outcome = outcome_of("ping_cost", rtt_ms=20, times=20)
    rows = {arm: [float(cell) for cell in cells] for arm, *cells in outcome.tables[0].rows}
    assert [rows[arm][:2] for arm in ("no check", "pool_pre_ping")] == [[3, 12], [4, 13]]
    # The poll of poolkit's preset is none, but after a pause it pings.
    assert rows["poolkit"][0] < 3.5
    assert rows["poolkit"][1] < 12.5
    assert rows["pool_pre_ping"][3] > 18
    assert rows["poolkit"][3] < 10
    verdicts = {judgement.row: judgement for judgement in outcome.judgements}
    assert verdicts["1.19"].condition == (
        "true for requests with queries: 10; false for requests with queries: 1"
    )
    assert verdicts["1.18"].condition == "true for psycopg2; false for psycopg"


def test_a_ping_is_never_little_for_requests_of_one_or_two_queries(judged):
    """What it costs depends on the work that follows."""
    verdicts = judged("ping_cost", times=5, queries=2)
    assert verdicts["1.19"].verdict is Verdict.FALSE
