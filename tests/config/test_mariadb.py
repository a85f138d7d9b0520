"""PyMySQL and asyncmy against a real MariaDB."""

import pytest
from driving import Client
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from poolkit.config.presets import preset
from poolkit.config.session import translate
from poolkit.errors import StatementTimeout

pytestmark = pytest.mark.slow


@pytest.fixture(params=["pymysql", "asyncmy"])
def client(request, mariadb):
    target = "web_async" if request.param == "asyncmy" else "web"
    small = preset(target, "prod").replace(pool_size=1, max_overflow=0, statement_timeout=1_500)
    client = Client(small, mariadb.url(request.param))
    yield client
    client.close()


def test_the_limits_are_in_force(client):
    """MariaDB runs its own part of the command and passes over MySQL's."""
    assert float(client.scalar("SELECT @@max_statement_time")) == 1.5
    assert client.scalar("SELECT @@idle_transaction_timeout") == 30
    with pytest.raises(DBAPIError) as caught:
        client.scalar("SELECT count(*) FROM seq_1_to_100000 a JOIN seq_1_to_100000 b")
    assert isinstance(translate(caught.value), StatementTimeout)


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
    other.close()
    assert client.scalar("SELECT connection_id()") != first


def test_a_mistake_in_a_statement_is_not_an_unavailable_database(client):
    """PyMySQL calls an unknown column an OperationalError; the kit knows its number."""
    with pytest.raises(DBAPIError) as caught:
        client.scalar("SELECT no_such_column")
    assert translate(caught.value) is None
