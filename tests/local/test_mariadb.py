"""The embedded MariaDB."""

import psutil
import pytest
from programs import needs_mariadb
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from poolkit.errors import BinaryMissingError, ServerStartError
from poolkit.local import mariadb
from poolkit.local.mariadb import EmbeddedMariaDB

pytestmark = pytest.mark.process


def value(server, statement):
    engine = create_engine(server.url())
    try:
        with engine.begin() as connection:
            return connection.execute(text(statement)).scalar()
    finally:
        engine.dispose()


@pytest.mark.slow
@needs_mariadb
def test_it_has_its_settings_keeps_its_data_and_leaves_nothing(open_dir, tmp_path, monkeypatch):
    """After a crash its data are there; after the end neither files nor processes are."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the server's account may not go
    with EmbeddedMariaDB(open_dir, settings={"wait_timeout": "77"}) as server:
        connection = create_engine(server.url()).connect()
        connection.execute(text("CREATE TABLE kept (n int)"))
        connection.execute(text("INSERT INTO kept VALUES (5)"))
        connection.commit()
        assert connection.execute(text("SELECT @@wait_timeout")).scalar_one() == 77
        pid, url = server.pid, server.url()
        server.kill()
        with pytest.raises(OperationalError):
            connection.execute(text("SELECT 1"))
        connection.invalidate()
        connection.close()
        server.start()
        assert server.url() == url
        assert value(server, "SELECT n FROM kept") == 5
        with pytest.raises(OperationalError, match="Access denied"):
            value(_WithPassword(server, "wrong"), "SELECT 1")
    assert not psutil.pid_exists(pid)
    assert list(open_dir.iterdir()) == []


class _WithPassword:
    """The same server, for a client with another password."""

    def __init__(self, server, password):
        self._url = server.url().replace(server.url().split(":")[2].split("@")[0], password)

    def url(self):
        return self._url


@needs_mariadb
def test_a_start_that_fails_says_why(open_dir):
    """A setting that MariaDB does not have is in the message, and nothing is left."""
    with pytest.raises(ServerStartError, match="no_such_setting"):
        EmbeddedMariaDB(open_dir, settings={"no_such_setting": "1"}).start()
    assert list(open_dir.iterdir()) == []


def test_without_mariadb_it_says_how_to_install_it(open_dir, monkeypatch):
    """The error names the package."""
    monkeypatch.setattr(mariadb, "find_mariadb", lambda: None)
    with pytest.raises(BinaryMissingError, match="apt-get install mariadb-server"):
        EmbeddedMariaDB(open_dir).start()
    assert list(open_dir.iterdir()) == []
