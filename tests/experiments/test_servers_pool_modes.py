"""What survives in which mode of PgBouncer."""

import pytest

from poolkit.experiment.outcome import Verdict
from poolkit.local.pgbouncer import find_pgbouncer

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(find_pgbouncer() is None, reason="no pgbouncer on PATH"),
]


def _cells(outcome):
    """Return what the table says, by feature, driver and mode."""
    (table,) = outcome.tables
    return {
        (feature, driver, mode): cell
        for feature, drivers, *cells in table.rows
        for driver in (("psycopg2", "psycopg", "asyncpg") if drivers == "all" else (drivers,))
        for mode, cell in zip(table.columns[2:], cells, strict=True)
    }


def test_session_state_works_in_session_pooling_alone(outcome_of):
    """Each cell of the table, for each driver; and what the three claims make of it."""
    outcome = outcome_of("pool_modes")
    cells = _cells(outcome)
    for driver in ("psycopg2", "psycopg", "asyncpg"):
        for state in ("SET", "temporary table", "advisory lock", "LISTEN", "PREPARE"):
            assert cells[state, driver, "session"] == "works"
            assert cells[state, driver, "transaction"] == "breaks, leaks"
            assert cells[state, driver, "statement"] == "breaks, leaks"
        assert cells["BEGIN, SET LOCAL", driver, "transaction"] == "works"
        assert cells["BEGIN, SET LOCAL", driver, "statement"] == "breaks"
    assert cells["query, driver prepares", "psycopg2", "transaction"] == "works"
    verdicts = {judgement.row: judgement for judgement in outcome.judgements}
    assert verdicts["4.24"].verdict is Verdict.DEPENDS
    assert verdicts["4.24"].condition.startswith("true for session pooling;")
    assert verdicts["4.36"].verdict is Verdict.TRUE
    (note,) = outcome.notes
    version = tuple(map(int, note.rstrip(".").split()[-1].split(".")))
    # PgBouncer repeats what drivers prepare from 1.21 on; by default from 1.24 on.
    expected = Verdict.TRUE if version < (1, 24) else Verdict.DEPENDS
    assert verdicts["4.35"].verdict is expected


def test_a_client_alone_finds_its_state_again(judged):
    """Without other clients all seems to work in transaction pooling; it leaks all the same."""
    verdicts = judged("pool_modes", busy=0)
    assert verdicts["4.35"].verdict is Verdict.FALSE
    assert verdicts["4.24"].verdict is Verdict.DEPENDS


def test_without_a_reset_query_session_pooling_leaks(judged):
    """What keeps the clients of session pooling apart is DISCARD ALL."""
    verdicts = judged("pool_modes", reset_query="")
    assert verdicts["4.24"].verdict is Verdict.FALSE
    assert verdicts["4.36"].verdict is Verdict.FALSE


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
