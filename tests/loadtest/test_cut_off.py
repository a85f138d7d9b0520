"""A server that stands still until the end of the run: what waits then is not left out."""

import json
import os
import signal

import pytest

from poolkit.loadtest.latency.histogram import LatencyHistogram

pytestmark = pytest.mark.process

LIMITS = ("http.p99 < 1500", "http.max < 1500", "http.errors < 1%")
HELD = [word for limit in LIMITS for word in ("--threshold", limit)]
FILES = ("--csv", "run", "--json-file", "result")
OPEN = ("--arrival-rate", "40")
PROCESSES = ("--processes", "2")


def answered(run):
    """Return how many requests were answered, as Locust has written it last."""
    rows = run.rows("run_stats.csv")
    return next((int(row["Request Count"]) for row in rows if row["Name"] == "Aggregated"), 0)


def stand_still_until_the_end(run, server, seconds=2):
    """Let it answer for a while, then no more, and press Ctrl-C some seconds later."""
    run.wait_until(lambda: answered(run) > 40)
    os.kill(server.pid, signal.SIGSTOP)
    # Its last answers may be on their way.
    run.wait_for_seconds(seconds + 1)
    return run.stop()


def total(run):
    """Return the row about all requests."""
    document = json.loads((run.folder / "result_connections.json").read_text())
    return document["latency_ms"][-1]


def verdicts(run):
    return {
        line.split(" is ")[0]: line for line in run.text.splitlines() if line[:2] in ("✓ ", "✗ ")
    }


@pytest.mark.parametrize(
    "options",
    [
        OPEN,
        pytest.param((*OPEN, "--max-users", "5"), marks=pytest.mark.slow),
        pytest.param((*OPEN, *PROCESSES), marks=pytest.mark.slow),
    ],
)
def test_an_open_loop_does_not_pass_with_the_answers_of_before(locust, stub, master_port, options):
    """Who waits, and who could not even be sent, raises percentiles and counts as failed."""
    server, url = stub()
    run = locust(
        *("--headless", "--host", url, "--users", "5", "--run-time", "10m"),
        *(*FILES, *HELD, *options, *master_port),
        PYTHONIOENCODING="utf-8",
    )
    assert stand_still_until_the_end(run, server) == 1, run.text
    assert run.document()["partial"] is True
    assert run.document()["load"]["unanswered"] > 0
    assert set(verdicts(run)) == {"✗ http.p99", "✗ http.max", "✗ http.errors"}
    # All that was due in these seconds, of not many more.
    assert total(run)["max"] > 2000
    assert total(run)["p99"] > 1500
    assert "Traceback" not in run.text


ENDS_ITSELF = """
from locust.exception import StopUser

class Once(FastHttpUser):
    def on_start(self):
        self.visits = 0

    @task
    def visit(self):
        self.visits += 1
        if self.visits > 1:
            raise StopUser
        self.client.get("/")
"""


def test_an_arrival_whose_user_ends_itself_before_a_request_lacks_no_answer(locust, stub, tmp_path):
    """An iteration limit or a failed check ends users so (`StopUser`), and it is no failure."""
    with (tmp_path / "visitors.py").open("a") as file:
        file.write(ENDS_ITSELF)
    _, url = stub()
    run = locust("Once", "--headless", "--host", url, "--run-time", "10m", *FILES, *OPEN)
    run.wait_until(lambda: answered(run) > 40)
    # Arrivals of the last moment may be cut off, and fail the run.
    run.stop()
    load = run.document()["load"]
    assert load["arrivals"] >= 2 * (answered(run) - load["users_max"])
    # However many wait in the last moment, a user has one task; those that ended are many more.
    assert load["unanswered"] <= load["users_max"], run.text


@pytest.mark.slow
def test_users_that_report_a_request_when_it_is_answered_are_no_exception(locust, stub, tmp_path):
    """An arrival whose task has told of nothing has waited since it was due."""
    file = tmp_path / "visitors.py"
    file.write_text(file.read_text().replace("FastHttpUser", "HttpUser"))
    server, url = stub()
    run = locust("--headless", "--host", url, *FILES, *OPEN)
    stand_still_until_the_end(run, server)
    assert total(run)["max"] > 2000
    assert "count as failed" in run.text


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), PROCESSES])
def test_a_closed_loop_shows_who_waits_at_its_end(locust, stub, tmp_path, master_port, more):
    """One request a user: Locust itself drops them."""
    server, url = stub()
    run = locust(
        *("--headless", "--host", url, "--users", "5", "--spawn-rate", "5", "--run-time", "10m"),
        *(*FILES, *HELD, *more, *master_port),
        PYTHONIOENCODING="utf-8",
    )
    assert stand_still_until_the_end(run, server) == 1, run.text
    assert "✗ http.max" in verdicts(run)
    assert "5 requests had no answer at the end; 5 of them had waited for more than" in run.text
    assert total(run)["max"] > 2000
    errors = 5 / total(run)["requests"]
    assert ("✗ http.errors" in verdicts(run)) is (errors >= 0.01)
    assert histogram(tmp_path, "unanswered").count == 5


def histogram(folder, tag):
    """Return the sum of the log's lines with a tag."""
    found = LatencyHistogram()
    for line in (folder / "run_latency.hlog").read_text().splitlines():
        if line.startswith(f"Tag={tag},"):
            found.add(LatencyHistogram.decode(line.rpartition(",")[2]))
    return found


SPIKE = """
from pathlib import Path
from locust import LoadTestShape

class Spike(LoadTestShape):
    def tick(self):
        return (1 if Path("over").exists() else 5), 100
"""


@pytest.mark.slow
def test_a_user_that_is_ended_in_the_middle_of_the_run_had_waited_too(locust, stub, tmp_path):
    """A shape that goes down cuts off as the end does, at that moment."""
    with (tmp_path / "visitors.py").open("a") as file:
        file.write(SPIKE)
    server, url = stub()
    run = locust("--headless", "--host", url, *FILES)
    run.wait_until(lambda: run.rows() and run.rows()[-1]["User Count"] == "5")
    os.kill(server.pid, signal.SIGSTOP)
    run.wait_for_seconds(1)
    (tmp_path / "over").touch()
    run.wait_until(lambda: run.rows()[-1]["User Count"] == "1")
    run.wait_for_seconds(1)
    run.stop()
    assert "5 requests had no answer at the end" in run.text
