"""Probes of readiness: what they take for it, and what they report instead."""

import http.server
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import wait_until

from poolkit.errors import NotReadyError
from poolkit.local.ports import free_port
from poolkit.local.processes import Supervisor
from poolkit.local.readiness import AnswersHttp, ServesHttp, TakesTasks

pytestmark = pytest.mark.process
NO_LOG = Path("/nonexistent")


@pytest.fixture
def server():
    """Start servers that answer paths with statuses: every other path with 404."""
    running = []

    def start(**statuses):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(statuses.get(self.path.strip("/") or "root", 404))
                self.send_header("Location", "/login")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(found)
        threading.Thread(target=found.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{found.server_port}"

    yield start
    for found in running:
        found.shutdown()
        found.server_close()


def until_decided(probe):
    """Call the probe until it is ready, or raises."""
    deadline = time.monotonic() + 60
    while not probe(NO_LOG):
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"GET /ready was answered with 404; set `ready` to a path that answers 200"),
        (302, r"GET /ready was answered with 302, a redirect to /login; set `ready`"),
        (401, r"GET /ready was answered with 401; set `ready`"),
    ],
)
def test_a_wrong_path_is_not_waited_for(server, status, message):
    """The application answers: waiting a minute would change nothing."""
    notes = []
    url = server(ready=status, root=200)
    begin = time.monotonic()
    with pytest.raises(NotReadyError, match=message):
        until_decided(AnswersHttp(f"{url}/ready", notes.append))
    assert time.monotonic() - begin < 30
    (note,) = notes
    assert note.endswith("still waiting")


def test_a_server_that_is_starting_is_waited_for(server):
    """503 means not yet; the answer is reported when it is first seen, and is kept."""
    notes = []
    probe = AnswersHttp(f"{server(ready=503)}/ready", notes.append)
    assert not any(probe(NO_LOG) for _ in range(3))
    assert notes == ["GET /ready was answered with 503; still waiting"]
    assert probe.last == "GET /ready was answered with 503"


@pytest.mark.parametrize(
    ("statuses", "note"),
    [
        ({"healthz": 200}, "ready: GET /healthz was answered with 200"),
        ({"health": 204, "readyz": 503}, "ready: GET /health was answered with 204"),
        ({"readyz": 200}, "ready: GET /readyz was answered with 200"),
        ({"root": 302}, "taken as ready: GET / was answered with 302"),
        ({}, "taken as ready: GET / was answered with 404"),
    ],
)
def test_without_a_path_the_usual_ones_are_tried(server, statuses, note):
    """An application that serves nothing at / is ready too, and the reason is shown."""
    notes = []
    until_decided(ServesHttp(server(**statuses), notes.append))
    assert notes == [note]


def test_a_health_path_that_fails_is_not_overruled(server):
    """/healthz exists and says 503, so / does not count."""
    probe = ServesHttp(server(healthz=503, root=200))
    assert not any(probe(NO_LOG) for _ in range(3))
    assert probe.last == "GET /healthz was answered with 503"


def test_a_port_without_a_server_is_not_ready():
    """Nothing was seen yet."""
    probe = ServesHttp(f"http://127.0.0.1:{free_port()}")
    assert not probe(NO_LOG)
    assert probe.last == ""


def test_a_celery_worker_is_ready_at_its_default_log_level(broker, tmp_path):
    """It does not log `ready.` at WARNING, but the broker knows that it waits for tasks."""
    (tmp_path / "tasks.py").write_text(
        f"from celery import Celery\napp = Celery(broker='{broker.url}')\n"
        "app.conf.task_default_queue = 'test-readiness'\n"
    )
    command = [sys.executable, "-m", "celery", "--app", "tasks", "worker", "--concurrency", "1"]
    with Supervisor(tmp_path / "log") as supervisor:
        worker = supervisor.start(
            "worker",
            command,
            cwd=tmp_path,
            ready=TakesTasks(broker.waiting_clients),
            timeout_s=100,
        )
        assert "ready." not in worker.log.read_text()
        # It asks again and again: between two commands it waits for none.
        wait_until(broker.waiting_clients, "the worker to wait for a task")


def test_the_error_has_what_was_awaited_and_last_seen(server, tmp_path):
    """And the last lines of the log."""

    class Seen(AnswersHttp):
        """Takes its time: the limit is over when there is all that the error shows."""

        def __call__(self, log):
            wait_until(lambda: "half way" in log.read_text())
            wait_until(lambda: super(Seen, self).__call__(log) or self.last)
            return False

    probe = Seen(f"{server(ready=503)}/ready")
    script = "echo starting; echo half way; sleep 300"
    with (
        Supervisor(tmp_path) as supervisor,
        pytest.raises(
            NotReadyError, match=r"which waited for GET .*/ready to answer 200"
        ) as caught,
    ):
        supervisor.start("web", ["sh", "-c", script], ready=probe, timeout_s=1)
    assert "the last thing seen: GET /ready was answered with 503; its log" in str(caught.value)
    assert str(caught.value).endswith("web.log ends:\n  starting\n  half way")
