"""How large a pool should be, measured and by the formulas."""

import os

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = [pytest.mark.process, pytest.mark.slow]
# Enough that queries which compute have to share the cores.
CLIENTS = min(80, max(24, 6 * (os.cpu_count() or 1)))


def test_the_formulas_are_littles_law_or_have_a_wrong_unit(judged):
    """Rate x time counts the connections in use; divided by a duration it is ten times too much."""
    verdicts = judged("sizing_formulas", clients=CLIENTS)
    assert verdicts["1.40"].verdict is Verdict.DEPENDS
    assert verdicts["1.40"].condition == (
        "true for requests/s x query, concurrent x query / request; "
        "false for requests/s x query / request"
    )
    assert verdicts["2.24"].verdict is Verdict.DEPENDS
    assert verdicts["2.24"].condition == (
        "true for queries that wait; false for queries that compute"
    )


def test_a_request_of_a_second_hides_the_wrong_unit(judged):
    """To divide by one second changes no number, and a wish below the real time stays a wish."""
    verdicts = judged(
        "sizing_formulas", clients=CLIENTS, elsewhere_ms=950, desired_ms=400, rounds=3
    )
    assert verdicts["1.40"].verdict is Verdict.TRUE
    assert verdicts["2.24"].verdict is Verdict.FALSE
