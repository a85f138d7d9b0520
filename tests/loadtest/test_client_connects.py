"""The connections of the load generator, beside what servers saw of them."""

import contextlib
import re
import threading

import pytest
from web_server import WebServer, _Handler, self_signed

from poolkit.loadtest.latency.connects import ClientConnects

LOCUSTFILE = """
import os
from locust import HttpUser, FastHttpUser, constant, runners, task
from poolkit import loadtest

loadtest.register()
# A master that hears nothing of its workers for three seconds ends the test, as on a busy machine.
runners.HEARTBEAT_LIVENESS = 60

class Visitor({base}):
    wait_time = constant(0)
    network_timeout = connection_timeout = 60.0

    @task
    def visit(self):
        self.client.verify = False
        for variable, number in (("KEPT", 30), ("CLOSED", 20), ("TLS", 10)):
            for _ in range(number):
                self.client.get(os.environ[variable] + "/")
        self.client.get(os.environ["REFUSED"] + "/")
        # Nothing but the end of the run, which the test requests.
        self.wait_time = lambda: 3600
"""


class CountingServer(WebServer):
    """Counts the connections that it accepted; closes each after an answer if it is told so."""

    def __init__(self, *, closes=False):
        super().__init__()
        self.accepted = 0
        if closes:
            self.RequestHandlerClass = type(
                "Closing", (_Handler,), {"protocol_version": "HTTP/1.0"}
            )

    def get_request(self):
        found = super().get_request()
        self.accepted += 1
        return found

    def handle_error(self, *_):
        """Stay quiet: clients end in the middle."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Three servers: one keeps connections open, one closes them, one has TLS."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path_factory.mktemp("tls")))
    with contextlib.ExitStack() as ending:
        found = {
            "KEPT": CountingServer(),
            "CLOSED": CountingServer(closes=True),
            "TLS": CountingServer(),
        }
        found["TLS"].socket = context.wrap_socket(found["TLS"].socket, server_side=True)
        for server in found.values():
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            ending.callback(server.server_close)
            ending.callback(server.shutdown)
        yield found


@pytest.mark.process
@pytest.mark.parametrize(
    ("base", "processes"), [("HttpUser", 1), ("FastHttpUser", 1), ("FastHttpUser", 2)]
)
def test_connects_are_those_that_the_servers_saw(
    base, processes, *, servers, locust, master_port, refusing_port
):
    """One for each user and server that keeps them open, one for each request where it does not."""
    file = locust.folder / "clients.py"
    before = {name: (server.accepted, len(server.asked)) for name, server in servers.items()}
    file.write_text(LOCUSTFILE.format(base=base))
    variables = {
        name: f"http{'s' * (name == 'TLS')}://127.0.0.1:{server.server_port}"
        for name, server in servers.items()
    }
    words = ["-f", str(file), "--headless", "--users", str(processes)]
    words += ["--json-file", "result", "--run-time", "10m"]
    words += ["--processes", str(processes), *master_port] if processes > 1 else []
    run = locust(*words, REFUSED=f"http://127.0.0.1:{refusing_port}", **variables)

    def asked(name):
        return len(servers[name].asked) - before[name][1]

    run.wait_until(lambda: asked("TLS") == 10 * processes)
    run.wait_until(lambda: re.search(rf"Aggregated +{61 * processes} ", run.text))
    assert run.stop() == 1, run.text  # of the failed requests
    client = run.document()["client"]
    accepted = {name: server.accepted - before[name][0] for name, server in servers.items()}
    assert accepted == {"KEPT": processes, "CLOSED": 20 * processes, "TLS": processes}
    assert (client["connections"], client["tls"]) == (sum(accepted.values()), processes)
    assert (client["requests"], client["failed"]) == (60 * processes, processes)
    assert client["requests_per_connection"] == round(60 / 22, 3)
    times = client["connect_ms"]
    assert 0 < times["p50"] <= times["p95"] <= times["max"]
    opened = f"Load generator: {22 * processes} connections opened; {processes} of them with TLS"
    assert opened in run.text


def test_a_server_without_keep_alive_is_named():
    """Once enough requests were sent; not where they share connections."""
    counts = ClientConnects()
    counts.opened = counts.requests = 99
    assert counts.note == ""
    counts.opened = counts.requests = 100
    assert "keep-alive" in counts.note
    assert any("keep-alive" in line for line in counts.lines())
    counts.opened = 10
    assert counts.note == ""


def test_without_an_http_client_nothing_is_known():
    """A run of another protocol has no figure, instead of zero connections."""
    counts = ClientConnects()
    assert counts.to_json() is None
    assert list(counts.lines()) == []
    counts.failed = 1
    assert counts.to_json()["requests_per_connection"] is None
