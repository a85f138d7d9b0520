"""What the lab promises to experiments, beyond what their own verdicts show."""

from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from poolkit.experiment.ground import PrivateGround
from poolkit.experiment.lab import Lab
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
