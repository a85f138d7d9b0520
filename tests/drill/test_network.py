"""The proxy of a drill: what each failure of the network looks like from both ends."""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import wait_until

from poolkit.drill.network import Network

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
