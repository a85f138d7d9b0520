"""When FastAPI gives connections back, and what may be read of rows afterwards."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process


def test_a_dependency_holds_its_connection_through_the_response(outcome_of):
    """And commits after it, so that a client hears of success; with scope="function" it does not."""
    outcome = outcome_of("when_fastapi_gives_back")
    (table,) = outcome.tables
    assert [row[1:] for row in table.rows] == [("1", "201"), ("0", "500"), ("0", "500")]
    verdicts = {judgement.row: judgement for judgement in outcome.judgements}
    assert verdicts["0.22"].condition == ('true for scope="function"; false for scope="request"')
    assert verdicts["2.11"].condition == ('true for scope="request"; false for scope="function"')


def test_a_dependency_of_the_function_ends_before_the_response(judged):
    """With it in all arms, one text is right and the other wrong."""
    verdicts = judged("when_fastapi_gives_back", scope="function")
    assert verdicts["0.22"].verdict is Verdict.TRUE
    assert verdicts["2.11"].verdict is Verdict.FALSE


def test_rows_of_an_async_session_cannot_be_read_after_a_commit(judged):
    """Rows of a Session can, by a query more; related rows cannot be loaded without a session."""
    verdicts = judged("rows_after_their_session")
    assert verdicts["2.8"].condition == "true for AsyncSession; false for Session"
    assert "MissingGreenlet with the default, Ada without" in verdicts["2.8"].measured
    assert verdicts["1.31"].condition == "true for the rows; false for their related rows"


def test_rows_that_were_loaded_in_time_can_be_read(judged):
    """A refresh replaces expire_on_commit=False, and an eager load the session."""
    verdicts = judged("rows_after_their_session", refresh=1, load="eager")
    assert verdicts["2.8"].verdict is Verdict.FALSE
    assert verdicts["1.31"].verdict is Verdict.TRUE
