"""Both functions under the real runtime interface client, in frozen and thawed processes."""

import http.client
import json
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from lambda_events import sqs

from poolkit.lambda_fleet import FunctionConfig, LambdaFleet, Status

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]


@contextmanager
def fleet(tmp_path, url, handler="lambda_handler.app.handler", *, shutdown_ms=0, **environ):
    config = FunctionConfig(
        handler=handler,
        task_root=ROOT,
        env={"DATABASE_URL": url, **environ},
        reserved_concurrency=1,
        # However slow the machine is.
        timeout_s=100,
        init_limit_s=100,
        shutdown_ms=shutdown_ms,
    )
    with LambdaFleet(config, log_dir=tmp_path / "logs") as running:
        yield running


def request(running, method, path, body=None):
    address = urlsplit(running.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=110)
    try:
        headers = {"content-type": "application/json"}
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), json.loads(answer.read())
    finally:
        connection.close()


def log(tmp_path):
    return "".join(path.read_text() for path in (tmp_path / "logs").iterdir())


def test_the_api_answers_over_http(tmp_path, migrated_database):
    """By default no frozen execution environment holds a connection."""
    with fleet(tmp_path, migrated_database.url()) as running:
        status, headers, created = request(
            running, "POST", "/articles", {"title": "t", "body": "b"}
        )
        assert status == 201
        assert {name.lower(): value for name, value in headers.items()}["etag"] == '"1"'
        assert request(running, "GET", "/articles/1")[2] == created
        assert request(running, "GET", "/nowhere")[0] == 404
        migrated_database.wait_for_backends(0, "lambda:")
    metrics = [line for line in log(tmp_path).splitlines() if "ConnectionsOpened" in line]
    assert [json.loads(line)["ConnectionsOpened"] for line in metrics] == [[1.0], [1.0], [0.0]]
    assert ["ColdStart" in line for line in metrics] == [True, False, False]


def test_a_warm_connection_outlives_a_freeze_and_its_backend_may_not(tmp_path, migrated_database):
    """Frozen, the connection stays; reaped meanwhile, it is replaced without an error."""
    url = migrated_database.url()
    with fleet(tmp_path, url, POOLKIT_TARGET="lambda_warm") as running:
        assert request(running, "GET", "/articles")[0] == 200
        (backend,) = migrated_database.wait_for_backends(1, "lambda_warm:")
        # Named after the log stream, which is the execution environment's own.
        assert len(backend["application_name"]) == len("lambda_warm:") + 32
        assert request(running, "GET", "/articles")[0] == 200
        assert migrated_database.backends("lambda_warm:")[0]["pid"] == backend["pid"]
        migrated_database.execute("SELECT pg_terminate_backend(%s, 60000)", backend["pid"])
        assert request(running, "GET", "/articles")[0] == 200


def test_at_shutdown_the_connection_is_closed_in_order(tmp_path, migrated_database):
    """With an extension Lambda sends SIGTERM, and 500 ms are enough."""
    url = migrated_database.url()
    with fleet(tmp_path, url, POOLKIT_TARGET="lambda_warm", shutdown_ms=500) as running:
        assert request(running, "GET", "/articles")[0] == 200
        migrated_database.wait_for_backends(1, "lambda_warm:")
    migrated_database.wait_for_backends(0, "lambda_warm:")


def test_the_queue_is_worked_through(tmp_path, migrated_database):
    """The answer is the one that SQS's event source mapping reads."""
    body = json.dumps({"id": "a", "title": "t", "text": "x"})
    with fleet(
        tmp_path, migrated_database.url(), handler="lambda_handler.queue.handler"
    ) as running:
        for _ in range(2):
            outcome = running.invoke(sqs(body, "{"), timeout_s=110)
            assert outcome.status is Status.OK
            assert json.loads(outcome.payload) == {"batchItemFailures": []}
    assert len(migrated_database.execute("SELECT * FROM documents")) == 1
    assert len(migrated_database.execute("SELECT * FROM dead_letters")) == 1


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"POOLKIT_TARGET": "web"}, "allowed: lambda, lambda_warm, lambda_proxy"),
        ({"POOLKIT_FAIL_FAST": "true"}, "DatabaseUnavailable"),
    ],
    ids=["a wrong target", "no database"],
)
def test_a_failed_init_phase_says_why(tmp_path, environ, message):
    """The runtime reports the error itself, not a failed request."""
    url = "postgresql://nobody@127.0.0.1:9/nowhere"
    with fleet(tmp_path, url, **environ) as running:
        outcome = running.invoke({}, timeout_s=110)
        assert outcome.status is Status.INIT_ERROR
        assert message in outcome.payload.decode()
