"""The memory of a connection on the server."""

import sys

import pytest

from poolkit.experiment.experiment import find_experiments
from poolkit.experiment.outcome import Verdict
from poolkit.experiment.run import Options, missing

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def test_an_idle_connection_takes_far_less_than_ten_megabytes(outcome_of):
    """What it keeps makes it large: the plans of statements, and the tables that it used."""
    outcome = outcome_of("memory_per_backend")
    verdicts = {found.row: found for found in outcome.judgements}
    assert verdicts["4.2"].condition.startswith("true for 1000 tables used; false for idle, ")
    assert verdicts["3.4"].verdict is Verdict.TRUE
    assert verdicts["4.21"].verdict is Verdict.TRUE
    own = {work: float(mb) for work, mb, _ in outcome.tables[0].rows}
    assert 0.5 < own["idle"] < 3
    assert own["after a sort"] < own["in a sort"] / 3
    assert own["500 prepared statements"] > 8 * own["idle"]


def test_a_pool_as_large_as_its_clients_saves_no_memory(judged):
    """And a session that has used few tables never reaches 10 MB for them."""
    verdicts = judged("memory_per_backend", clients=8, pool_size=8, tables=20, statements=5)
    assert verdicts["4.21"].verdict is Verdict.FALSE
    assert verdicts["4.2"].verdict is Verdict.FALSE


def test_another_system_than_linux_is_told_what_the_experiment_needs(monkeypatch):
    """There is no /proc elsewhere, so the experiment is not run."""
    found = find_experiments()["memory_per_backend"]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert missing(found, Options(command="")) == "needs Linux (it reads /proc)"
