"""The embedded PgBouncer."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import psycopg2
import pytest
from processes import is_listening, wait_until
from programs import needs_pgbouncer

from poolkit.errors import BinaryMissingError, PortInUseError
from poolkit.local import pgbouncer
from poolkit.local.accounts import server_account
from poolkit.local.pgbouncer import EmbeddedPgBouncer, find_pgbouncer


@pytest.fixture
def bouncer(postgres, tmp_path):
    with EmbeddedPgBouncer(postgres, tmp_path, pool_size=2) as bouncer:
        yield bouncer


def console(bouncer, statement):
    connection = psycopg2.connect(bouncer.stats_url())
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]
    finally:
        connection.close()


@needs_pgbouncer
def test_clients_share_the_pools_connections(bouncer, database):
    """Ten clients at once are served over two connections, one transaction each at a time."""
    done = threading.Event()

    def transact(number):
        connection = psycopg2.connect(
            bouncer.url(database.name, driver=""), application_name=f"lambda_proxy:{number}"
        )
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                done.wait(60)
                return cursor.fetchone()[0]
        finally:
            connection.close()

    def shown(**wanted):
        pools = [p for p in console(bouncer, "SHOW POOLS") if p["database"] == database.name]
        return any(wanted.items() <= pool.items() for pool in pools)

    with ThreadPoolExecutor(10) as clients:
        backends = clients.map(transact, range(10))
        try:
            wait_until(lambda: shown(pool_mode="transaction", sv_active=2, cl_waiting=8))
        finally:
            done.set()
    assert len(set(backends)) == 2
    wait_until(lambda: shown(sv_active=0, sv_idle=2, cl_waiting=0))


@needs_pgbouncer
def test_pgbouncers_own_defaults(bouncer):
    """Its port, sizes and mode where pgbouncer.ini does not set them."""
    defaults = {row["key"]: row["default"] for row in console(bouncer, "SHOW CONFIG")}
    assert (defaults["listen_port"], defaults["default_pool_size"]) == ("6432", "20")
    assert (defaults["pool_mode"], defaults["max_client_conn"]) == ("session", "100")


@needs_pgbouncer
def test_wrong_password_and_options_are_refused(bouncer):
    """It asks for the password by SCRAM, and refuses settings that it would lose."""
    wrong = bouncer.url(driver="").replace(":", ":x", 2).replace(":x//", "://")
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        psycopg2.connect(wrong)
    with pytest.raises(psycopg2.OperationalError, match="unsupported startup parameter"):
        psycopg2.connect(bouncer.url(driver=""), options="-c statement_timeout=5")


@needs_pgbouncer
def test_its_list_of_users_lacks_the_applications_password(bouncer, postgres):
    """It has the server's own secret instead, so a client's login needs no thousands of hashes."""
    users = (bouncer.log.parent / "users.txt").read_text()
    assert postgres.password() not in users
    assert '"SCRAM-SHA-256$' in users.partition("\n")[0]


@needs_pgbouncer
def test_files_with_passwords_are_its_accounts_alone(bouncer):
    """Only its account can read the passwords, and under root that account is not root."""
    for name in ("users.txt", "pgbouncer.ini"):
        found = (bouncer.log.parent / name).stat()
        assert (found.st_mode & 0o777, found.st_uid) == (0o600, server_account().uid)
    assert psutil.Process(bouncer.pid).uids().real == server_account().uid


@needs_pgbouncer
def test_restart_keeps_the_port_and_closing_leaves_nothing(postgres, tmp_path, database):
    """The same URL works after a restart; at the end port, files and backends are gone."""
    with EmbeddedPgBouncer(postgres, tmp_path) as bouncer:
        url = bouncer.url(database.name, driver="")
        bouncer.restart()
        psycopg2.connect(url).close()
        directory = bouncer.log.parent
    assert not is_listening(bouncer.port)
    assert not directory.exists()
    database.wait_for_backends(0)


@needs_pgbouncer
def test_port_in_use_is_one_line(postgres, tmp_path):
    """The message names a port with a listener."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} of 127.0.0.1 is in use"):
            EmbeddedPgBouncer(postgres, tmp_path, port=port).start()


def test_missing_program_error_says_what_to_install(postgres, tmp_path, monkeypatch):
    """Without the program on PATH the error says how to get it, or how to do without."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pgbouncer, "_MORE_PLACES", str(tmp_path))
    assert find_pgbouncer() is None
    with pytest.raises(BinaryMissingError, match="leave out the targets that need it"):
        EmbeddedPgBouncer(postgres, tmp_path).start()
