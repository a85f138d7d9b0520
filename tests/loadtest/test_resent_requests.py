"""Requests that FastHttpUser sends again without a word, on a server that drops connections."""

import socket
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from loadtest.conftest import PATIENT

pytestmark = pytest.mark.process

LOCUSTFILE = """
from locust import {base}, constant, task
from poolkit import loadtest

loadtest.register()

class Visitor({base}):
    wait_time = constant(0)

    @task
    def visit(self):
        self.client.get("/read", name="read")
        self.client.post("/write", name="write")
"""
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Dropping(BaseHTTPRequestHandler):
    """Drops every fifth request of a path, closed and reset in turn, instead of an answer."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with self.server.lock:
            self.server.received[self.path] += 1
            number = self.server.received[self.path]
            self.server.dropped[self.path] += number % 5 == 0
        if number % 5 == 0:
            if number % 10 == 0:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815  (the name that http.server calls)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Dropping)
        self.lock, self.received, self.dropped = threading.Lock(), Counter(), Counter()

    def handle_error(self, *_):
        """A reset connection is no error here."""


@pytest.fixture
def dropping():
    """A server that drops requests."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def count(dropping, locust, tmp_path):
    """A function that loads the server for a while, and returns the run's document and failures."""

    def run(base, *arguments):
        file = tmp_path / "visitor.py"
        file.write_text(LOCUSTFILE.format(base=base) + PATIENT)
        url = f"http://127.0.0.1:{dropping.server_port}"
        done = locust(
            *("-f", str(file), "--headless", "--host", url, "--run-time", "10m"),
            *("--json-file", "result", "--stop-timeout", "60", *arguments),
        )
        done.wait_until(lambda: dropping.dropped["/read"] >= 6 and dropping.dropped["/write"] >= 2)
        assert done.stop() == 1, done.text  # of the POSTs that were dropped
        found = done.document()
        rows = {row["name"]: row for row in found["latency_ms"]}
        return found["client"], rows, done

    return run


@pytest.mark.parametrize(
    "processes", [(), pytest.param(("--processes", "2"), marks=pytest.mark.slow)]
)
def test_a_get_that_was_sent_again_is_one_request_and_is_counted(
    count, dropping, master_port, processes
):
    """The server has received more requests than Locust reports: by exactly this number."""
    client, rows, run = count("FastHttpUser", *processes, *(master_port if processes else ()))
    assert client["resent"] == dropping.dropped["/read"]
    assert rows["read"]["requests"] == dropping.received["/read"] - client["resent"]
    assert rows["read"]["failures"] == 0
    assert rows["write"]["failures"] == dropping.dropped["/write"]
    assert client["requests"] == sum(dropping.received.values())
    assert f"{client['resent']:,} of {client['requests']:,} requests were sent again" in run.text


@pytest.mark.slow
def test_the_client_of_an_http_user_sends_nothing_again(count, dropping):
    """What was dropped is a failure there."""
    client, rows, _ = count("HttpUser")
    assert client["resent"] == 0
    assert rows["read"]["failures"] == dropping.dropped["/read"]
