"""What an execution environment is told, what it leaves in its log, and how it is ended."""

import json
import os
import re
import threading

import pytest
from lambda_fleet.conftest import WITH_CHILD
from processes import wait_until

from poolkit.errors import FleetNotRunning
from poolkit.lambda_fleet import Status

pytestmark = pytest.mark.process

TELL = """
    import os, time

    def handler(event, context):
        return {
            "variables": dict(os.environ),
            "cwd": os.getcwd(),
            "request_id": context.aws_request_id,
            "arn": context.invoked_function_arn,
            "remaining_ms": context.get_remaining_time_in_millis(),
            "version": context.function_version,
            "memory": context.memory_limit_in_mb,
        }
"""


def test_the_variables_are_lambdas(start, task_root):
    """Lambda's own variables, the function's, and nothing of the process that runs the fleet."""
    os.environ["FLEET_SECRET"] = "must not be inherited"
    try:
        fleet = start(TELL, env={"STAGE": "test"}, function_name="tell", memory_mb=256)
        told = json.loads(fleet.invoke({}).payload)
    finally:
        del os.environ["FLEET_SECRET"]
    variables = told["variables"]
    assert variables["_X_AMZN_TRACE_ID"].startswith("Root=1-")
    stream = r"\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}"
    assert re.fullmatch(stream, variables["AWS_LAMBDA_LOG_STREAM_NAME"])
    expected = {
        "_HANDLER": "app.handler",
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.12",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
        "AWS_LAMBDA_FUNCTION_NAME": "tell",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/tell",
        "AWS_REGION": "us-east-1",
        "LAMBDA_TASK_ROOT": str(task_root),
        "STAGE": "test",
        "TZ": ":UTC",
    }
    assert expected.items() <= variables.items()
    assert "FLEET_SECRET" not in variables


def test_the_context_is_the_invokes(start, task_root):
    """Request id, ARN, deadline and limits reach the handler's context."""
    fleet = start(TELL, function_name="tell", timeout_s=900)
    outcome = fleet.invoke({})
    told = json.loads(outcome.payload)
    assert told["request_id"] == outcome.request_id
    assert told["arn"] == "arn:aws:lambda:us-east-1:123456789012:function:tell"
    assert 800_000 < told["remaining_ms"] <= 900_000
    assert (told["version"], told["memory"], told["cwd"]) == ("$LATEST", "128", str(task_root))


def test_each_execution_environment_has_its_own_log_stream(start):
    """The log stream's name differs between execution environments, as on Lambda."""
    fleet = start(TELL)
    first = json.loads(fleet.invoke({}).payload)["variables"]["AWS_LAMBDA_LOG_STREAM_NAME"]
    os.kill(next(iter(fleet.pids().values())), 9)
    wait_until(lambda: fleet.pids() == {})
    second = json.loads(fleet.invoke({}).payload)["variables"]["AWS_LAMBDA_LOG_STREAM_NAME"]
    assert first != second


def test_the_log_holds_output_and_lambdas_lines(start, tmp_path):
    """What the handler prints stands between START and REPORT, with the init duration once."""
    fleet = start("def handler(event, context): print('from the handler')")
    outcome = fleet.invoke({})
    fleet.invoke({})
    fleet.stop()
    lines = (tmp_path / "logs" / "function-00001.log").read_text().splitlines()
    assert lines[0] == f"START RequestId: {outcome.request_id} Version: $LATEST"
    assert lines[1:3] == ["from the handler", f"END RequestId: {outcome.request_id}"]
    assert lines[3].startswith(f"REPORT RequestId: {outcome.request_id}\tDuration: ")
    assert [line.count("Init Duration") for line in lines if line.startswith("REPORT")] == [1, 0]


@pytest.fixture
def hears_sigterm(start, tmp_path):
    """Start and stop a fleet; tell whether its function heard SIGTERM."""

    def ask(shutdown_ms):
        fleet = start(
            f"""
            import os, signal

            def end(*_):
                open({str(tmp_path / "told")!r}, "w").close()
                os._exit(0)

            signal.signal(signal.SIGTERM, end)

            def handler(event, context):
                return 1
            """,
            shutdown_ms=shutdown_ms,
        )
        fleet.invoke({})
        fleet.stop()
        return (tmp_path / "told").exists()

    return ask


def test_sigterm_comes_before_the_shutdown_time(hears_sigterm):
    """A frozen function hears SIGTERM when it has an extension's grace."""
    # The most there is, and several times: a busy machine may let it pass.
    assert any(hears_sigterm(shutdown_ms=2_000) for _ in range(5))


def test_no_sigterm_without_a_shutdown_time(hears_sigterm):
    """A function without an extension is killed."""
    assert not hears_sigterm(shutdown_ms=0)


def test_who_ignores_sigterm_is_killed(start, process_state):
    """After `shutdown_ms` comes SIGKILL."""
    fleet = start(
        """
        import os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

        def handler(event, context):
            return os.getpid()
        """,
        shutdown_ms=100,
    )
    pid = int(fleet.invoke({}).payload)
    fleet.stop()
    assert process_state(pid) == ""


def test_stop_leaves_no_process(start, process_state):
    """Execution environments and what they started are gone when `stop` returns, or soon after."""
    fleet = start(WITH_CHILD)
    pid, child = json.loads(fleet.invoke({}).payload)
    fleet.stop()
    assert process_state(pid) == ""
    wait_until(lambda: process_state(child) == "")


def test_an_invoke_in_flight_is_answered_at_stop(start, threads):
    """A caller that waits gets an outcome: the process has been killed."""
    fleet = start("import time\ndef handler(e, c): time.sleep(60)")
    waiting = threads.submit(fleet.invoke, {})
    wait_until(lambda: fleet.stats()["execution_environments"]["busy"] == 1)
    fleet.stop()
    assert waiting.result(60).status is Status.EXIT


def test_no_caller_hangs_when_the_fleet_stops_meanwhile(start, threads):
    """Each call from another thread gets an outcome or FleetNotRunning, whenever it comes."""
    fleet = start("def handler(event, context): return 1", reserved_concurrency=2)
    fleet.invoke({})
    running = threading.Event()

    def call():
        while True:
            fleet.invoke({}, timeout_s=60)
            running.set()

    calling = [threads.submit(call) for _ in range(6)]
    assert running.wait(60)
    fleet.stop()
    assert {type(future.exception(60)) for future in calling} == {FleetNotRunning}


def test_memory_and_cpu_of_a_frozen_one_are_known(start):
    """The usage is that of each execution environment, its children included."""
    fleet = start("def handler(event, context): return 1")
    fleet.prewarm(2)
    rows = fleet.usage()
    assert len(rows) == 2
    for row in rows:
        assert row.rss_bytes >= row.pss_bytes > 1_000_000
        assert row.cpu_s > 0
