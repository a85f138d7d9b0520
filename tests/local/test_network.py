"""The network before a server: what each failure, a distance and TLS look like from both ends."""

import asyncio
import contextlib
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import psycopg
import psycopg2
import pytest
from processes import wait_until
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit.errors import ProcessEndedError
from poolkit.experiment.ground import Address
from poolkit.local.distance import Distance, make_certificates, way_to
from poolkit.local.network import Network

pytestmark = pytest.mark.process
SILENT_S = 0.3


class Echo:
    """A server that sends back what it receives."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.ended = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def close(self) -> None:
        # A close alone would leave it listening for the thread that accepts.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(1024):
                    peer.sendall(data)
            except ConnectionError:
                pass
        self.ended += 1


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def network(echo: Echo) -> Iterator[Network]:
    with Network("127.0.0.1", echo.port) as started:
        yield started


def connected(network: Network) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", network.port), timeout=30)
    client.sendall(b"hello")
    assert client.recv(5) == b"hello"
    return client


def is_silent(client: socket.socket) -> bool:
    client.settimeout(SILENT_S)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(30)
    return False


def test_in_a_black_hole_nothing_passes_and_later_everything_arrives(network):
    with connected(network) as client:
        network.go_silent()
        client.sendall(b"later")
        assert is_silent(client)
        network.restore()
        assert client.recv(5) == b"later"


def test_a_connection_that_begins_in_a_black_hole_works_afterwards(network):
    network.go_silent()
    with socket.create_connection(("127.0.0.1", network.port), timeout=30) as client:
        client.sendall(b"early")
        assert is_silent(client)
        network.restore()
        assert client.recv(5) == b"early"


def test_a_client_that_leaves_in_a_black_hole_is_not_noticed_by_the_server(network, echo):
    client = connected(network)
    network.go_silent()
    client.close()
    time.sleep(SILENT_S)
    assert echo.ended == 0
    network.restore()
    wait_until(lambda: echo.ended == 1, "the server has noticed")


def test_lost_connections_stay_silent_while_new_ones_work(network):
    with connected(network) as lost:
        network.lose_connections()
        lost.sendall(b"lost")
        assert is_silent(lost)
        connected(network).close()
        network.restore()
        with pytest.raises(ConnectionResetError):
            lost.recv(1)


def test_a_slow_network_delays_each_direction(network):
    with connected(network) as client:
        network.delay(0.1)
        began = time.monotonic()
        client.sendall(b"slow")
        assert client.recv(4) == b"slow"
        assert time.monotonic() - began >= 0.2


def test_a_cut_resets_open_connections_only(network):
    with connected(network) as client:
        network.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    connected(network).close()


def test_a_refusing_network_resets_and_refuses_until_it_is_restored(network):
    with connected(network) as client:
        network.refuse()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", network.port), timeout=30)
    network.restore()
    connected(network).close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's settings")
def test_no_outgoing_connection_takes_its_port_while_it_refuses(network):
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert network.port < lowest


def test_a_server_that_refuses_is_a_reset_for_the_client(network, echo):
    echo.close()
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", network.port), timeout=30) as client,
    ):
        client.recv(1)


def test_leaving_ends_every_connection(echo):
    with Network("127.0.0.1", echo.port) as network:
        client = connected(network)
        network.go_silent()
    with client, pytest.raises(ConnectionResetError):
        client.recv(1)
    wait_until(lambda: echo.ended == 1, "the server's end is closed")


class Listener:
    """A server that reads until the client has sent all, and then answers with what it read."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.received: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.socket.accept()
                with peer:
                    data = b"".join(iter(lambda: peer.recv(1024), b""))  # noqa: B023  (read at once)
                    self.received.append(data)
                    with contextlib.suppress(ConnectionError):
                        peer.sendall(data)


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener()
    yield server
    with contextlib.suppress(OSError):
        server.socket.shutdown(socket.SHUT_RDWR)
    server.socket.close()


@pytest.mark.parametrize("rtt_s", [0.0, 0.01])
def test_a_client_that_has_sent_all_still_receives_the_answer(listener, rtt_s):
    """A connection that is closed in one direction is open in the other."""
    with (
        Network("127.0.0.1", listener.port, rtt_s=rtt_s) as network,
        socket.create_connection(("127.0.0.1", network.port), timeout=30) as client,
    ):
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(8) == b"question"
        assert client.recv(1) == b""
        wait_until(lambda: network.connections == 0, "the connection has ended")


@pytest.mark.parametrize("rtt_s", [0.0, 0.01])
def test_what_a_client_sent_arrives_though_it_left_at_once(listener, rtt_s):
    """As drivers do that ask to cancel a statement: the proxy is not connected by then."""
    with Network("127.0.0.1", listener.port, rtt_s=rtt_s) as network:
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", network.port), timeout=30) as client:
                client.sendall(b"cancel")
        wait_until(lambda: len(listener.received) == 10, "all clients have reached the server")
        assert listener.received == [b"cancel"] * 10


def test_a_reset_is_passed_on_as_one(network, echo):
    """A client that is killed with unread data resets its connection, and its backend learns it."""
    client = connected(network)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    wait_until(lambda: echo.ended == 1, "the server has noticed")
    wait_until(lambda: network.connections == 0, "the connection has ended")


def test_a_round_trip_takes_the_distance_and_no_less(echo):
    """Once for the bytes, and once more for the handshake of TCP before the first of them."""
    with Network("127.0.0.1", echo.port, rtt_s=0.05) as network:
        client = socket.create_connection(("127.0.0.1", network.port), timeout=30)
        with client:
            first, second = (_round_trip(client) for _ in range(2))
    assert first >= 0.1
    assert second >= 0.05


def _round_trip(client: socket.socket) -> float:
    began = time.perf_counter()
    client.sendall(b"there")
    assert client.recv(5) == b"there"
    return time.perf_counter() - began


def test_what_is_sent_first_arrives_first_whatever_the_jitter(echo):
    """A passage of random length must not let later bytes overtake earlier ones."""
    with (
        Network("127.0.0.1", echo.port, rtt_s=0.004, jitter=0.9) as network,
        socket.create_connection(("127.0.0.1", network.port), timeout=30) as client,
    ):
        sent = bytearray()
        received = bytearray()
        for number in range(200):
            piece = number.to_bytes(2, "big")
            client.sendall(piece)
            sent += piece
            time.sleep(0.0005)
        while len(received) < len(sent):
            received += client.recv(4096)
    assert received == sent


def test_a_throttled_network_passes_on_no_more_than_its_rate(network):
    with connected(network) as client:
        network.throttle(100_000)
        began = time.perf_counter()
        client.sendall(bytes(20_000))
        left = 20_000
        while left:
            left -= len(client.recv(left))
        # 0.2 s for each direction, which overlap: the first bytes are back while the last ones go.
        assert time.perf_counter() - began >= 0.2


def test_much_data_passes_a_far_network_whole(echo):
    """More than the proxy holds at once: the sender waits, and nothing is lost."""
    sent = random.randbytes(3_000_000)
    received = bytearray()
    with (
        Network("127.0.0.1", echo.port, rtt_s=0.02) as network,
        socket.create_connection(("127.0.0.1", network.port), timeout=30) as client,
    ):
        sender = threading.Thread(target=client.sendall, args=(sent,))
        sender.start()
        while len(received) < len(sent):
            received += client.recv(65_536)
        sender.join()
    assert received == sent


def test_the_proxy_ends_with_the_process_that_started_it(echo):
    """Even if that one is killed."""
    code = (
        "import time\nfrom poolkit.local.network import Network\n"
        f"network = Network('127.0.0.1', {echo.port}).__enter__()\n"
        "print(network.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    wait_until(lambda: not psutil.pid_exists(pid), "the proxy has ended")


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_drivers_connect_with_tls_and_verify_the_certificate(driver, postgres):
    """The server itself has no TLS."""
    distance = Distance(tls=True)
    with way_to(postgres.host, postgres.port, distance) as way:
        address = Address(
            host="localhost",
            port=way.network.port,
            user="poolkit",
            password=postgres.password(),
            database="poolkit",
            ca=way.ca,
        )
        if driver == "asyncpg":
            engine = create_async_engine(address.url(driver))

            async def ask() -> int:
                async with engine.connect() as connection:
                    found = await connection.scalar(text("SELECT 1"))
                await engine.dispose()
                return found

            assert asyncio.run(ask()) == 1
        else:
            engine = create_engine(address.url(driver))
            with engine.connect() as connection:
                assert connection.scalar(text("SELECT 1")) == 1
                raw = connection.connection.dbapi_connection
                in_use = raw.info.ssl_in_use if driver == "psycopg2" else raw.pgconn.ssl_in_use
                assert in_use
            engine.dispose()


def test_a_certificate_of_another_authority_is_refused(postgres, tmp_path):
    with way_to(postgres.host, postgres.port, Distance(tls=True)) as way:
        other = make_certificates(tmp_path)
        with pytest.raises(psycopg2.OperationalError, match="certificate verify failed"):
            psycopg2.connect(
                host="localhost",
                port=way.network.port,
                user="poolkit",
                password=postgres.password(),
                dbname="poolkit",
                sslmode="verify-full",
                sslrootcert=str(other.ca),
            )
        # A client that wants no TLS is passed on, as by a server with `ssl = on`.
        psycopg2.connect(
            host="localhost",
            port=way.network.port,
            user="poolkit",
            password=postgres.password(),
            dbname="poolkit",
            sslmode="disable",
        ).close()


@pytest.mark.parametrize("tls", [False, True])
def test_statements_are_cancelled_over_a_distance(postgres, tls):
    """A cancel request is a connection of its own, with TLS (psycopg) or without (psycopg2)."""
    sslmode = "require" if tls else "disable"
    with way_to(postgres.host, postgres.port, Distance(rtt_s=0.0005, tls=tls)) as way:
        there = {"host": way.network.host, "port": way.network.port, "user": "poolkit"}
        password = postgres.password()
        login = {**there, "password": password, "dbname": "poolkit", "sslmode": sslmode}
        old = psycopg2.connect(**login)
        threading.Timer(0.2, old.cancel).start()
        with pytest.raises(psycopg2.errors.QueryCanceled), old.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(30)")
        old.close()
        with psycopg.connect(**login) as new:
            threading.Timer(0.2, new.cancel_safe).start()
            with pytest.raises(psycopg.errors.QueryCanceled):
                new.execute("SELECT pg_sleep(30)")

        async def time_out() -> None:
            connection = await asyncpg.connect(
                **there, password=password, database="poolkit", ssl=sslmode
            )
            with pytest.raises(TimeoutError):
                await connection.execute("SELECT pg_sleep(30)", timeout=0.2)
            # The connection is free again, since the server has cancelled the statement.
            assert await connection.fetchval("SELECT 1", timeout=10) == 1
            await connection.close()

        asyncio.run(time_out())


def test_clients_without_tls_and_those_that_refuse_the_certificate_are_counted(postgres, tmp_path):
    """A report can name settings of an application that overrule those of the run."""
    other = make_certificates(tmp_path)
    with way_to(postgres.host, postgres.port, Distance(tls=True)) as way:

        def connect(**options: str) -> None:
            psycopg2.connect(
                host=way.network.host,
                port=way.network.port,
                user="poolkit",
                password=postgres.password(),
                dbname="poolkit",
                **options,
            ).close()

        connect(sslmode="require")
        connect(sslmode="disable")
        connect(sslmode="verify-full", sslrootcert=str(way.ca))
        with pytest.raises(psycopg2.OperationalError, match="certificate verify failed"):
            connect(sslmode="verify-full", sslrootcert=str(other.ca))
        # A scan of ports connects and leaves.
        socket.create_connection((way.network.host, way.network.port), timeout=30).close()
        figures = way.network.figures()
        assert (figures.with_tls, figures.without_tls) == (2, 1)
        wait_until(lambda: way.network.figures().failed_tls == 1, "the refusal is counted")


def test_a_proxy_that_was_killed_is_named(network):
    network.check()
    psutil.Process(network.pid).kill()
    with pytest.raises(ProcessEndedError, match="the proxy that makes the distance"):
        wait_until(network.check, "the end is noticed")


@pytest.mark.parametrize("tls", [False, True])
def test_a_reader_that_pauses_stops_the_server_and_fills_no_memory(postgres, tls):
    """40 MB wait in the server: the proxy holds about a megabyte of them."""
    with way_to(postgres.host, postgres.port, Distance(rtt_s=0.0005, tls=tls)) as way:
        proxy = psutil.Process(way.network.pid)
        with psycopg.connect(
            host=way.network.host,
            port=way.network.port,
            user="poolkit",
            password=postgres.password(),
            dbname="poolkit",
            sslmode="require" if tls else "disable",
        ) as connection:
            before = proxy.memory_info().rss
            statement = "COPY (SELECT repeat('x', 999) FROM generate_series(1, 40000)) TO STDOUT"
            with connection.cursor().copy(statement) as copy:
                received = len(copy.read())
                time.sleep(0.5)
                held = proxy.memory_info().rss - before
                received += sum(map(len, copy))
    assert received == 40_000_000
    assert held < 15_000_000


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_begins_with_tls_needs_a_network_with_a_certificate(postgres, tls):
    """libpq's `sslnegotiation=direct`, which saves a round trip."""
    if psycopg.pq.version() < 170000:
        pytest.skip("libpq has it since 17")
    with way_to(postgres.host, postgres.port, Distance(tls=tls)) as way:
        login = {"user": "poolkit", "password": postgres.password(), "dbname": "poolkit"}
        there = {"host": way.network.host, "port": way.network.port, "sslnegotiation": "direct"}
        if tls:
            with psycopg.connect(**there, **login, sslmode="require") as connection:
                assert connection.pgconn.ssl_in_use
        else:
            with pytest.raises(psycopg.OperationalError, match="SSL"):
                psycopg.connect(**there, **login, sslmode="require")
