"""Which connections go idle, and when old ones are replaced."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process

TRUE, FALSE, DEPENDS = Verdict.TRUE, Verdict.FALSE, Verdict.DEPENDS


@pytest.mark.alone
def test_last_in_first_out_lets_connections_go_idle(outcome_of):
    """The server's idle limit closes the connections of a LIFO pool, not those of a FIFO pool."""
    outcome = outcome_of("idle_connections")
    (judgement,) = outcome.judgements
    assert judgement.verdict is DEPENDS
    assert judgement.condition == "true for FIFO; false for LIFO"
    (table,) = outcome.tables
    fifo, lifo, unchecked = (tuple(map(int, row[1:])) for row in table.rows)
    assert fifo == (10, 10, 0)
    assert lifo == (1, 1, 0)
    assert unchecked[:2] == (1, 1)
    assert unchecked[2] >= 1, "a closed connection was noticed by a query"


def test_without_an_idle_limit_all_connections_stay(judged):
    """PostgreSQL's default closes none, and no pool of SQLAlchemy does, whatever the order."""
    assert judged("idle_connections", idle_rounds=0)["0.9"].verdict is TRUE


@pytest.mark.slow
def test_recycling_helps_below_the_limit_that_closes_idle_connections(outcome_of):
    """Each setting fails after the pauses between an idle limit and its own age; a ping never."""
    outcome = outcome_of("recycle")
    verdicts = {each.row: each for each in outcome.judgements}
    assert verdicts["1.55"].verdict is DEPENDS
    assert verdicts["1.55"].condition.startswith("true for an idle limit of 90 min;")
    assert verdicts["1.30"].verdict is TRUE
    assert verdicts["1.32"].verdict is DEPENDS
    (table,) = outcome.tables
    failed = {row[0]: tuple(map(int, row[1:4])) for row in table.rows}
    # On a busy machine the shortest pause takes longer than 900 s do here.
    assert failed["900"][1:] == (0, 0)
    assert failed["1800"] == (1, 0, 0)
    assert failed["3600"] == (2, 1, 0)
    assert failed["never"] == (3, 2, 1)
    assert all(failed[f"{age} with pool_pre_ping=True"] == (0, 0, 0) for age in (1800, 3600))
    reconnects = [int(row[4]) for row in table.rows[:4]]
    assert reconnects == sorted(reconnects, reverse=True)
    assert reconnects[-1] == 0


@pytest.mark.slow
def test_without_a_ping_web_applications_meet_closed_connections(judged):
    """The reliability of the web settings is the ping's, not that of pool_recycle=3600."""
    verdicts = judged("recycle", pre_ping=0)
    assert verdicts["1.30"].verdict is FALSE
    assert verdicts["1.32"].verdict is TRUE


@pytest.mark.slow
def test_a_fleet_reconnects_together_unless_ages_have_jitter(judged):
    """Connections of one age are replaced in one moment; jitter spreads that; idle ones stay."""
    judgement = judged("recycle_together")["0.31"]
    assert judgement.verdict is DEPENDS
    assert judgement.condition == (
        "true for busy connections of the same age; false for busy ones with 25% jitter, idle ones"
    )


@pytest.mark.slow
def test_a_fleet_without_jitter_reconnects_together_with_the_preset_too(judged):
    """It is the jitter that spreads the reconnects, not another part of the preset."""
    judgement = judged("recycle_together", jitter=0.0)["0.31"]
    assert judgement.condition.endswith("; false for idle ones")
