"""How requests at once share threads and connections."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process


@pytest.mark.slow
def test_requests_stand_still_that_hold_one_thing_and_wait_for_another(outcome_of):
    """All 40 threads wait for connections, whose requests wait for threads, and more do not help."""
    outcome = outcome_of("threads_and_connections")
    verdicts = {judgement.row: judgement for judgement in outcome.judgements}
    assert verdicts["2.19"].condition == (
        "true for a long query, two connections; false for a short query"
    )
    assert verdicts["1.37"].condition == ("true for a commit; false for a pool of 20 + 20")
    (table,) = outcome.tables
    failed = {(need, pool): int(count) for need, pool, count, _ in table.rows}
    assert failed["two threads, turns", "15"] < failed["two threads", "15"]
    assert failed["two threads", "15"] >= 30
    assert failed["two threads", "40"] >= 30


def test_few_requests_need_few_connections(judged):
    """Five serve four requests, whatever these do, so nothing has to be cured."""
    verdicts = judged("threads_and_connections", requests=4)
    assert verdicts["2.19"].verdict is Verdict.FALSE
    assert verdicts["1.37"].verdict is Verdict.TRUE
