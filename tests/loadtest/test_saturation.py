"""Why arrivals were late: each cause is produced for real, and named with a cure that helps."""

import contextlib
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytestmark = pytest.mark.process

VISITOR = """
import os
import gevent
from locust import FastHttpUser, task
from poolkit import loadtest

loadtest.register()
made = []

class Visitor(FastHttpUser):
    def on_start(self):
        made.append(self)
        if len(made) > 1:
            gevent.sleep(float(os.environ.get("LOGIN_S", 0)))
            if "BROKEN" in os.environ:
                raise ValueError("no such account")

    @task
    def visit(self):
        self.client.get(os.environ["PATH_OF_IT"], name="visit")
"""


class Service(BaseHTTPRequestHandler):
    """Takes 300 ms for each request, or 100 ms for one after the other."""

    protocol_version = "HTTP/1.1"
    one_at_a_time = threading.Lock()

    def do_GET(self):
        if self.path == "/one-at-a-time":
            with self.one_at_a_time:
                time.sleep(0.1)
        elif self.path == "/takes-its-time":
            time.sleep(0.3)
        self.send_response(503 if self.path == "/refuses" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@pytest.fixture(scope="module")
def service():
    """The address of a service with known times."""
    with Server(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def visit(locust, service, tmp_path):
    """A function that lets arrivals come to a path for a while, and returns the run and its counts.

    It ends after a time, with the last stage of its rate (without a time), or when it is `until`.
    """
    file = tmp_path / "visitor.py"
    file.write_text(VISITOR)

    def run(path, *arguments, until=None, run_time="4s", **variables):
        ending = ("--run-time", run_time) if run_time else ()
        done = locust(
            *("-f", str(file), "--headless", "--host", service, "--json-file", "result"),
            *("--csv", "run", "--exit-code-on-error", "0", *ending, *arguments),
            PATH_OF_IT=path,
            **variables,
        )
        if until is not None:
            done.wait_until(lambda: until(done))
            done.send_signal(signal.SIGINT)
        with contextlib.suppress(AssertionError):
            assert done.wait() == 0
        counts = done.document()["load"]
        parts = ("in_time", "answered_late", "failed", "unsent", "unanswered")
        assert counts["arrivals"] == sum(counts[part] for part in parts), counts
        return done, counts

    return run


def ended(run):
    """Return how many requests were answered or refused, as Locust has written it last."""
    rows = run.rows("run_stats.csv")
    return next((int(row["Request Count"]) for row in rows if row["Name"] == "Aggregated"), 0)


def finished(counts):
    return counts["in_time"] + counts["answered_late"] + counts["failed"]


def test_a_target_at_its_limit_is_named_and_its_arrivals_are_told_apart(visit):
    """It serves 10 a second and gets 30: more users would only wait as well.

    The slow beginning shows how long a task takes without others, also on a busy machine. It ends with
    its rate, so that a slow start takes nothing away, and long after the time that the load generator
    itself may stand still.
    """
    run, counts = visit(
        *("/one-at-a-time", "--arrival-rate", "4/3s,30/6s", "--users", "8", "--max-users", "8"),
        run_time="",
    )
    assert counts["arrivals"] == 12 + 180
    assert "all 8 users (--max-users) were waiting for answers" in counts["saturated_by"]
    assert "the target is too slow for this rate: a task took" in counts["saturated_by"]
    assert "lower --arrival-rate or give the target more capacity" in counts["saturated_by"]
    never = counts["unsent"] + counts["unanswered"]
    assert never > counts["arrivals"] / 4
    assert counts["answered_late"] > 0
    # The slow beginning, and those that come before all users are busy: 8 + 10/s of 30/s.
    assert 0 < counts["in_time"] <= 12 + 13
    assert (
        f"Of {counts['arrivals']:,} arrivals: {counts['in_time']:,} answered in time (" in run.text
    )
    assert f"{never:,} never answered (" in run.text


@pytest.mark.slow
def test_too_few_users_are_named_with_the_number_that_would_do(visit):
    """A target that takes 300 ms for each needs 20/s x 0.3 s = 6 users, not 2."""
    _, counts = visit("/takes-its-time", "--arrival-rate", "20", "--users", "2", "--max-users", "2")
    said = counts["saturated_by"]
    assert "all 2 users (--max-users) were waiting for answers" in said
    assert "the target took no longer than with fewer" in said
    number = int(said.rpartition("raise --max-users to ")[2])
    assert 6 <= number <= 12
    _, better = visit(
        *("/takes-its-time", "--arrival-rate", "20"),
        *("--users", str(number), "--max-users", str(number)),
    )
    # With two it cannot answer a third of them, however calm the machine is.
    assert finished(better) > finished(counts)


@pytest.mark.slow
def test_slow_logins_of_additional_users_are_named(visit):
    """One user is ready, and the others do not get there; more ready ones help."""
    at = ("--arrival-rate", "10", "--users", "1")
    # All the time, so that it outlasts what the load generator itself may stand still.
    _, counts = visit("/takes-its-time", *at, run_time="8s", LOGIN_S="3600")
    assert "users that were made for them were still in their on_start" in counts["saturated_by"]
    assert "users ready (--users)" in counts["saturated_by"]


@pytest.mark.slow
def test_failing_logins_of_additional_users_are_named(visit):
    """No number of users helps when each that is made ends."""
    at = ("--arrival-rate", "10", "--users", "1")
    _, counts = visit("/takes-its-time", *at, run_time="8s", BROKEN="1")
    assert "failed in their on_start" in counts["saturated_by"]
    assert "repair on_start" in counts["saturated_by"]


@pytest.mark.slow
def test_refused_arrivals_are_failed_and_not_in_time(visit):
    """An overloaded target may refuse at once: that is an answer, and no success."""
    at = ("--arrival-rate", "20", "--users", "2")
    _, counts = visit("/refuses", *at, run_time="10m", until=lambda run: ended(run) > 10)
    assert counts["failed"] > 10
    assert counts["in_time"] == counts["answered_late"] == 0


@pytest.mark.slow
def test_the_time_for_an_answer_can_be_set(visit):
    """With less than a task takes, all of them are late."""
    at = ("--arrival-rate", "10", "--users", "8", "--answer-within", "0.2")
    _, counts = visit("/takes-its-time", *at, run_time="10m", until=lambda run: ended(run) > 10)
    assert counts["in_time"] == 0
    assert counts["answered_late"] > 10
    assert counts["answer_within_s"] == 0.2
