"""The end of an execution environment, and its copies from a snapshot."""

import os
import random
import signal
import subprocess
import sys

import pytest
import snapshot_restore_py
from awslambdaric.lambda_runtime_hooks_runner import run_after_restore, run_before_snapshot
from behaviour.lambda_face import open_face

from lambda_handler.execution_environment import dispose_at_end

WARM = """
import signal, sys, time

def tell(*_):
    print("ended", flush=True)
    sys.stdin.read()
    sys.exit(3)

if sys.argv[1] == "chained":
    signal.signal(signal.SIGTERM, tell)
from behaviour.lambda_face import http_api_event, new_context
from lambda_handler.app import environment, handler

assert handler(http_api_event("GET", "/articles"), new_context())["statusCode"] == 200
if sys.argv[1] == "locked":
    environment._metrics._lock.acquire()
print("ready", flush=True)
while True:  # not pause(): a signal just before it would be waited for in vain
    time.sleep(0.05)
"""


@pytest.fixture
def start_warm(migrated_database):
    """Start a process that keeps one connection, and wait until it has."""
    started = []

    def start(how):
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": "tests"}
        environ |= {"DATABASE_URL": migrated_database.url(), "POOLKIT_TARGET": "lambda_warm"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", WARM, how], env=environ, **pipes)
        started.append(process)
        assert "ConnectionsOpened" in process.stdout.readline()
        assert process.stdout.readline() == "ready\n"
        assert len(migrated_database.wait_for_backends(1, "lambda_warm:")) == 1
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_sigterm_closes_the_connection_and_calls_the_handler_before(start_warm, migrated_database):
    """The backend ends while the process still runs; then it is the earlier handler's turn."""
    process = start_warm("chained")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "ended\n"
    migrated_database.wait_for_backends(0, "lambda_warm:")
    assert process.poll() is None
    process.communicate()
    assert process.returncode == 3


def test_sigterm_ends_a_process_that_had_no_handler(start_warm):
    """With exit status 0, which Lambda takes for a graceful end."""
    process = start_warm("alone")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_sigterm_in_the_middle_of_the_pools_work_does_not_hang(start_warm):
    """A lock that the interrupted code holds delays the end by less than Lambda waits."""
    process = start_warm("locked")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.fixture
def hooked(migrated_database):
    """Return a warm function whose hooks are registered; they are taken back afterwards."""
    handler = signal.getsignal(signal.SIGTERM)
    registries = snapshot_restore_py.get_before_snapshot(), snapshot_restore_py.get_after_restore()
    before = [list(registry) for registry in registries]
    with open_face(migrated_database.url(), POOLKIT_TARGET="lambda_warm") as face:
        dispose_at_end(face.environment)
        yield face
    signal.signal(signal.SIGTERM, handler)
    for registry, content in zip(registries, before, strict=True):
        registry[:] = content


def test_no_connection_is_part_of_a_snapshot(hooked, migrated_database):
    """The hook closes what the init phase opened; a restored copy opens its own."""
    assert hooked.request("GET", "/articles").status == 200
    migrated_database.wait_for_backends(1, "lambda_warm:")
    run_before_snapshot()
    migrated_database.wait_for_backends(0, "lambda_warm:")
    run_after_restore()
    assert hooked.request("GET", "/articles").status == 200
    migrated_database.wait_for_backends(1, "lambda_warm:")


def test_restored_copies_differ_in_name_and_in_chance(hooked, migrated_database):
    """Two copies of one snapshot have neither the same jitter nor the same application_name."""
    state = random.getstate()
    seen = set()
    for _ in range(2):
        random.setstate(state)
        run_after_restore()
        assert hooked.request("GET", "/articles").status == 200
        (backend,) = migrated_database.wait_for_backends(1, "lambda_warm:")
        seen.add((backend["application_name"], random.random()))
        hooked.environment.dispose()
        migrated_database.wait_for_backends(0, "lambda_warm:")
    names, draws = zip(*seen, strict=True)
    assert len(set(names)) == len(set(draws)) == 2
