"""Machines that lack a program which an experiment needs: a developer's, and one of CI."""

import pytest
from poolkit_command import run_here
from programs import needs

from poolkit.experiment.experiment import find_experiments
from poolkit.local import pgbouncer

MESSAGES = {
    "pgbouncer": "not run: needs PgBouncer (apt-get install pgbouncer)",
    "mariadb": "not run: needs MariaDB (apt-get install mariadb-server)",
    "mongodb": "not run: needs MongoDB (mongod on PATH, or --mongodb-url)",
}
CASES = [
    (name, MESSAGES[need])
    for name, experiment in find_experiments().items()
    for need in experiment.needs
    if need in MESSAGES
]


@pytest.mark.parametrize(("name", "message"), CASES)
def test_an_experiment_without_its_program_is_not_run(name, message, monkeypatch, tmp_path):
    """It names the program and its package, starts nothing, and exits with 3."""
    monkeypatch.setattr(pgbouncer, "_MORE_PLACES", str(tmp_path))
    answer = run_here("experiment", name, PATH=str(tmp_path))
    assert answer.returncode == 3, answer.stderr
    assert message in answer.stdout
    assert "starting" not in answer.stderr


def test_each_program_has_an_experiment_that_needs_it():
    """The cases above cover all three."""
    assert {message for _, message in CASES} == set(MESSAGES.values())


def test_in_ci_a_test_without_its_program_is_not_skipped(monkeypatch):
    """It runs and fails, so a package that CI no longer installs is noticed."""
    monkeypatch.delenv("CI", raising=False)
    assert needs(None, "no program").args == (True,)
    assert needs("/usr/bin/program", "no program").args == (False,)
    monkeypatch.setenv("CI", "true")
    assert needs(None, "no program").args == (False,)
