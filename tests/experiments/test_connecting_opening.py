"""When a pool opens its connections."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process

ROWS = ("0.6", "0.8", "1.9", "1.21", "2.3", "3.1", "4.15")


def verdicts_of(judgements):
    return {row: str(judgement.verdict) for row, judgement in judgements.items()}


def test_a_new_engine_has_no_connection_and_opens_them_by_demand(judged):
    """It opens one for each borrower, and keeps pool_size of them."""
    judgements = judged("when_connections_open", pool_size=3)
    assert verdicts_of(judgements) == {
        **dict.fromkeys(ROWS, "false"),
        "1.9": "depends",
        "3.1": "depends",
        "4.15": "true",
    }
    assert judgements["1.9"].measured == "0 open at the start, 3 after 6 were in use at once"


def test_a_pool_that_was_used_before_looks_as_the_texts_say(judged):
    """It has all of its connections from the start."""
    judgements = judged("when_connections_open", pool_size=3, max_overflow=0, prewarm=3)
    assert verdicts_of(judgements) == {
        **dict.fromkeys(ROWS, "true"),
        "3.1": "depends",
    }


def test_a_minimum_opens_connections_at_the_start(judged):
    """The pools of the drivers have one; a minimum of one connection is not several."""
    for minimum in (1, 2):
        judgement = judged("when_connections_open", pool_size=2, minconn=minimum)["3.1"]
        true = judgement.condition.split("; ")[0]
        assert judgement.verdict is Verdict.DEPENDS
        assert ("psycopg2 with minconn" in true) == (minimum == 2)
        assert "SQLAlchemy" not in true


def test_listeners_print_each_connection_that_is_opened(outcome_of):
    """In the order of what happens: the first use opens one, and overflow is closed on return."""
    outcome = outcome_of("pool_events")
    assert [row[1] for row in outcome.tables[0].rows] == [
        "opened, borrowed, returned",
        "borrowed, returned",
        "borrowed, opened, borrowed",
        "returned, returned, closed",
        "closed",
    ]
    verdicts = {judgement.row: judgement.verdict for judgement in outcome.judgements}
    assert verdicts == {"0.38": Verdict.TRUE, "0.39": Verdict.FALSE}


def test_listeners_that_come_late_miss_the_first_connection(judged):
    """Then the first use prints what the text has, and the count is wrong."""
    verdicts = judged("pool_events", attached_late=1)
    assert verdicts["0.38"].verdict is Verdict.FALSE
    assert verdicts["0.39"].verdict is Verdict.TRUE
