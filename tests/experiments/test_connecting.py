"""When connections open, and what a connect costs."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process


def test_a_pool_opens_its_connections_when_they_are_needed(judged):
    """None at the start, and no more than were in use at once."""
    verdicts = judged("when_connections_open", pool_size=3)
    assert verdicts["0.8"].verdict is Verdict.FALSE
    assert verdicts["0.8"].measured == "0 open after create_engine, 1 after the first query"


def test_a_prewarmed_pool_is_full_from_the_start(judged):
    """The claim becomes true for an engine that was asked for all of its connections at once."""
    verdicts = judged("when_connections_open", pool_size=3, prewarm=3)
    assert verdicts["0.8"].verdict is Verdict.TRUE
    assert verdicts["0.6"].verdict is Verdict.TRUE
