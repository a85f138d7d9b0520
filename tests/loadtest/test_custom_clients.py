"""Request events as clients of all kinds fire them, and the request context of the locustfile."""

import json

import pytest
from loadtest.conftest import LocustRun
from web_server import serving

from poolkit.loadtest.latency.report import NO_ANSWER

pytestmark = pytest.mark.process

# One user for 60 arrivals a second, and a task takes 50 ms at least: arrivals wait longer and longer.
CLIENTS = """
import json, time
from datetime import datetime
from pathlib import Path

import gevent
from gevent.pool import Pool
from locust import HttpUser, events, task

from poolkit import loadtest

loadtest.register()
contexts = []

@events.request.add_listener
def as_json(context=None, **_):
    contexts.append(json.dumps(context, sort_keys=True))

@events.quitting.add_listener
def write(**_):
    Path("contexts.json").write_text(json.dumps(sorted(set(contexts))))

class Base(HttpUser):
    abstract = True

    def context(self):
        return {"user": "bob"}

class Visitor(Base):
    def context(self):
        return {**super().context(), "due": "2026-01-01"}

    def fire(self, name, **fields):
        began = time.perf_counter()
        gevent.sleep(0.05)
        ms = (time.perf_counter() - began) * 1000
        self.environment.events.request.fire(
            request_type="OWN", name=name, response_time=ms, response_length=0, **fields
        )

    @task
    def no_context(self):
        self.fire("no context", start_time=time.time())

    @task
    def none(self):
        self.fire("None", context=None, exception=None, start_time=time.time())
        self.fire("second", context=None)

    @task
    def empty(self):
        self.fire("empty", context={}, start_time=time.time())

    @task
    def own(self):
        self.fire("own", context=self.context(), start_time=time.time())

    @task
    def no_start(self):
        self.fire("no start")

    @task
    def other_clock(self):
        self.fire("other clock", start_time=time.perf_counter())

    @task
    def datetime(self):
        self.fire("datetime", start_time=datetime.now())

    @task
    def pool(self):
        pool = Pool(2)
        pool.spawn(self.fire, "pool", context={})
        pool.join()

    @task
    def measured(self):
        with self.environment.events.request.measure("OWN", "measured"):
            gevent.sleep(0.05)

    @task
    def nested(self):
        with self.client.get("/", name="outer", catch_response=True, context={"turn": 3}) as answer:
            self.client.get("/", name="inner")
            gevent.sleep(0.05)
            answer.success()
"""
FIRST = (
    *("no context", "None", "empty", "own", "no start", "other clock", "datetime", "pool"),
    *("measured", "outer"),
)


@pytest.fixture(scope="module")
def module_run(tmp_path_factory):
    """A run with all of these clients until most requests of each had to wait for a second."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "clients.py").write_text(CLIENTS)
    with serving() as server:
        arguments = (
            *("-f", "clients.py", "--headless", "--host", server.url, "--run-time", "10m"),
            *("--users", "1", "--arrival-rate", "60", "--max-users", "1", "--csv", "run"),
            *("--json-file", "result"),
        )
        run = LocustRun(folder, [*arguments], {})

        def counts():
            return {row["Name"]: int(row["Request Count"]) for row in run.rows("run_stats.csv")}

        def when_waits_are_long():
            # Each task takes 33 ms more than there are between two arrivals.
            found = counts()
            is_whole = "Aggregated" in found  # Locust writes the file anew each second
            return is_whole and sum(found.get(name, 0) for name in FIRST) > 30 and found

        try:
            before = run.wait_until(when_waits_are_long)
            # Tasks are chosen at random, and one may have had its turns in the first moments.
            run.wait_until(
                lambda: all(counts().get(name, 0) > 2 * before.get(name, 0) for name in FIRST)
            )
            run.stop()  # with status 1: arrivals are still waiting
        finally:
            run.kill()
    return run


@pytest.mark.parametrize("name", FIRST)
def test_the_first_request_of_a_task_counts_from_its_scheduled_moment(module_run, name):
    """Whatever its client passes as context and start time; that of the 30th has waited for a second."""
    rows = {row["name"]: row for row in module_run.document()["latency_ms"]}
    assert rows[name]["max"] > 500
    assert "Traceback" not in module_run.text


def test_a_later_request_of_a_task_counts_from_its_sending(module_run):
    """It was not scheduled with the task, but for when the request before it was answered."""
    rows = {row["name"]: row for row in module_run.document()["latency_ms"]}
    assert rows["second"]["p50"] < rows["None"]["p50"]
    assert rows["inner"]["p50"] < rows["outer"]["p50"]


def test_the_request_context_is_the_locustfile_s_own(module_run):
    """It can be written as JSON, may have any key, and may be overridden in a subclass."""
    found = json.loads((module_run.folder / "contexts.json").read_text())
    mine = {"due": "2026-01-01", "user": "bob"}
    wanted = ({}, None, mine, {**mine, "turn": 3})
    assert found == sorted(json.dumps(one, sort_keys=True) for one in wanted)


POSTGRES = """
import os
from locust import constant, task
from locust.contrib.postgres import PostgresUser
from poolkit import loadtest

loadtest.register()

class Asking(PostgresUser):
    wait_time = constant(0.1)
    conn_string = os.environ["ASKED"]

    @task
    def ask(self):
        self.client.execute_query("SELECT 1")
"""


def test_a_client_of_locust_without_a_host_and_a_context(locust, tmp_path, database):
    """Locust's PostgresUser reports neither, nor when it began."""
    (tmp_path / "asking.py").write_text(POSTGRES)
    run = locust(
        *("-f", "asking.py", "--host", "", "--headless", "--users", "1", "--json-file", "result"),
        *("--arrival-rate", "20", "--run-time", "10m", "--csv", "run"),
        ASKED=database.url(""),
    )
    run.wait_until(lambda: any(int(row["Request Count"]) > 5 for row in run.rows("run_stats.csv")))
    status = run.stop()
    assert "Traceback" not in run.text
    rows = {row["name"]: row for row in run.document()["latency_ms"]}
    # One that was due in the last moment and has no answer fails the run.
    assert status == (NO_ANSWER in rows), run.text
    assert set(rows) - {NO_ANSWER} == {"execute_query", "Aggregated"}
    assert rows["execute_query"]["failures"] == 0
    assert rows["execute_query"]["requests"] > 5
