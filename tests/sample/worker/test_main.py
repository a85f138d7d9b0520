"""`python -m worker` and `celery -A worker`."""

import sys

import pytest
from processes import run_python, started, wait_until

pytestmark = pytest.mark.process
NOWHERE = "postgresql://u:p@127.0.0.1:1/x"


def test_start_without_a_broker_says_what_is_missing():
    """Status 2 and one line, not a traceback."""
    ended = run_python("-m", "worker", environ={"WORKER_BROKER_URL": ""})
    assert ended.returncode == 2
    assert ended.stderr.startswith("WORKER_BROKER_URL is not set")


def test_start_without_a_database_says_what_is_missing(broker):
    """The database's settings are checked before any task is taken."""
    ended = run_python(
        "-m", "worker", environ={"WORKER_BROKER_URL": broker.url, "DATABASE_URL": ""}
    )
    assert ended.returncode == 1
    assert "the worker does not start: set exactly one of DATABASE_URL" in ended.stderr


def test_database_that_is_away_stops_the_start_where_asked(broker):
    """With POOLKIT_FAIL_FAST the worker ends instead of taking tasks that it cannot do."""
    environ = {"WORKER_BROKER_URL": broker.url, "DATABASE_URL": NOWHERE}
    ended = run_python("-m", "worker", environ=environ | {"POOLKIT_FAIL_FAST": "true"})
    assert ended.returncode == 1
    assert "the worker does not start: the database is not available" in ended.stderr


def test_enqueue_prints_the_task_s_id(site):
    """The text comes from standard input; bad input ends with status 2 and its errors."""
    command = ("worker", "enqueue", "--title", "T", "--id")
    sent = run_python("-m", *command, "d1", environ=site.environ, typed="hello")
    assert sent.returncode == 0
    refused = run_python("-m", *command, "not an id", environ=site.environ, typed="hello")
    assert refused.returncode == 2
    assert "NewDocument\nid\n" in refused.stderr
    worker = site.start()
    wait_until(lambda: worker.logged(sent.stdout.strip()), "the task's id in the log")
    site.wait_for_document("d1")


@pytest.mark.parametrize(
    "url", ["redis://:hunter2@127.0.0.1:1/0", "amqp://me:hunter2@127.0.0.1:1//"]
)
def test_enqueue_without_its_broker_is_one_line(url):
    """Status 1, and one line that says which broker, without its password, and why."""
    command = ("worker", "enqueue", "--title", "T", "--id", "d1")
    ended = run_python("-m", *command, environ={"WORKER_BROKER_URL": url}, typed="hello")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1), ended.stderr
    shown = url.replace("hunter2", "**")
    assert ended.stderr.startswith(f"the broker, {shown}, does not take the task: ")
    assert "refused" in ended.stderr


@pytest.mark.slow
def test_celery_s_own_command_line_runs_the_worker(site):
    """`celery -A worker worker` is the same worker."""
    environ = site.environ | {"WORKER_READY_FILE": str(site.directory / "ready")}
    site.send("by-celery")
    command = ("-m", "celery", "-A", "worker", "worker", "--concurrency", "1")
    with started(sys.executable, *command, environ=environ) as process:
        site.wait_for_document("by-celery")
        assert process.terminate() == 0
    site.database.wait_for_backends(0, "worker:")


@pytest.mark.slow
def test_remote_control_answers_where_it_was_turned_on(site):
    """`celery inspect` reaches `python -m worker` with WORKER_REMOTE_CONTROL."""
    environ = site.environ | {"WORKER_REMOTE_CONTROL": "true"}
    site.start(WORKER_REMOTE_CONTROL="true")
    command = ("-m", "celery", "-A", "worker", "inspect", "ping")
    wait_until(lambda: "pong" in run_python(*command, environ=environ).stdout, "the answer")


def test_import_connects_to_nothing():
    """`worker.celery` can be imported where neither broker nor database is."""
    code = (
        "import socket; socket.socket.connect = None; from worker.celery import app; "
        "app.loader.import_default_modules(); "
        "print(sorted(n for n in app.tasks if n.startswith('worker.')))"
    )
    ended = run_python("-c", code, environ={"WORKER_BROKER_URL": "redis://127.0.0.1:1/0"})
    assert ended.stdout.strip() == "['worker.ingest_document']"
