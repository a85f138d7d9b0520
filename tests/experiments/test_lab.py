"""What the lab promises to experiments, beyond what their own verdicts show."""

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import asyncpg
import psycopg
import psycopg2
import pytest
from processes import wait_until
from psycopg2 import sql

from poolkit.errors import ConfigurationError, DatabaseUnavailable
from poolkit.experiment.experiment import Experiment, find_experiments
from poolkit.experiment.ground import ForeignGround, Ground, PrivateGround
from poolkit.experiment.lab import Lab
from poolkit.experiment.outcome import Outcome, Status
from poolkit.experiment.run import Options, run_one
from poolkit.experiment.schema import Schema
from poolkit.local.distance import Distance, make_certificates
from poolkit.local.network import Network, ServerTls
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


# -- a server that requires TLS --------------------------------------------------------------------

SYSTEM_POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture(scope="module")
def tls_server(new_postgres, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The URL of a server that refuses all without TLS, and its authority's certificate."""
    if SYSTEM_POSTGRES is None:
        pytest.skip("no PostgreSQL of the distribution is installed; the wheel's has no TLS")
    made = make_certificates(tmp_path_factory.mktemp("certificates"))
    with new_postgres(programs=SYSTEM_POSTGRES) as server:
        connection = psycopg2.connect(server.admin_url(driver=""))
        connection.autocommit = True
        with closing(connection), connection.cursor() as cursor:
            cursor.execute("SHOW hba_file")
            hba = Path(cursor.fetchone()[0])
            key = hba.with_name("server.pem")
            key.write_bytes(made.server.read_bytes())
            key.chmod(0o600)
            os.chown(key, hba.stat().st_uid, hba.stat().st_gid)
            hba.write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
            for setting, value in (("cert", key), ("key", key)):
                cursor.execute(f"ALTER SYSTEM SET ssl_{setting}_file = '{value}'")
            cursor.execute("ALTER SYSTEM SET ssl = on")
            cursor.execute("SELECT pg_reload_conf()")
        url = server.url(driver="")
        wait_until(lambda: _has_tls(url), "the server has TLS")
        yield url, made.ca


def _has_tls(url: str) -> bool:
    with suppress(psycopg2.Error):
        psycopg2.connect(f"{url}?sslmode=require").close()
        return True
    return False


@pytest.fixture(params=["require", "verify-full"])
def lab_with_tls(tls_server, tmp_path, request) -> Iterator[Lab]:
    """A lab on that server, which is checked or not."""
    url, authority = tls_server
    query = f"?sslmode={request.param}"
    if request.param == "verify-full":
        query += f"&sslrootcert={authority}"
    with ForeignGround(url + query, Distance()).place("lab") as place:
        yield Lab(place, folder=tmp_path, distance=Distance(), say=print)


@pytest.mark.parametrize("tls", [False, True])
def test_a_network_speaks_tls_to_a_server_that_requires_it(lab_with_tls, tls):
    """Each driver connects through it, and what it sends is recorded."""
    with lab_with_tls.network(tls=tls, traces=True) as line:
        for connect, driver in ((psycopg2.connect, "psycopg2"), (psycopg.connect, "psycopg")):
            with closing(connect(line.address.dsn(driver))) as connection:
                cursor = connection.cursor()
                cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
                assert cursor.fetchone() == (True,)

        async def ask() -> str:
            connection = await asyncpg.connect(line.address.dsn("asyncpg"))
            found = await connection.fetchval("SHOW search_path")
            await connection.close()
            return found

        assert asyncio.run(ask()).startswith("poolkit_")
        assert all(trace.first("query").by_client for trace in line.network.traces()[:2])
        assert line.network.figures().with_tls == (3 if tls else 0)


def test_a_distance_with_tls_leads_to_a_server_that_requires_it(tls_server):
    """As after --rtt and --tls: the network's certificate is not the server's."""
    distance = Distance(rtt_s=0.001, tls=True)
    with ForeignGround(f"{tls_server[0]}?sslmode=require", distance).place("lab") as place:
        connection = psycopg2.connect(place.dsn())
        assert connection.info.ssl_in_use
        connection.close()


def test_a_network_checks_the_server_as_the_url_demands(tls_server, tmp_path):
    """It passes no password on to a server with another authority's certificate."""
    other = make_certificates(tmp_path).ca
    parameters = psycopg2.extensions.parse_dsn(tls_server[0])
    tls = ServerTls(host=parameters["host"], sslmode="verify-full", sslrootcert=str(other))
    with (
        Network(parameters["host"], int(parameters["port"]), server_tls=tls) as network,
        pytest.raises(psycopg2.OperationalError, match=r"reset|closed"),
    ):
        psycopg2.connect(**{**parameters, "host": network.host, "port": network.port})


# -- schemas on a database that is not its own -----------------------------------------------------


def _schemas(url: str) -> set[str]:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(r"SELECT nspname FROM pg_namespace WHERE nspname LIKE 'poolkit\_%'")
        return {name for (name,) in cursor.fetchall()}


def _make(url: str, *statements: str | sql.Composable) -> psycopg2.extensions.connection:
    """Return a connection that has run the statements."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    return connection


def test_what_a_killed_run_left_is_dropped_by_the_next(database):
    """Its owner's lock is free; tables in it go too. It is reported once."""
    left, url, said = Schema.new(), database.url(""), []
    table = sql.SQL("CREATE TABLE {} (id int)").format(sql.Identifier(left.name, "users"))
    _make(url, left.creation(), table).close()
    ground = ForeignGround(url, Distance(), said.append)
    for _ in range(2):
        with ground.place("next"):
            assert left.name not in _schemas(url)
    assert said == [f"dropped the schema {left.name}, which a killed run has left"]
    assert _schemas(url) == set()


def test_no_other_schema_is_dropped(database):
    """One in use, one without poolkit's comment, one with another name, one of another role."""
    url, admin = database.url(""), database.admin_url("")
    held, named, bare, others = (Schema.new() for _ in range(4))
    lock = sql.SQL("SELECT pg_advisory_lock({}, {})").format(*map(sql.Literal, held.lock))
    connections = [
        _make(url, held.creation(), lock),
        _make(f"{url}?application_name={named.name}", named.creation()),
        _make(url, f"CREATE SCHEMA {bare.name}", "CREATE SCHEMA poolkit_data"),
        _make(admin, others.creation()),
    ]
    with ForeignGround(url, Distance()).place("next"):
        pass
    assert _schemas(url) == {held.name, named.name, bare.name, "poolkit_data", others.name}
    for connection in connections:
        connection.close()


def test_two_runs_at_a_time_leave_each_other_alone(database):
    """The second finds the first one's schema, and its lock."""
    url = database.url("")
    with (
        ForeignGround(url, Distance()).place("first") as first,
        ForeignGround(url, Distance()).place("second"),
    ):
        assert len(_schemas(url)) == 2
        with closing(psycopg2.connect(first.dsn())) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE still_there (id int)")


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
