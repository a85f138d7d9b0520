"""PyMySQL and asyncmy against a real MariaDB."""

import pytest
from driving import Client
from processes import wait_until
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from poolkit.activity.statements import comment_of
from poolkit.config.holds import unit
from poolkit.config.presets import preset
from poolkit.config.session import translate
from poolkit.config.sql_comments import comment_statements
from poolkit.errors import StatementTimeout

pytestmark = pytest.mark.slow


@pytest.fixture(params=["pymysql", "asyncmy"])
def make_client(request, mariadb):
    """Make clients of the driver by preset fields; they are closed afterwards."""
    target = "web_async" if request.param == "asyncmy" else "web"
    made = []

    def make(**changes):
        small = {"pool_size": 1, "max_overflow": 0, "connect_timeout": 60, "ping_after_idle": 60}
        chosen = preset(target, "prod").replace(**(small | changes))
        # The driver's own patience is not what is tested, and a busy machine may need more of it.
        options = {"connect_args": {"read_timeout": 100}}
        made.append(Client(chosen, mariadb.url(request.param), **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make_client):
    return make_client(statement_timeout=60_000)


def test_the_limits_are_in_force(make_client):
    """MariaDB runs its own part of the command and passes over MySQL's."""
    client = make_client(statement_timeout=600, idle_session_timeout=400_500)
    # With such a limit, a machine that stands still may end the shortest statement, too.
    assert float(wait_until(lambda: _if_in_time(client, "SELECT @@max_statement_time"))) == 0.6
    assert wait_until(lambda: _if_in_time(client, "SELECT @@idle_transaction_timeout")) == 30
    assert wait_until(lambda: _if_in_time(client, "SELECT @@wait_timeout")) == 401
    with pytest.raises(DBAPIError) as caught:
        client.scalar("SELECT count(*) FROM seq_1_to_100000 a JOIN seq_1_to_100000 b")
    assert isinstance(translate(caught.value), StatementTimeout)


def _if_in_time(client, statement):
    try:
        return client.scalar(statement)
    except DBAPIError as error:
        if not isinstance(translate(error), StatementTimeout):
            raise
        return None


def test_a_busy_connection_is_not_pinged(client):
    """The socket is found and polled: a connection just used needs no round trip."""
    first = client.scalar("SELECT connection_id()")
    assert client.scalar("SELECT connection_id()") == first
    assert client.pings == 0


def test_a_killed_connection_is_replaced(client):
    """A connection ended by the server costs no failed statement."""
    first = client.scalar("SELECT connection_id()")
    other = Client(client.preset, client.engine.url.render_as_string(hide_password=False))
    other.run(lambda connection: connection.execute(text(f"KILL {first}")))
    alive = f"SELECT count(*) FROM information_schema.processlist WHERE id = {first}"
    wait_until(lambda: other.scalar(alive) == 0)
    other.close()
    assert client.scalar("SELECT connection_id()") != first


def test_a_mistake_in_a_statement_is_not_an_unavailable_database(client):
    """PyMySQL calls an unknown column an OperationalError; the kit knows its number."""
    with pytest.raises(DBAPIError) as caught:
        client.scalar("SELECT no_such_column")
    assert translate(caught.value) is None


def test_statements_name_their_line(client):
    """The same comment as with PostgreSQL; a percent sign arrives as one."""
    comment_statements(client.sync_engine)
    statement = (
        "SELECT info FROM information_schema.processlist WHERE id = connection_id() AND :x = 1"
    )
    with unit("GET /a b"):
        sent = client.run(lambda c: c.execute(text(statement), {"x": 1}).scalar_one())
    assert comment_of(sent)["unit"] == "GET /a b"
    assert comment_of(sent)["where"].startswith("tests/config/test_mariadb.py:")
