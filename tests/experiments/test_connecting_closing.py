"""When connections end: at their return, by age, by dispose(), and with their process."""

import pytest

pytestmark = pytest.mark.process


def verdicts_of(judgements):
    return {row: str(judgement.verdict) for row, judgement in judgements.items()}


def test_a_pool_closes_what_comes_back_to_a_full_pool(judged):
    """Whichever connection that is; and it opens new ones for the next burst."""
    judgements = judged("when_connections_close", pool_size=3, max_overflow=2, sessions=1000)
    assert verdicts_of(judgements) == {
        "0.33": "true",
        "0.32": "true",
        "0.21": "true",
        "1.11": "depends",
        "0.27": "depends",
        "0.28": "depends",
        "0.31": "false",
        "0.9": "depends",
    }
    assert judgements["1.11"].measured == "of 2, 2 stay open if they come back first, 0 if last"
    assert judgements["0.27"].measured.endswith("10 bursts 20")
    assert judgements["0.31"].measured == "after 1.5 s: 0 of 3 replaced; after a checkout: 1"


def test_other_conditions_change_what_is_true_of_closing(judged):
    """Few sessions prove nothing, one connection is all connections, and no overflow drops none."""
    verdicts = verdicts_of(
        judged("when_connections_close", pool_size=1, max_overflow=0, sessions=20)
    )
    assert verdicts["0.33"] == verdicts["0.21"] == "false"
    assert verdicts["0.31"] == "depends"
    assert verdicts["0.28"] == verdicts["0.27"] == "true"


def test_dispose_leaves_connections_that_are_in_use(judged):
    """They stay open after their return; a killed process leaves its query, a lost network all."""
    judgements = judged("when_a_process_ends")
    assert judgements["2.7"].measured.startswith("dispose() closed 2 of 3; 1 still open")
    assert judgements["2.7"].condition == (
        "true for closing idle connections; "
        "false for closing connections in use, returning them to the pool"
    )
    assert judgements["0.29"].condition == (
        "true for exit, kill -9; false for kill -9 in a query, a lost network"
    )


def test_a_server_that_looks_at_its_sockets_ends_a_killed_process_query(judged):
    """client_connection_check_interval does, and dispose() without a connection in use closes all."""
    judgements = judged("when_a_process_ends", in_use=0, check_interval_ms=100)
    assert judgements["2.7"].measured.startswith("dispose() closed 2 of 2; 0 still open")
    assert judgements["0.29"].condition == (
        "true for exit, kill -9, kill -9 in a query; false for a lost network"
    )
