"""What MySQL does with connections that wait."""

import pytest
from processes import ROOT
from programs import needs_mariadb

from poolkit.experiment.outcome import Verdict

pytestmark = [
    pytest.mark.slow,
    needs_mariadb,
]


def test_recycling_and_a_ping_keep_queries_from_closed_connections(outcome_of):
    """Without either each query fails; recycling does not help after a restart, the ping does.

    The table of docs/mysql.md has the same numbers.
    """
    outcome = outcome_of("mysql_wait_timeout")
    assert {judgement.row: judgement.verdict for judgement in outcome.judgements} == {
        "1.17": Verdict.TRUE,
        "1.43": Verdict.TRUE,
    }
    (table,) = outcome.tables
    assert {name: (int(idle), int(ended)) for name, idle, ended in table.rows} == {
        "neither": (10, 10),
        "pool_recycle": (0, 10),
        "pool_pre_ping": (0, 0),
        "both": (0, 0),
        "poolkit's web preset": (0, 0),
    }
    page = (ROOT / "docs/mysql.md").read_text()
    for name, idle, ended in table.rows:
        assert f"| {name} | {idle} | {ended} |\n" in page


def test_recycling_later_than_the_server_s_limit_is_of_no_use(judged):
    """The claim is false for a pool_recycle that is longer than wait_timeout."""
    verdicts = judged("mysql_wait_timeout", pool_size=2, recycle_s=600)
    assert verdicts["1.17"].verdict is Verdict.FALSE
    assert verdicts["1.43"].verdict is Verdict.TRUE


def test_a_ping_does_not_protect_a_connection_that_is_checked_out(judged):
    """Both claims are about checkouts: one connection that waits in use fails in each way."""
    verdicts = judged("mysql_wait_timeout", pool_size=2, checked_out=1)
    assert verdicts["1.43"].verdict is Verdict.FALSE
    assert verdicts["1.17"].verdict is Verdict.FALSE
