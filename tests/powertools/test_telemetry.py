"""What a function writes: log lines in JSON, metrics in CloudWatch's embedded format."""

import json
import time

import pytest
from lambda_events import CORRELATION_IDS, MAKERS, new_context, sqs
from processes import run_python
from sqlalchemy import text

from poolkit.powertools import instrument

ONE_INVOKE = """
from aws_lambda_powertools import Logger
from lambda_events import new_context
from poolkit.powertools import ExecutionEnvironment, instrument

logger = Logger()

@instrument(ExecutionEnvironment.open(), logger)
def handler(event, context):
    return None

handler({}, new_context())
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


def instrumented(environment, log, work=lambda environment: None, **options):
    """Return a function's handler that does this work."""

    @instrument(environment, log.logger, **options)
    def handler(event, context):
        log.logger.info("working")
        return work(environment)

    return lambda event=None: handler(event or {}, new_context())


def select(environment):
    with environment.connection() as connection:
        connection.execute(text("SELECT 1"))


def test_each_invoke_writes_one_line_of_metrics(open_environment, log, metrics):
    """It holds the dimensions, each metric's unit, and the values."""
    environment = open_environment(POOLKIT_TARGET="lambda_warm")
    handler = instrumented(environment, log, select)
    began = time.perf_counter()
    handler()
    spent_ms = (time.perf_counter() - began) * 1000
    (first,) = metrics()
    handler()
    (second,) = metrics()
    (held,), (share,) = first.pop("HoldTime"), first.pop("BusyShare")
    assert 0 < held < spent_ms
    assert 0 < share <= 100
    waits_ms = environment.snapshot().checkout_wait.total * 1000
    (wait,), (again,) = first.pop("CheckoutWait"), second["CheckoutWait"]
    assert 0 < wait < spent_ms
    assert again > 0
    assert wait + again == pytest.approx(waits_ms)
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
                        {"Name": "HoldTime", "Unit": "Milliseconds"},
                        {"Name": "BusyShare", "Unit": "Percent"},
                    ],
                }
            ]
        },
        "target": "lambda_warm",
        "environment": "dev",
        "service": log.logger.service,
        "ColdStart": [1.0],
        "ConnectionsOpened": [1.0],
    }
    assert "ColdStart" not in second
    assert second["ConnectionsOpened"] == [0.0]


def test_an_invoke_without_a_checkout_has_no_wait(environment, log, metrics):
    """No figure, rather than a zero that would lower the average."""
    instrumented(environment, log)()
    (line,) = metrics()
    assert "CheckoutWait" not in line
    assert line["ConnectionsOpened"] == [0.0]


def test_an_invoke_that_raises_is_measured(environment, log, metrics):
    """The exception goes on to the runtime."""

    def fail(environment):
        select(environment)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        instrumented(environment, log, fail)()
    assert metrics()[0]["ConnectionsOpened"] == [1.0]


def test_the_namespace_is_powertools_unless_it_is_given(environment, log, metrics, monkeypatch):
    """The argument comes before the variable."""

    def namespace(**options):
        instrumented(environment, log, **options)()
        (line,) = metrics()
        return line["_aws"]["CloudWatchMetrics"][0]["Namespace"]

    monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "variable")
    assert namespace() == "variable"
    assert namespace(namespace="mine") == "mine"


def test_a_log_line_names_the_invoke(environment, log):
    """Lines have the request id of Lambda and say whether this was a cold start."""
    handler = instrumented(environment, log)
    handler()
    handler()
    first, second = log.lines()
    assert (first["cold_start"], second["cold_start"]) == (True, False)
    assert first["function_request_id"] != second["function_request_id"]
    assert first["timestamp"].endswith("+0000")


@pytest.mark.parametrize("source", MAKERS)
def test_a_request_is_logged_under_the_senders_id(environment, log, source):
    """What the function logs can be found by the id in the service's own log."""
    instrumented(environment, log)(MAKERS[source]("GET", "/"))
    (line,) = log.lines()
    assert line["correlation_id"] == CORRELATION_IDS[source]


@pytest.mark.parametrize("event", [{}, sqs("{}"), [], None], ids=["empty", "SQS", "list", "null"])
def test_any_other_event_is_logged_under_the_invokes_id(environment, log, event):
    """The handler decides what it makes of the event."""
    instrumented(environment, log)(event)
    (line,) = log.lines()
    assert line["correlation_id"] == line["function_request_id"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("kind", "cold"), [("on-demand", True), ("provisioned-concurrency", False)]
)
def test_provisioned_concurrency_has_no_cold_start(database, kind, cold):
    """Nothing is written but one line of metrics, and nothing at import."""
    environ = {"PYTHONPATH": "tests", "AWS_LAMBDA_INITIALIZATION_TYPE": kind}
    environ["DATABASE_URL"] = database.url()
    done = run_python("-c", ONE_INVOKE, environ=environ, clean=True)
    (line,) = done.stdout.splitlines()
    assert ("ColdStart" in json.loads(line)) is cold
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_connection_in_an_invoke_is_counted(open_environment, log, metrics):
    """It waits for ever where the function has one connection, and costs two where it has none."""

    def nested(environment):
        with environment.engine.connect(), environment.engine.connect():
            pass

    environment = open_environment(POOLKIT_TARGET="lambda")
    handler = instrumented(environment, log, nested)
    handler(sqs("{}"))
    (line,) = metrics()
    assert line["NestedCheckouts"] == [1.0]
    assert {row.unit for row in environment._metrics.holds.rows()} == {"aws:sqs"}
    instrumented(environment, log, select)()
    assert "NestedCheckouts" not in metrics()[0]
