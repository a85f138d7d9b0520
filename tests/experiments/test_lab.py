"""What the lab promises to experiments, beyond what their own verdicts show."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql

from poolkit.errors import DatabaseUnavailable
from poolkit.experiment.experiment import find_experiments
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
