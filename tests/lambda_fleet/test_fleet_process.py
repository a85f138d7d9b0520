"""The fleet as a process: what it prints, and that nothing of it stays."""

import http.client
import json
import resource
import signal
import sys
import urllib.request
from itertools import count, islice
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from processes import run, started, wait_until

pytestmark = pytest.mark.process

HANDLER = """
import os

def handler(event, context):
    return os.getpid()
"""


@pytest.fixture
def command(task_root, tmp_path):
    """The command line of a fleet for `HANDLER`."""
    (task_root / "app.py").write_text(HANDLER)
    return [
        *(sys.executable, "-m", "poolkit.lambda_fleet", "--handler", "app.handler"),
        *("--task-root", str(task_root), "--log-dir", str(tmp_path / "logs")),
        *("--timeout", "100", "--init-limit", "100"),  # whatever the machine is doing
    ]


@pytest.fixture
def fleet(command):
    """A running fleet with one frozen execution environment, as (process, its pid, URL)."""
    with started(*command) as process:
        url = json.loads(process.next_line())["url"]
        with urllib.request.urlopen(url, timeout=110) as answer:
            pid = int(answer.read())
        yield process, pid, url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_all_its_children(fleet, process_state, number):
    """It exits with status 0, and its execution environments are gone by then."""
    process, pid, _ = fleet
    assert process.terminate(number) == 0
    assert process_state(pid) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_killing_it_kills_its_children(fleet, process_state):
    """SIGKILL leaves no process, though the execution environment is stopped."""
    process, pid, _ = fleet
    wait_until(lambda: process_state(pid) == "T")
    process.kill()
    wait_until(lambda: process_state(pid) == "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_killing_it_in_a_cold_start_kills_its_children(command, task_root, process_state):
    """A process that is still importing the handler goes too."""
    (task_root / "app.py").write_text("import time; time.sleep(60)")
    with started(*command, "--prewarm", "3") as process:
        wait_until(lambda: len(process.children()) == 3)
        pids = [child.pid for child in process.children()]
        process.kill()
    wait_until(lambda: not any(process_state(pid) for pid in pids))


def test_a_signal_ends_it_while_it_is_starting(command, task_root, process_state):
    """It does not wait for a handler that is still being imported."""
    (task_root / "app.py").write_text("import time; time.sleep(60)")
    with started(*command, "--prewarm", "1") as process:
        (child,) = wait_until(process.children)
        assert process.terminate() == 0
    assert process_state(child.pid) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--handler", "missing.handler", "--prewarm", "1"], "Runtime.ImportModuleError"),
        (["--handler", "handler"], "handler must be 'module.function'"),
        (["--timeout", "0"], "timeout_s must be"),
        (["--env", "NOT_SET_ANYWHERE"], "--env NOT_SET_ANYWHERE: not set here"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0"),
        (["--port", "99999"], "port must be 0 to 65535, found 99999"),
        (["--log-dir", "/dev/null/logs"], "cannot create the log directory /dev/null/logs"),
    ],
)
def test_what_cannot_start_is_one_line_and_status_2(command, arguments, message):
    """One line on stderr has what was wrong; nothing is left running."""
    done = run(*command, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("lambda fleet: ")
    assert message in line


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process")
@pytest.mark.parametrize("free", range(5))
def test_a_fleet_without_file_descriptors_answers_and_stops(command, free):
    """Whatever step of a cold start finds no descriptor, the invoke ends, and so does the fleet.

    The steps are the log, the Runtime API, /dev/null and a pipe.
    """
    with started(*command) as process:
        address = urlsplit(json.loads(process.next_line())["url"])
        client = http.client.HTTPConnection(address.hostname, address.port, timeout=110)
        # The client's own connection is open before the limit.
        client.request("GET", "/_fleet/healthz")
        client.getresponse().read()
        used = {int(path.name) for path in Path(f"/proc/{process.process.pid}/fd").iterdir()}
        limit = next(islice((n for n in count() if n not in used), free, None))
        resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        client.request("GET", "/")
        answer = client.getresponse()
        answer.read()
        client.close()
        assert (answer.status, process.terminate()) == (500, 0)


def test_a_variable_can_be_handed_on_by_name(command, task_root):
    """`--env NAME` takes the value from the fleet's environment, so `ps` does not show it."""
    (task_root / "app.py").write_text("import os\ndef handler(e, c): return os.environ['DSN']")
    with started(*command, "--env", "DSN", environ={"DSN": "secret"}) as process:
        url = json.loads(process.next_line())["url"]
        with urllib.request.urlopen(url, timeout=110) as answer:
            assert answer.read() == b"secret"
        process.terminate()
