"""What the functions write: log lines in JSON, metrics in CloudWatch's embedded format."""

import json
import time

import pytest
from behaviour.lambda_face import open_face
from processes import run_python

ONE_REQUEST = """
import json, sys
from behaviour.lambda_face import http_api_event, new_context
from lambda_handler.app import handler
handler(http_api_event("GET", "/articles"), new_context())
"""


@pytest.fixture
def metrics(capsys):
    """Return the metrics written since the last call, without their timestamps."""

    def read():
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for line in lines:
            assert line["_aws"].pop("Timestamp") > 1_700_000_000_000
        return lines

    return read


def test_each_invoke_writes_one_line_of_metrics(migrated_database, metrics):
    """It holds the dimensions, each metric's unit, and the values."""
    with open_face(migrated_database.url(), POOLKIT_TARGET="lambda_warm") as face:
        began = time.perf_counter()
        face.request("GET", "/articles")
        spent_ms = (time.perf_counter() - began) * 1000
        (first,) = metrics()
        face.request("GET", "/articles")
        (second,) = metrics()
        waits_ms = face.environment.snapshot().checkout_wait.total * 1000
    (wait,), (again,) = first.pop("CheckoutWait"), second["CheckoutWait"]
    assert 0 < wait < spent_ms
    assert again > 0
    assert wait + again == pytest.approx(waits_ms)
    service = first["service"]
    assert first == {
        "_aws": {
            "CloudWatchMetrics": [
                {
                    "Namespace": "poolkit",
                    "Dimensions": [["target", "environment", "service"]],
                    "Metrics": [
                        {"Name": "ColdStart", "Unit": "Count"},
                        {"Name": "ConnectionsOpened", "Unit": "Count"},
                        {"Name": "CheckoutWait", "Unit": "Milliseconds"},
                    ],
                }
            ]
        },
        "target": "lambda_warm",
        "environment": "dev",
        "service": service,
        "ColdStart": [1.0],
        "ConnectionsOpened": [1.0],
    }
    assert "ColdStart" not in second
    assert second["ConnectionsOpened"] == [0.0]


def test_an_invoke_without_a_checkout_has_no_wait(migrated_database, metrics):
    """No figure, rather than a zero that would lower the average."""
    with open_face(migrated_database.url()) as face:
        face.request("GET", "/nowhere")
    (line,) = metrics()
    assert "CheckoutWait" not in line
    assert line["ConnectionsOpened"] == [0.0]


def test_a_failed_connect_is_no_connection_opened(migrated_database, metrics):
    """The database's refusal is a 503 and a warning, and the metrics are written."""
    url = migrated_database.url().replace(migrated_database.name, "no_such_database")
    with open_face(url) as face:
        answer = face.request("GET", "/articles")
        (line,) = face.logs()
    assert answer.status == 503
    assert answer.headers["retry-after"] == "5"
    assert (line["level"], line["message"]) == ("WARNING", "database error")
    assert "no_such_database" in line["error"]
    assert metrics()[0]["ConnectionsOpened"] == [0.0]


def test_names_come_from_powertools_variables(migrated_database, metrics):
    """The service and the namespace are what the template sets."""
    names = {"POWERTOOLS_SERVICE_NAME": "other", "POWERTOOLS_METRICS_NAMESPACE": "elsewhere"}
    with open_face(migrated_database.url(), **names) as face:
        face.request("GET", "/nowhere")
    (line,) = metrics()
    assert line["service"] == "other"
    assert line["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "elsewhere"


def test_a_log_line_names_the_invoke(migrated_database):
    """Lines have the request id of Lambda and say whether this was a cold start."""
    migrated_database.execute("DROP TABLE articles")
    with open_face(migrated_database.url()) as face:
        face.request("GET", "/articles")
        face.request("GET", "/articles")
        first, second = face.logs()
    assert (first["cold_start"], second["cold_start"]) == (True, False)
    assert first["function_request_id"] != second["function_request_id"]
    assert first["correlation_id"] != second["correlation_id"]
    assert first["timestamp"].endswith("+0000")


@pytest.mark.parametrize(
    ("kind", "cold"), [("on-demand", True), ("provisioned-concurrency", False)]
)
def test_provisioned_concurrency_has_no_cold_start(migrated_database, kind, cold):
    """Nothing is written but one line of metrics, and nothing at import."""
    environ = {"PYTHONPATH": "tests", "AWS_LAMBDA_INITIALIZATION_TYPE": kind}
    environ["DATABASE_URL"] = migrated_database.url()
    done = run_python("-c", ONE_REQUEST, environ=environ, clean=True)
    (line,) = done.stdout.splitlines()
    assert ("ColdStart" in json.loads(line)) is cold
    assert (done.returncode, done.stderr) == (0, "")
