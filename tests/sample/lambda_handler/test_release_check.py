"""A release whose database is wrong: what its functions answer, which metric rises, what the hook says."""

import http.client
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from closed_databases import CLOSED

from poolkit.lambda_fleet import FunctionConfig, LambdaFleet, Status
from poolkit.powertools import release

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
HANDLERS = ("lambda_handler.app.handler", "lambda_handler.queue.handler")
EVENT = {"DeploymentId": "d-ABC123", "LifecycleEventHookExecutionId": "execution"}


@contextmanager
def fleet(tmp_path, url, handler=HANDLERS[0]):
    config = FunctionConfig(
        handler=handler,
        task_root=ROOT,
        env={"DATABASE_URL": url, "POOLKIT_CONNECT_TIMEOUT": "1"},
        reserved_concurrency=1,
        timeout_s=100,
        init_limit_s=100,
    )
    with LambdaFleet(config, log_dir=tmp_path / "logs") as running:
        yield running


class _CodeDeploy(BaseHTTPRequestHandler):
    """CodeDeploy's API, which moto lacks: it keeps the statuses that it is sent."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.headers["x-amz-target"].endswith(".PutLifecycleEventHookExecutionStatus")
        self.server.received.append(json.loads(body))
        self.send_response(200)
        self.send_header("content-type", "application/x-amz-json-1.1")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *arguments):
        pass


@pytest.fixture
def received(monkeypatch):
    """What CodeDeploy was told, by a hook that runs here."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _CodeDeploy) as server:
        server.received = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_ENDPOINT_URL_CODEDEPLOY": f"http://127.0.0.1:{server.server_port}",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(release, "PAUSE", 0.01)
        yield server.received
        server.shutdown()
        thread.join()


def run_hook(running, monkeypatch, version="function"):
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", running.url)
    monkeypatch.setenv("POOLKIT_CHECKED_VERSIONS", version)
    return release.handler(EVENT, None)


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_version_with_a_database_gets_traffic(
    tmp_path, migrated_database, received, monkeypatch, handler
):
    """Both functions answer the check, and CodeDeploy is told to go on."""
    with fleet(tmp_path, migrated_database.url(), handler) as running:
        assert run_hook(running, monkeypatch)["status"] == "Succeeded"
    assert received == [
        {
            "deploymentId": "d-ABC123",
            "lifecycleEventHookExecutionId": "execution",
            "status": "Succeeded",
        }
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        (HANDLERS[0], "connection refused"),
        (HANDLERS[0], "wrong password"),
        (HANDLERS[1], "wrong password"),
    ],
    ids=" ".join,
)
def test_a_version_without_a_database_gets_no_traffic(
    tmp_path, migrated_database, received, monkeypatch, wrong
):
    """The hook fails the deployment, and its answer says why."""
    handler, reason = wrong
    with fleet(tmp_path, CLOSED[reason](migrated_database), handler) as running:
        answer = run_hook(running, monkeypatch)
    assert answer["failures"].keys() == {"function"}
    assert "DatabaseUnavailable" in answer["failures"]["function"]
    assert [each["status"] for each in received] == ["Failed"]


def test_a_version_that_cannot_be_invoked_gets_no_traffic(
    tmp_path, migrated_database, received, monkeypatch
):
    """A refused invoke is a failed check, and not a crash of the hook."""
    with fleet(tmp_path, migrated_database.url()) as running:
        answer = run_hook(running, monkeypatch, "another")
    assert "ResourceNotFoundException" in answer["failures"]["another"]
    assert [each["status"] for each in received] == ["Failed"]


def test_an_answer_of_503_raises_the_metric_of_its_version_alone(tmp_path, migrated_database):
    """Lambda sees a success, so `Errors` stays 0; `ServerErrors` rises, by version."""
    with fleet(tmp_path, CLOSED["connection refused"](migrated_database)) as running:
        address = urlsplit(running.url)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=110)
        connection.request("GET", "/articles")
        assert connection.getresponse().status == 503
        connection.close()
        assert [each.status for each in running.records()] == [Status.OK]
    lines = [
        json.loads(line)
        for file in (tmp_path / "logs").iterdir()
        for line in file.read_text().splitlines()
        if "ServerErrors" in line
    ]
    assert [line["ServerErrors"] for line in lines] == [[1.0]]
    (metric,) = lines[0]["_aws"]["CloudWatchMetrics"]
    (dimensions,) = metric["Dimensions"]
    assert set(dimensions) == {"target", "environment", "service", "version"}
    assert lines[0]["version"] == "$LATEST"
