"""What the lab promises to experiments, beyond what their own verdicts show."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql

from poolkit.errors import ConfigurationError, DatabaseUnavailable
from poolkit.experiment.experiment import Experiment, find_experiments
from poolkit.experiment.ground import ForeignGround, Ground, PrivateGround
from poolkit.experiment.lab import Lab
from poolkit.experiment.outcome import Outcome, Status
from poolkit.experiment.run import Options, run_one
from poolkit.local.distance import Distance
from poolkit.local.postgres import EmbeddedPostgres

pytestmark = pytest.mark.process


@pytest.fixture
def lab_over_tls(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Lab]:
    """A lab whose database is reached with TLS, as after --tls."""
    distance = Distance(tls=True)
    with PrivateGround(postgres, distance).place("lab") as place:
        yield Lab(place, folder=tmp_path, distance=distance, say=print)


@pytest.mark.parametrize("tls", [False, True])
def test_a_network_records_what_passes_whatever_the_distance_behind_it(lab_over_tls, tls):
    """What a driver sends is readable there: it has TLS as far as this network, or none."""
    with lab_over_tls.network(tls=tls, traces=True) as line:
        connection = psycopg2.connect(line.address.dsn())
        connection.cursor().execute("SELECT 1")
        connection.close()
        (trace,) = line.network.traces()
        assert trace.first("query").by_client
        assert line.network.figures().with_tls == tls


def test_a_place_can_be_asked_after_a_restart_of_its_server(new_postgres):
    """The observer's connection has ended; the next question opens another."""
    with new_postgres() as server:
        with PrivateGround(server, Distance()).place("restarted") as place:
            assert place.ask("SELECT 1") == [(1,)]
            server.restart()
            assert place.ask("SELECT 2") == [(2,)]
            assert place.backends() == []
        # And the database was dropped, over a connection that had ended as well.
        with PrivateGround(server, Distance()).place("other") as place:
            assert place.ask("SELECT 1 FROM pg_database WHERE datname LIKE 'restarted%'") == []


# -- what it records, and what it takes ------------------------------------------------------------


@pytest.mark.parametrize("row", [("one",), ("one", 2, 3)])
def test_a_row_with_more_or_fewer_cells_than_columns_is_refused(postgres, tmp_path, row):
    """The error names the table."""
    with PrivateGround(postgres, Distance()).place("lab") as place:
        lab = Lab(place, folder=tmp_path, distance=Distance(), say=print)
        with pytest.raises(ValueError, match=r"the table 'Pools' has 2 columns, and a row of"):
            lab.table("Pools", ("pool", "open"), [("two", 2), row])


_ANNOTATED = """\
'''Conditions.'''
from typing import Literal
from poolkit.experiment import Lab, experiment

@experiment(question="", rows=(), seconds=1)
def run(
    lab: Lab, *, rtt_ms: float = 62, times: int = 5, least: int = -1, end: Literal["a", "b"] = "a"
) -> None:
    lab.note(f"{rtt_ms} {times} {least} {end}")
"""


@pytest.fixture
def annotated(tmp_path) -> Experiment:
    """An experiment whose conditions have each type."""
    (tmp_path / "pools").mkdir()
    (tmp_path / "pools/annotated.py").write_text(_ANNOTATED)
    return find_experiments(tmp_path)["annotated"]


def test_a_condition_has_the_type_of_its_annotation(annotated):
    """A number whose default has no fraction may be given one, if it is annotated so."""
    found = annotated.conditions_with({"rtt_ms": "62.4", "least": "-7", "end": "b"})
    assert found == {"rtt_ms": 62.4, "times": 5, "least": -7, "end": "b"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": "62.4"}, "times must be a whole number and not negative, such as 5, not '62.4'"),
        ({"times": "-1"}, "times must be a whole number and not negative"),
        ({"rtt_ms": "-0.5"}, "rtt_ms must be a number and not negative"),
        ({"end": "c"}, "end must be one of a, b, not 'c'"),
    ],
)
def test_a_value_that_a_condition_cannot_have_is_refused(annotated, changes, message):
    """The message has the condition, and a value that it can have."""
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        annotated.conditions_with(changes)


# -- what comes after an interruption --------------------------------------------------------------


def _run(ground: Ground, folder: Path, function: Callable[[Lab], None]) -> Outcome:
    experiment = replace(find_experiments()["ping_cost"], function=function, conditions={})
    return run_one(experiment, ground, folder, Options(command=""), say=print)


def test_ctrl_c_is_not_taken_for_a_failure_of_what_it_interrupted(postgres, tmp_path):
    """An error while everything is being ended is no finding: the command ends."""

    def interrupted(lab: Lab) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            lab.ask("SELECT 1 / 0")

    with pytest.raises(KeyboardInterrupt):
        _run(PrivateGround(postgres, Distance()), tmp_path, interrupted)


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_schema_that_cannot_be_dropped_is_named(database, tmp_path, is_interrupted):
    """With the statement that removes it, also when the experiment was interrupted."""

    def lock(lab: Lab) -> None:
        ((schema,),) = lab.ask(r"SELECT nspname FROM pg_namespace WHERE nspname LIKE 'poolkit\_%'")
        # It stands for whatever may keep the drop from working.
        lab.ask(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(schema)))
        if is_interrupted:
            raise KeyboardInterrupt

    ground = ForeignGround(database.url(""), Distance())
    message = r"the schema (poolkit_\w+) is left .*DROP SCHEMA \1 CASCADE removes it"
    if is_interrupted:
        with pytest.raises(DatabaseUnavailable, match=message):
            _run(ground, tmp_path, lock)
    else:
        outcome = _run(ground, tmp_path, lock)
        assert outcome.status is Status.FAILED
        assert re.search(message, outcome.reason)
