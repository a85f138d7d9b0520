"""Credentials that expire before, or in the middle of, a deployment: AWS's own answers."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from deploy.test_deploy import deploy, statuses
from poolkit_command import refused

EXPIRED = """\
<ErrorResponse xmlns="{namespace}">
  <Error>
    <Type>Sender</Type>
    <Code>ExpiredToken</Code>
    <Message>The security token included in the request is expired</Message>
  </Error>
  <RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId>
</ErrorResponse>
"""
"""The wire format of the query protocol that STS and CloudFormation speak, with status 403."""

OURS = {"Name": "cidr", "Values": ["10.7.0.0/16"]}
RENEW = "the AWS credentials have expired; renew them"


class Expiring(BaseHTTPRequestHandler):
    """Passes requests on until the action at which the token expires, and refuses from there."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        form = parse_qs(body.decode())
        action = form["Action"][0]
        if action == self.server.expires_at:
            self.server.is_expired = True
        if self.server.is_expired:
            version = form["Version"][0]
            answer = EXPIRED.format(namespace=f"https://amazonaws.com/doc/{version}/").encode()
            self.answer(403, answer)
        else:
            status, content = self.pass_on(body)
            # Before the answer, which may be followed by the next request at once.
            if action == self.server.expires_after:
                self.server.is_expired = True
            self.answer(status, content)

    def pass_on(self, body):
        connection = http.client.HTTPConnection(self.server.behind, timeout=100)
        connection.request("POST", self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.status, answer.read()
        connection.close()
        return content

    def answer(self, status, content):
        self.send_response(status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        pass


@pytest.fixture
def expiring(aws):
    """Serve AWS with a token that expires at the action that the test sets."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Expiring)
    server.behind = urlsplit(aws["AWS_ENDPOINT_URL"]).netloc
    server.expires_at, server.expires_after, server.is_expired = "", "", False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def endpoint(server):
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_SESSION_TOKEN": "expires",
    }


@pytest.mark.parametrize(
    "words",
    [
        ("deploy", "all", "-e", "dev", "--no-lint", "--no-budget", "--yes"),
        ("deploy", "network", "-e", "dev", "--rollback"),
        ("destroy", "all", "-e", "dev", "--yes-delete", "shop-dev"),
        ("status", "-e", "dev"),
    ],
)
def test_expired_credentials_are_one_line(poolkit, expiring, words):
    """Every command that calls AWS reports it, with what to do, and makes nothing."""
    expiring.is_expired = True
    refused(poolkit(*words, **endpoint(expiring)), RENEW, lines=1)
    assert statuses() == {}


@pytest.mark.parametrize("action", ["CreateChangeSet", "ExecuteChangeSet"])
def test_credentials_that_expire_on_the_way(poolkit, expiring, action):
    """One line says so, nothing is made, and renewed credentials deploy the ordinary way."""
    expiring.expires_at = action
    refused(deploy(poolkit, "network", **endpoint(expiring)), RENEW, lines=1)
    assert boto3.client("ec2").describe_vpcs(Filters=[OURS])["Vpcs"] == []
    again = deploy(poolkit, "network")
    assert again.returncode == 0, again.stdout + again.stderr
    assert list(statuses().values()) == ["CREATE_COMPLETE"]


def test_credentials_that_expire_while_aws_works(poolkit, expiring, gate):
    """AWS goes on, which exit status 1 and the message say, with the command to follow it."""
    expiring.expires_after = "ExecuteChangeSet"
    answer = deploy(poolkit, "network", **endpoint(expiring))
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert RENEW in answer.stderr
    assert "AWS continues with shop-dev-network" in answer.stderr
    assert "poolkit status network --environment dev --wait" in answer.stderr
    gate.end()
    again = deploy(poolkit, "network")
    assert "nothing to change" in again.stdout, again.stdout + again.stderr
