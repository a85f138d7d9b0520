"""A network that answers something else, or nothing: one line, and nothing is lost."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from deploy.test_deploy import bucket, deploy, statuses
from deploy.test_expired_credentials import Expiring
from poolkit_command import refused

__all__ = ["bucket"]  # a fixture


class Proxy(BaseHTTPRequestHandler):
    """Answers every request with a page of its own, as a captive portal does."""

    status = 200

    def do_POST(self):
        page = b"<html><head><title>Log in</title></head>\n<body>\n<p>first\n<br></body></html>"
        self.send_response(self.server.status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *words):
        pass


def served(handler, **attributes):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    vars(server).update(attributes)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    return server, thread


@pytest.fixture
def serve():
    """Give a function that serves until the test ends."""
    running = []

    def start(handler, **attributes):
        running.append(served(handler, **attributes))
        return running[-1][0]

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [200, 403, 407])
@pytest.mark.parametrize(
    "words",
    [
        ("deploy", "network", "-e", "dev", "--no-lint", "--no-budget", "--yes"),
        ("deploy", "network", "-e", "dev", "--rollback"),
        ("destroy", "all", "-e", "dev", "--yes-delete", "shop-dev"),
        ("status", "-e", "dev"),
    ],
)
def test_a_page_of_a_proxy_is_one_line(poolkit, serve, words, status):
    """Instead of AWS a proxy answers, with a success or a refusal."""
    server = serve(Proxy, status=status)
    url = f"http://127.0.0.1:{server.server_port}"
    error = refused(poolkit(*words, AWS_ENDPOINT_URL=url), lines=1)
    assert "<br>" not in error


class Losing(Expiring):
    """Passes requests on, and from one action on it loses AWS's answers."""

    def answer(self, status, content):
        if self.server.is_expired:
            self.hang_up()
        else:
            super().answer(status, content)

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def pass_on(self, body):
        if f"Action={self.server.lost_at}".encode() in body:
            status, content = super().pass_on(body)
            self.server.is_expired = True
            return status, content
        return super().pass_on(body)

    def parse_request(self):
        is_read = super().parse_request()
        if self.server.is_expired:
            self.hang_up()
            return False
        return is_read


def losing(serve, aws, action):
    behind = aws["AWS_ENDPOINT_URL"].removeprefix("http://")
    server = serve(
        Losing, behind=behind, lost_at=action, expires_at="", expires_after="", is_expired=False
    )
    return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_MAX_ATTEMPTS": "1"}


def test_an_answer_that_is_lost_while_it_begins_is_said(poolkit, aws, serve, gate):
    """AWS has the change, the command does not know it; the next one finds it done."""
    gate.close()
    answer = deploy(poolkit, "network", **losing(serve, aws, "ExecuteChangeSet"))
    refused(answer, "AWS may have begun. Next: poolkit status network --environment dev", lines=1)
    assert statuses() == {"shop-dev-network": "CREATE_IN_PROGRESS"}
    gate.end()
    assert "nothing to change" in deploy(poolkit, "network").stdout


def test_a_network_that_is_lost_on_the_way_leaves_aws_at_work(poolkit, aws, serve, gate):
    """Exit status 1, with the command that follows it; the stack is whole at the end."""
    assert deploy(poolkit, "network").returncode == 0
    words = ("--parameter", "VpcCidr=10.9.0.0/16")
    answer = deploy(poolkit, "network", *words, **losing(serve, aws, "DescribeStackEvents"))
    assert answer.returncode in {1, 2}, answer.stdout + answer.stderr
    assert len(answer.stderr.strip().splitlines()) <= 5
    gate.end()
    assert deploy(poolkit, "network", *words).returncode == 0
    (stack,) = boto3.client("cloudformation").describe_stacks()["Stacks"]
    assert {"ParameterKey": "VpcCidr", "ParameterValue": "10.9.0.0/16"} in stack["Parameters"]
