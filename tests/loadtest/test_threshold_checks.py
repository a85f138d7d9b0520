"""Locust held to thresholds, as a person starts it: exit status, files, lines, the early end."""

import json
from xml.etree import ElementTree as ET

import pytest
from processes import stopped

from poolkit.activity.server import APPLICATION_NAME

pytestmark = pytest.mark.process

USERS = ("--headless", "--only-summary", "--users", "2", "--spawn-rate", "10")

PYPROJECT = """
[tool.poolkit]
thresholds = [
    "http.p95 < 0.001ms",
    "http.errors < 1%",
    "web: db.connections.max < 2",
    "worker: db.connections.max < 1",
    "lambda.cold_starts < 3",
]
"""

FAILING = """with self.client.get("/", catch_response=True) as answer:
            numbers.append(0)
            if len(numbers) % 10 == 1:
                answer.failure("every tenth")

numbers = []
"""


TAGGED = """
import gevent
from locust import FastHttpUser, TaskSet, constant, tag, task
from poolkit import loadtest

loadtest.register()

class Visitor(FastHttpUser):
    wait_time = constant(0.02)

    @tag("plain")
    @task
    def plain(self):
        self.client.get("/plain")

    @tag("spawned")
    @task
    def spawned(self):
        gevent.spawn(self.client.get, "/spawned").get()

    @task
    def untagged(self):
        self.client.get("/none")

    @tag("nested")
    @task
    class Nested(TaskSet):
        @task
        def once(self):
            self.client.get("/nested")
            self.interrupt()
"""


def said(run):
    """Return the lines with a tick, a cross or a dash."""
    return [line for line in run.text.splitlines() if line[:2] in ("✓ ", "✗ ", "- ")]


def test_a_run_that_does_not_hold_its_thresholds_fails(locust, server, database, held, tmp_path):
    """Exit status 1, a line each, JUnit and annotations; the command line goes before the table."""
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    held("web:host-1", 2)
    held("worker:host-1", 3)
    run = locust(
        *(*USERS, "--run-time", "10m", "--target", "web", "--junit", "out/thresholds.xml"),
        *("--csv", "run", "--json-file", "result", "--html", "report.html"),
        *("--threshold", "http.p95 < 60s", "--threshold", "http.requests > 5"),
        url=database.monitor_url(""),
        GITHUB_ACTIONS="true",
        PYTHONIOENCODING="utf-8",
    )
    run.wait_until(lambda: len(server.moments) > 10 and run.rows_of("web"))
    # As CI and `timeout` end a run, the latter with two of them.
    run.process.terminate()
    assert run.terminate() == 1, run.text
    assert "Traceback" not in run.text
    for once in ("✗ web: db.connections.max is ", "::error ", "Latency in ms, to three digits"):
        assert run.text.count(once) == 1, once
    assert json.loads((run.folder / "result.json").read_text())[0]["num_requests"] > 0
    assert run.document()["partial"] is True
    assert (run.folder / "report.html").read_text().count("</poolkit-connections>") == 1
    found = said(run)
    passed = [f"✓ web: http.{name}" for name in ("p95", "errors", "requests")]
    assert [line.split(" is ")[0] for line in found[:3]] == passed
    assert found[3:] == [
        "✗ web: db.connections.max is 2, wanted < 2",
        "- web: lambda.cold_starts does not apply (only poolkit compare measures it), wanted < 3",
    ]
    annotations = [line for line in run.text.splitlines() if line.startswith("::")]
    assert annotations == [
        (
            "::error title=Threshold failed%3A web%3A db.connections.max::"
            "web: db.connections.max is 2, wanted < 2"
        )
    ]
    (suite,) = ET.parse(run.folder / "out/thresholds.xml").getroot()
    counts = [suite.get(name) for name in ("name", "tests", "failures", "errors", "skipped")]
    assert counts == ["web", "5", "1", "0", "1"]


@pytest.mark.slow
def test_a_peak_without_a_measurement_is_not_held(locust, database):
    """The server does not answer for some seconds, as a full server does."""
    words = ("--threshold", "db.connections.max < 9", "--csv", "run")
    run = locust(*USERS, *words, url=database.monitor_url(""), PYTHONIOENCODING="utf-8")
    run.wait_until(lambda: run.rows_of("Aggregated"))
    (watching,) = database.wait_for_backends(1, APPLICATION_NAME)
    with stopped(watching["pid"]):
        run.wait_for_seconds(4)
    run.wait_until(lambda: run.rows()[-1]["Connections"])
    assert run.stop() == 1, run.text
    (line,) = said(run)
    assert line.startswith("✗ db.connections.max is not known (the server could not be asked for")


@pytest.mark.slow
def test_only_the_master_checks(locust, master_port):
    """Its workers' requests are judged together, once, and it ends them, too."""
    run = locust(
        *(*USERS, *master_port, "--processes", "2", "--run-time", "10m"),
        *("--threshold", "http.requests <= 20 abort"),
        PYTHONIOENCODING="utf-8",
    )
    assert run.wait() == 1, run.text
    assert run.text.count("the run ends early") == 1
    assert len(said(run)) == 1
    assert "Traceback" not in run.text


@pytest.fixture
def failing(tmp_path, locust):
    """A locustfile in which every tenth request fails."""
    file = tmp_path / "visitors.py"
    file.write_text(file.read_text().replace('self.client.get("/")', FAILING))


@pytest.mark.usefixtures("failing")
def test_a_run_that_meets_its_thresholds_passes(locust, server):
    """Exit status 0, though some requests fail; Locust by itself exits with 1 when any has failed."""
    limits = ("--threshold", "http.p95 < 60s", "--threshold", "http.errors < 50%")
    run = locust(*USERS, "--run-time", "10m", *limits, PYTHONIOENCODING="ascii")
    run.wait_until(lambda: len(server.moments) > 15)
    assert run.stop() == 0, run.text
    lines = [line for line in run.text.splitlines() if "wanted" in line]
    assert [line.split(" is ")[0] for line in lines] == ["ok http.p95", "ok http.errors"]
    assert "::" not in run.text


def test_a_threshold_can_be_about_the_requests_of_one_name(locust, server):
    """By their name with the method or without; an unknown name is not known, and fails the run."""
    run = locust(
        *(*USERS, "--run-time", "10m", "--threshold", 'http.errors{name="GET /"} < 1%'),
        *("--threshold", 'http.requests{name="/"} < 2', "--threshold", "http.p95{name='/x'} < 60s"),
        PYTHONIOENCODING="utf-8",
    )
    run.wait_until(lambda: len(server.moments) > 5)
    assert run.stop() == 1, run.text
    found = {line.split(" is ")[0][2:]: line for line in said(run)}
    kept, unknown, broken = (found[key] for key in sorted(found))
    assert kept.startswith('✓ http.errors{name="GET /"} is 0%, wanted')
    assert broken.startswith('✗ http.requests{name="/"} is ')
    assert 'not known (no request has the name "/x"; there are: "GET /")' in unknown


def test_a_threshold_can_be_about_the_requests_of_a_tag(locust, server, tmp_path):
    """Of tasks, of those in a TaskSet with a tag, and from greenlets that a task has spawned."""
    (tmp_path / "visitors.py").write_text(TAGGED)
    texts = [f'http.requests{{tag="{tag}"}} > 0' for tag in ("plain", "nested", "spawned")]
    given = [each for text in (*texts, "http.max{tag='x'} < 9s") for each in ("--threshold", text)]
    run = locust(*USERS, "--run-time", "10m", *given, PYTHONIOENCODING="utf-8")
    wanted = ("/plain", "/nested", "/spawned", "/none")
    # Two users: of three requests that were sent, one has its answer.
    run.wait_until(lambda: min(map(server.asked.count, wanted)) > 2)
    assert run.stop() == 1, run.text
    found = {line.split(" is ")[0]: line for line in said(run)}
    assert {key for key in found if key[0] == "✓"} == {
        f'✓ http.requests{{tag="{tag}"}}' for tag in ("plain", "nested", "spawned")
    }
    unknown = found['✗ http.max{tag="x"}']
    assert 'no request has the tag "x"; there are: "nested", "plain", "spawned"' in unknown


@pytest.mark.usefixtures("failing")
def test_a_run_is_ended_early_with_a_reason(locust):
    """After the delay, in one line; the report is partial, and an unknown figure is not met."""
    run = locust(
        *(*USERS, "--run-time", "10m", "--json-file", "result", "--html", "report.html"),
        *("--threshold", "http.p95 < 1us abort after 3s", "--threshold", "db.opened < 9"),
        *("--threshold", "http.errors < 5%"),
        PYTHONIOENCODING="utf-8",
    )
    assert run.wait() == 1, run.text
    (reason,) = [line for line in run.text.splitlines() if "the run ends early" in line]
    assert "the run ends early: http.p95 is " in reason
    verdicts = {line.split(" is ")[0]: line for line in said(run)}
    assert set(verdicts) == {"✗ http.p95", "✗ db.opened", "✗ http.errors"}
    assert verdicts["✗ db.opened"] == (
        "✗ db.opened is not known (no DATABASE_URL and no --database-url was given), wanted < 9"
    )
    found = run.document()
    # Its three seconds begin a moment before that which is written, as long as other listeners take.
    assert run.moment("the run ends early") - found["started"] > 2
    assert found["partial"] is True
    assert [(one["status"], f"✗ {one['words']}") for one in found["thresholds"]] == [
        ("failed", verdicts["✗ http.p95"]),
        ("failed", verdicts["✗ http.errors"]),
        ("unknown", verdicts["✗ db.opened"]),
    ]
    report = (run.folder / "report.html").read_text()
    assert json.dumps(found["thresholds"]).replace("<", "\\u003c") in report
    assert '"partial": true' in report
    assert "Traceback" not in run.text


@pytest.mark.slow
def test_a_junit_file_that_cannot_be_written_is_reported(locust, server, tmp_path):
    """Its place was there at the start; the run has its lines all the same, and is not passed."""
    run = locust(
        *(*USERS, "--run-time", "10m", "--threshold", "http.p95 < 60s", "--junit", "out/j.xml")
    )
    run.wait_until(lambda: server.moments)
    (tmp_path / "out").write_text("a file")
    assert run.stop() == 1, run.text
    assert "the verdicts cannot be written: " in run.text
    assert "Traceback" not in run.text
