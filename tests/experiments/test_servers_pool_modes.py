"""What survives in which mode of PgBouncer."""

import re

import pytest
from programs import needs_pgbouncer

from poolkit.experiment.outcome import Verdict

pytestmark = [
    pytest.mark.process,
    needs_pgbouncer,
]


def test_session_state_works_in_session_pooling_alone(outcome_of):
    """Each cell of the table, for each driver; and what the two claims make of it."""
    outcome = outcome_of("pool_modes")
    (table,) = outcome.tables
    cells = {(feature, driver): cells for feature, driver, *cells in table.rows}
    for driver in ("psycopg2", "psycopg", "asyncpg"):
        for state in ("SET", "temporary table", "advisory lock", "LISTEN", "PREPARE"):
            assert cells[state, driver] == ["works", "breaks, leaks", "breaks, leaks"]
        assert cells["BEGIN, SET LOCAL", driver] == ["works", "works", "breaks"]
    assert cells["query, driver prepares", "psycopg2"] == ["works", "works", "works"]
    assert {cells["query, driver prepares", driver][0] for driver in ("psycopg", "asyncpg")} == {
        "works"
    }
    verdicts = {judgement.row: judgement for judgement in outcome.judgements}
    assert verdicts["4.36"].verdict is Verdict.TRUE
    version = tuple(
        map(int, re.search(r"PgBouncer ([\d.]+)", verdicts["4.35"].measured)[1].split("."))
    )
    # PgBouncer repeats what drivers prepare from 1.21 on; by default from 1.24 on.
    expected = Verdict.TRUE if version < (1, 24) else Verdict.DEPENDS
    assert verdicts["4.35"].verdict is expected


def test_a_client_alone_finds_its_state_again(judged):
    """Without other clients all seems to work in transaction pooling; it leaks all the same."""
    verdicts = judged("pool_modes", in_turn=0)
    assert verdicts["4.35"].verdict is Verdict.FALSE
    assert verdicts["4.36"].verdict is Verdict.TRUE


def test_without_a_reset_query_session_pooling_leaks(judged):
    """What keeps the clients of session pooling apart is DISCARD ALL."""
    verdicts = judged("pool_modes", reset_query="")
    assert verdicts["4.36"].verdict is Verdict.FALSE


def test_transaction_pooling_gives_the_next_client_what_the_last_one_left(outcome_of):
    """Session pooling resets all of it; only what ends with a transaction is gone in both modes."""
    outcome = outcome_of("pgbouncer_resets")
    found = {name: cells for name, *cells in outcome.tables[0].rows}
    assert found.pop("variable (SET LOCAL)") == ["no", "no"]
    assert len(found) == 5
    assert all(cells == ["no", "yes"] for cells in found.values())
    (judgement,) = outcome.judgements
    assert judgement.condition == "true for session pooling; false for transaction pooling"
    assert outcome.notes == ()


@pytest.mark.parametrize(
    ("conditions", "verdict"),
    [({"reset_query": ""}, Verdict.FALSE), ({"always": 1}, Verdict.TRUE)],
)
def test_the_reset_query_decides_what_the_next_client_finds(judged, conditions, verdict):
    """Without it nothing is cleared; with server_reset_query_always it runs in each mode."""
    assert judged("pgbouncer_resets", **conditions)["4.24"].verdict is verdict


def test_each_mode_passes_a_server_connection_on_at_its_own_moment(outcome_of):
    """After the client, after a transaction, after a statement; with the state, if there is no reset."""
    outcome = outcome_of("pgbouncer_passes_on")
    assert outcome.tables[0].rows == (
        ("session", "waits", "waits", "nothing"),
        ("transaction", "served", "waits", "blue"),
        ("statement", "served", "BEGIN refused", "blue"),
    )
    assert [judgement.verdict for judgement in outcome.judgements] == [Verdict.TRUE, Verdict.TRUE]


def test_without_a_reset_query_the_next_client_finds_the_last_ones_session(judged):
    """The claim about session pooling stands and falls with server_reset_query."""
    verdicts = judged("pgbouncer_passes_on", reset_query="")
    assert verdicts["4.9"].verdict is Verdict.FALSE
    assert verdicts["4.11"].verdict is Verdict.TRUE
