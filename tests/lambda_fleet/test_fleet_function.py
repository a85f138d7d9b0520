"""Which execution environment serves which invoke, and what ends one."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from lambda_fleet.conftest import WITH_CHILD
from processes import wait_until

from poolkit.errors import FunctionConfigError, FunctionInitError
from poolkit.lambda_fleet import Status

pytestmark = pytest.mark.process

PID = """
    import os

    def handler(event, context):
        return os.getpid()
"""

# Tells that it has begun, then holds its execution environment until it is released.
HOLD = """
    import os, time

    def handler(event, context):
        open(f"{event['hold']}.{event['n']}", "w").close()
        while not os.path.exists(event["hold"]):
            time.sleep(0.005)
        return os.getpid()
"""

# Its init phase lasts until it is released.
WAITS_IN_INIT = """
    import os, time

    while not os.path.exists({go!r}):
        time.sleep(0.005)

    def handler(event, context):
        return os.getpid()
"""

LATE = "import time; time.sleep({})\ndef handler(e, c): return 'late'"
OVER_THE_LIMIT = "ReservedFunctionConcurrentInvocationLimitExceeded"


def pid_of(outcome):
    assert outcome.status is Status.OK, outcome
    return int(outcome.payload)


def hold(fleet, threads, marker, count):
    """Have `count` invokes in flight at once; return their futures."""
    futures = [threads.submit(fleet.invoke, {"hold": str(marker), "n": n}) for n in range(count)]
    for n in range(count):
        wait_until(Path(f"{marker}.{n}").exists)
    return futures


def test_the_first_invoke_is_cold_and_the_next_is_warm(start):
    """A new process serves the first invoke and the same process the second; counted apart."""
    fleet = start(PID)
    assert pid_of(fleet.invoke({})) == pid_of(fleet.invoke({}))
    first, second = fleet.records()
    assert (first.cold, second.cold) == (True, False)
    assert first.init_ms > 0
    assert second.init_ms is None
    assert (fleet.stats()["cold"], fleet.stats()["warm"]) == (1, 1)


def test_an_invoke_that_finds_none_idle_starts_a_new_one(start, threads, tmp_path):
    """Three invokes at once are served by three processes."""
    fleet = start(HOLD)
    futures = hold(fleet, threads, tmp_path / "go", 3)
    (tmp_path / "go").touch()
    assert len({pid_of(future.result()) for future in futures}) == 3
    assert fleet.stats()["cold"] == 3


def test_the_most_recently_used_is_taken(start, threads, tmp_path):
    """Of several idle execution environments the one that was used last serves the next invoke."""
    fleet = start(HOLD)
    futures = hold(fleet, threads, tmp_path / "go", 3)
    (tmp_path / "go").touch()
    for future in futures:
        future.result()
    used = set()
    for _ in range(5):
        wait_until(lambda: fleet.stats()["execution_environments"]["idle"] == 3)
        used.add(pid_of(fleet.invoke({"hold": str(tmp_path / "go"), "n": "again"})))
    assert len(used) == 1


@pytest.mark.parametrize(
    ("throttle_status", "body"),
    [
        (429, {"Reason": OVER_THE_LIMIT, "Type": "User", "message": "Rate Exceeded."}),
        (503, {"message": "Service Unavailable"}),
    ],
)
def test_more_than_the_reserved_concurrency_is_throttled(  # noqa: PLR0917 - fixtures
    start, call, threads, tmp_path, throttle_status, body
):
    """With every execution environment busy the next request is refused, and starts none."""
    fleet = start(HOLD, reserved_concurrency=2, throttle_status=throttle_status)
    futures = hold(fleet, threads, tmp_path / "go", 2)
    refused = call(fleet)
    (tmp_path / "go").touch()
    assert (refused.status, json.loads(refused.body)) == (throttle_status, body)
    assert [future.result().status for future in futures] == [Status.OK, Status.OK]
    assert fleet.stats()["throttled"] == 1
    assert fleet.stats()["execution_environments_started"] == 2


def test_an_invoke_during_a_cold_start_counts_towards_the_concurrency(start, threads, tmp_path):
    """While the only one allowed is still in its init phase, a second invoke is throttled."""
    fleet = start(WAITS_IN_INIT.format(go=str(tmp_path / "go")), reserved_concurrency=1)
    first = threads.submit(fleet.invoke, {})
    wait_until(lambda: fleet.stats()["execution_environments"]["init"] == 1)
    try:
        assert fleet.invoke({}, timeout_s=60).status is Status.THROTTLED
    finally:
        (tmp_path / "go").touch()
    assert first.result().status is Status.OK


def test_a_closed_loop_of_as_many_clients_as_concurrency_is_never_throttled(start, threads):
    """A request that follows its predecessor's answer at once waits for the runtime's next poll."""
    fleet = start(PID, reserved_concurrency=4)

    def client():
        return [fleet.invoke({}).status for _ in range(50)]

    statuses = [future.result() for future in [threads.submit(client) for _ in range(4)]]
    assert {status for client in statuses for status in client} == {Status.OK}
    assert fleet.stats()["execution_environments_started"] <= 4


def test_twenty_clients_at_once_get_their_own_answers(start, call, threads):
    """No answer is ever given to another client."""
    fleet = start(
        "def handler(event, context): return event['rawQueryString']", reserved_concurrency=20
    )

    def client(number):
        return [call(fleet, f"/?{number}-{n}").body == f"{number}-{n}".encode() for n in range(10)]

    for future in [threads.submit(client, number) for number in range(20)]:
        assert all(future.result())


def test_an_idle_one_is_frozen_with_its_children_and_thawed_again(start, process_state):
    """After its answer the whole process group is stopped; the same process serves the next."""
    fleet = start(WITH_CHILD)
    pid, child = json.loads(fleet.invoke({}).payload)
    wait_until(lambda: process_state(pid) == "T" and process_state(child) == "T")
    assert json.loads(fleet.invoke({}).payload)[0] == pid
    wait_until(lambda: process_state(pid) == "T")
    assert fleet.stats()["freezes"] == 2


def test_freezing_can_be_switched_off(start, process_state):
    """With `freeze=False` an idle process goes on running."""
    fleet = start(PID, freeze=False)
    pid = pid_of(fleet.invoke({}))
    wait_until(lambda: fleet.stats()["execution_environments"]["idle"] == 1)
    assert process_state(pid) not in ("T", "")
    assert fleet.stats()["freezes"] == 0


def test_an_idle_one_is_reaped(start, process_state):
    """After `idle_timeout_s` a frozen execution environment ends, and the next invoke is cold."""
    fleet = start(PID, idle_timeout_s=0.1)
    pid = pid_of(fleet.invoke({}))
    wait_until(lambda: fleet.pids() == {})
    assert process_state(pid) == ""
    assert fleet.stats()["execution_environments_reaped"] == 1
    assert pid_of(fleet.invoke({})) != pid
    assert fleet.stats()["cold"] == 2


def test_a_used_one_is_not_reaped_before_its_time(start):
    """The idle time counts from the last use of each, so the one in use stays."""
    fleet = start(PID, idle_timeout_s=0.5)
    fleet.prewarm(2)
    last_use = {}
    while len(left := set(fleet.pids().values())) > 1:
        states = fleet.stats()["execution_environments"]
        if states["idle"] == sum(states.values()):
            began = time.monotonic()
            last_use[pid_of(fleet.invoke({}))] = began
    # On a machine that stood still in between, none may be left.
    now = time.monotonic()
    assert all(pid in left or now - began >= 0.5 for pid, began in last_use.items())


def test_an_invoke_that_takes_too_long_is_ended(start, call, process_state, tmp_path):
    """The process is killed, the caller gets Lambda's text, and the next invoke is cold.

    An HTTP client gets a 500 without the reason.
    """
    fleet = start(
        f"""
        import os, time

        with open({str(tmp_path / "pids")!r}, "a") as pids:
            print(os.getpid(), file=pids)

        def handler(event, context):
            time.sleep(600)
        """,
        timeout_s=0.25,
    )
    outcome = fleet.invoke({})
    assert outcome.status is Status.TIMEOUT
    assert outcome.function_error
    message = json.loads(outcome.payload)["errorMessage"]
    assert re.fullmatch(
        rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z {outcome.request_id} "
        r"Task timed out after 0\.25 seconds",
        message,
    )
    first, *others = (tmp_path / "pids").read_text().split()
    assert others == []
    wait_until(lambda: process_state(int(first)) == "")
    answer = call(fleet)
    assert (answer.status, answer.body) == (500, b'{"message":"Internal Server Error"}')
    assert len(set((tmp_path / "pids").read_text().split())) == 2
    # The event loop's timers count whole milliseconds.
    assert all(record.cold and record.duration_ms > 248 for record in fleet.records())


@pytest.mark.parametrize(
    ("source", "error_type", "message"),
    [
        ("import no_such_module", "Runtime.ImportModuleError", "No module named 'no_such_module'"),
        ("def handler(:", "Runtime.UserCodeSyntaxError", "Syntax error"),
        ("other = 1", "Runtime.HandlerNotFound", "Handler 'handler' missing"),
        ("raise ValueError('no settings')", "ValueError", "no settings"),
        ("import os; os._exit(3)", "Runtime.ExitError", "exit status 3"),
        ("import os; os._exit(0)", "Runtime.ExitError", "exited without providing a reason"),
    ],
)
def test_a_failed_init_phase_is_reported(start, source, error_type, message):
    """The runtime's own error reaches the caller; nothing of the process stays."""
    fleet = start(source)
    outcome = fleet.invoke({})
    error = json.loads(outcome.payload)
    assert outcome.status is Status.INIT_ERROR
    assert error["errorType"] == error_type
    assert message in error["errorMessage"]
    (record,) = fleet.records()
    assert (record.cold, record.error_type) == (True, error_type)
    wait_until(lambda: fleet.pids() == {})
    assert fleet.stats()["concurrency"] == 0


@pytest.mark.parametrize(
    ("variable", "mode", "reason"),
    [("with\0NUL", 0o700, "embedded null byte"), ("", 0o600, "Permission denied")],
    ids=["ValueError", "OSError"],
)
def test_a_process_that_cannot_be_started_is_an_init_error(start, tmp_path, variable, mode, reason):
    """Whatever Popen raises, the invoke ends, prewarming fails and the fleet can be stopped."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(mode)
    fleet = start("def handler(event, context): pass", python=python, env={"NAME": variable})
    outcome = fleet.invoke({}, timeout_s=100)
    assert outcome.status is Status.INIT_ERROR
    said = outcome.payload.decode().replace("[Errno 13] ", "")
    assert f"Runtime was not started: {reason}" in said
    with pytest.raises(FunctionInitError, match=reason):
        fleet.prewarm(1)
    fleet.stop()


@pytest.mark.parametrize(
    ("source", "init_limit_s", "reason"),
    [
        ("import no_such_module", 100, r"no_such_module.*\.log"),
        ("import time; time.sleep(60)", 0.1, r"took longer than init_limit_s, 0\.1 s"),
    ],
    ids=["import error", "too slow"],
)
def test_prewarming_reports_why_a_handler_does_not_import(start, source, init_limit_s, reason):
    """The error comes at once, or at the init limit, with the file of the output."""
    fleet = start(source, init_limit_s=init_limit_s)
    with pytest.raises(FunctionInitError, match=reason):
        fleet.prewarm(1)
    wait_until(lambda: fleet.pids() == {})


def test_prewarming_stays_within_the_reserved_concurrency(start):
    """More than may run at once are not started, with those that live already counted."""
    fleet = start(PID, reserved_concurrency=2)
    with pytest.raises(FunctionConfigError, match=r"cannot start 3 .* reserved_concurrency of 2"):
        fleet.prewarm(3)
    assert fleet.pids() == {}
    fleet.prewarm(2)
    with pytest.raises(FunctionConfigError, match=r"cannot start 1 .* beside the 2 there are"):
        fleet.prewarm(1)
    assert len(fleet.pids()) == 2


def test_an_invoke_waits_for_one_that_is_being_prewarmed(start, threads, tmp_path):
    """With no room for another it is served by one of those, as a cold start."""
    go = tmp_path / "go"
    fleet = start(WAITS_IN_INIT.format(go=str(go)), reserved_concurrency=2)
    prewarmed = threads.submit(fleet.prewarm, 2)
    wait_until(lambda: fleet.stats()["execution_environments"]["init"] == 2)
    waiting = [threads.submit(fleet.invoke, {}) for _ in range(2)]
    wait_until(lambda: fleet.stats()["concurrency"] == 2)
    throttled = fleet.invoke({}, timeout_s=60).status
    go.touch()
    assert throttled is Status.THROTTLED
    assert len({pid_of(future.result()) for future in waiting}) == 2
    prewarmed.result()
    stats = fleet.stats()
    assert (stats["cold"], stats["peak_concurrency"]) == (2, 2)
    assert stats["peak_execution_environments"] == 2
    served = [record for record in fleet.records() if record.status is Status.OK]
    assert all(record.init_ms > 0 for record in served)


def test_an_invoke_returns_why_prewarming_failed(start, threads, tmp_path):
    """The invoke that waited for it gets the error of the init phase."""
    go = tmp_path / "go"
    source = WAITS_IN_INIT.format(go=str(go)) + "\n    raise ValueError('no settings')\n"
    fleet = start(source, reserved_concurrency=1)
    prewarmed = threads.submit(fleet.prewarm, 1)
    wait_until(lambda: fleet.stats()["execution_environments"]["init"] == 1)
    waiting = threads.submit(fleet.invoke, {})
    wait_until(lambda: fleet.stats()["concurrency"] == 1)
    go.touch()
    assert waiting.result().status is Status.INIT_ERROR
    with pytest.raises(FunctionInitError, match="no settings"):
        prewarmed.result()
    assert fleet.stats()["concurrency"] == 0


def test_a_slow_prewarming_is_tried_again_for_the_invoke_that_waits(start, threads):
    """Past the init limit prewarming has failed, and the invoke goes on with a start of its own."""
    fleet = start(LATE.format(1), init_limit_s=0.5, reserved_concurrency=1)
    prewarmed = threads.submit(fleet.prewarm, 1)
    # Not its state: after a stall of the machine it may be over the limit already, and gone.
    wait_until(lambda: fleet.stats()["execution_environments_started"] == 1)
    assert fleet.invoke({}).payload == b'"late"'
    with pytest.raises(FunctionInitError, match=r"took longer than init_limit_s, 0\.5 s"):
        prewarmed.result()


def test_a_slow_init_phase_is_tried_again_within_the_invoke(start):
    """Past the init limit Lambda starts over, with the function's timeout as the new limit."""
    fleet = start(LATE.format(0.4), init_limit_s=0.1, timeout_s=100)
    assert fleet.invoke({}).payload == b'"late"'
    assert fleet.stats()["execution_environments_started"] == 2
    assert fleet.stats()["cold"] == 1


def test_an_init_phase_that_is_tried_again_uses_up_the_invokes_time(start):
    """The handler has left of the timeout what the second try did not take."""
    fleet = start(
        """
        import time

        time.sleep(0.5)

        def handler(event, context):
            return context.get_remaining_time_in_millis()
        """,
        init_limit_s=0.1,
        timeout_s=100,
    )
    remaining_ms = json.loads(fleet.invoke({}).payload)
    assert fleet.stats()["execution_environments_started"] == 2
    assert 0 < remaining_ms <= 99_500


def test_an_init_phase_that_stays_too_slow_times_out(start):
    """The second try ends with the function's timeout."""
    fleet = start("import time; time.sleep(60)", init_limit_s=0.1, timeout_s=0.2)
    outcome = fleet.invoke({})
    assert outcome.status is Status.TIMEOUT
    assert b"Task timed out after 0.20 seconds" in outcome.payload
    wait_until(lambda: fleet.pids() == {})


def test_a_handler_error_is_reported_and_the_process_stays(start, call):
    """Type, message and stack trace reach the caller; the next invoke is warm."""
    fleet = start("def handler(event, context): raise KeyError('no such article')")
    outcome = fleet.invoke({})
    error = json.loads(outcome.payload)
    assert outcome.status is Status.HANDLER_ERROR
    assert (error["errorType"], error["errorMessage"]) == ("KeyError", "'no such article'")
    assert "in handler" in error["stackTrace"][0]
    assert call(fleet).status == 500
    assert fleet.stats()["execution_environments_started"] == 1


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "Runtime exited with error: signal: killed"),
        ("os._exit(7)", "Runtime exited with error: exit status 7"),
        ("os._exit(0)", "Runtime exited without providing a reason"),
        ("os.abort()", "Runtime exited with error: signal: aborted"),
    ],
)
def test_a_process_that_ends_in_an_invoke_is_reported(start, tmp_path, end, reason):
    """Lambda calls it Runtime.ExitError, also in the log, and the next invoke is a cold start."""
    fleet = start(
        f"""
        import os, signal

        def handler(event, context):
            if event.get("end"):
                {end}
            return 1
        """
    )
    outcome = fleet.invoke({"end": True})
    assert outcome.status is Status.EXIT
    assert json.loads(outcome.payload) == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: {outcome.request_id} Error: {reason}",
    }
    assert fleet.invoke({}).status is Status.OK
    assert fleet.stats()["cold"] == 2
    assert "Error Type: Runtime.ExitError" in (tmp_path / "logs/function-00001.log").read_text()


def test_an_idle_process_that_was_killed_causes_no_error(start):
    """A frozen execution environment that ends is forgotten; the next invoke is a cold start."""
    fleet = start(PID)
    pid = pid_of(fleet.invoke({}))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: fleet.pids() == {})
    assert pid_of(fleet.invoke({})) != pid


def test_a_response_over_six_megabytes_is_an_error(start):
    """Lambda refuses the runtime's answer and reports its size limit."""
    fleet = start("def handler(event, context): return 'x' * event['size']")
    assert fleet.invoke({"size": 6_291_554}).status is Status.OK
    outcome = fleet.invoke({"size": 6_291_555})
    assert outcome.status is Status.RESPONSE_TOO_LARGE
    assert json.loads(outcome.payload)["errorType"] == "Function.ResponseSizeTooLarge"
    assert fleet.invoke({"size": 1}).status is Status.OK


def test_the_runtime_api_refuses_what_is_out_of_turn(start):
    """An answer to another invoke, a poll while busy and an unknown resource are refused."""
    fleet = start(
        """
        import http.client, os

        def ask(method, path):
            connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
            connection.request(method, "/2018-06-01/runtime" + path, "{}" if method == "POST" else None)
            status = connection.getresponse().status
            connection.close()
            return status

        def handler(event, context):
            return [
                ask("POST", "/invocation/another/response"),
                ask("GET", "/invocation/next"),
                ask("POST", "/init/error"),
                ask("GET", "/nothing"),
            ]
        """
    )
    assert json.loads(fleet.invoke({}).payload) == [400, 403, 403, 404]
    assert fleet.invoke({}).status is Status.OK


def test_a_runtime_that_does_not_come_back_is_ended(start):
    """An invoke that waits for it is served by another execution environment instead."""
    fleet = start(
        """
        import os, time
        from awslambdaric.lambda_runtime_client import LambdaRuntimeClient

        polls = 0
        poll = LambdaRuntimeClient.wait_next_invocation

        def poll_once(client):
            global polls
            polls += 1
            if polls > 1:
                time.sleep(60)
            return poll(client)

        LambdaRuntimeClient.wait_next_invocation = poll_once

        def handler(event, context):
            return os.getpid()
        """,
        timeout_s=0.5,
    )
    # The limit is every invoke's too, and a busy machine may let one pass; not all of them.
    while fleet.invoke({}).status is Status.TIMEOUT:
        assert len(fleet.records()) < 20
    outcome = fleet.invoke({})
    served, following = fleet.records()[-2:]
    assert served.status is Status.OK
    assert outcome.status in (Status.OK, Status.TIMEOUT)
    assert following.cold
    assert following.execution_environment != served.execution_environment


def test_a_log_that_cannot_be_made_is_reported(start, tmp_path):
    """The invoke fails with the reason, and the fleet goes on once the directory is back."""
    fleet = start(PID)
    (tmp_path / "logs").rmdir()
    outcome = fleet.invoke({})
    assert outcome.status is Status.INIT_ERROR
    assert b"No such file or directory" in outcome.payload
    (tmp_path / "logs").mkdir()
    assert fleet.invoke({}).status is Status.OK
