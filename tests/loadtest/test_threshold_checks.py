"""Locust held to thresholds, as a person starts it: exit status, files, lines, the early end."""

import json
import os
import signal
from xml.etree import ElementTree as ET

import pytest

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


def said(run):
    """Return the lines with a tick, a cross or a dash."""
    return [line for line in run.said.splitlines() if line[:2] in ("✓ ", "✗ ", "- ")]


def test_a_run_that_does_not_hold_its_thresholds_fails(locust, server, database, held, tmp_path):
    """Exit status 1, a line each, JUnit and annotations; the command line goes before the table."""
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    held("web:host-1", 2)
    held("worker:host-1", 3)
    run = locust(
        *(*USERS, "--run-time", "10m", "--target", "web", "--junit", "out/thresholds.xml"),
        *("--csv", "run"),
        *("--threshold", "http.p95 < 60s", "--threshold", "http.requests > 5"),
        url=database.monitor_url(""),
        GITHUB_ACTIONS="true",
        PYTHONIOENCODING="utf-8",
    )
    run.wait_until(lambda: len(server.moments) > 10 and run.rows_of("web"))
    assert run.stop() == 1, run.said
    found = said(run)
    assert [line.split(" is ")[0] for line in found[:3]] == [
        "✓ web: http.p95",
        "✓ web: http.errors",
        "✓ web: http.requests",
    ]
    assert found[3:] == [
        "✗ web: db.connections.max is 2, wanted < 2",
        "- web: lambda.cold_starts does not apply (only poolkit compare can tell), wanted < 3",
    ]
    annotations = [line for line in run.said.splitlines() if line.startswith("::")]
    assert annotations == [
        (
            "::error title=Threshold failed%3A web%3A db.connections.max::"
            "web: db.connections.max is 2, wanted < 2"
        )
    ]
    (suite,) = ET.parse(run.folder / "out/thresholds.xml").getroot()
    counts = [suite.get(name) for name in ("name", "tests", "failures", "errors", "skipped")]
    assert counts == ["web", "5", "1", "0", "1"]


def test_a_run_that_holds_them_passes(locust, server):
    """Exit status 0, and no word about connections that nobody wants to limit."""
    run = locust(
        *(*USERS, "--run-time", "10m", "--threshold", "http.p95 < 60s"), PYTHONIOENCODING="ascii"
    )
    run.wait_until(lambda: len(server.moments) > 5)
    assert run.stop() == 0, run.said
    (line,) = [line for line in run.said.splitlines() if "wanted" in line]
    assert line.startswith("ok http.p95 is ")
    assert "::" not in run.said


def test_what_is_not_known_fails(locust):
    """A limit on connections is not held by a run that cannot see them, and it says why."""
    run = locust(
        *(*USERS, "--run-time", "1s", "--threshold", "db.opened < 9"), PYTHONIOENCODING="utf-8"
    )
    assert run.wait() == 1, run.said
    assert said(run) == [
        "✗ db.opened is not known (no DATABASE_URL and no --database-url was given), wanted < 9"
    ]


@pytest.mark.slow
def test_a_peak_that_nobody_could_see_is_not_held(locust, database):
    """The server keeps silent for some seconds, as one that is full does to whoever comes then."""
    words = ("--threshold", "db.connections.max < 9", "--csv", "run")
    run = locust(*USERS, *words, url=database.monitor_url(""), PYTHONIOENCODING="utf-8")
    run.wait_until(lambda: run.rows_of("Aggregated"))
    (watching,) = database.wait_for_backends(1, APPLICATION_NAME)
    os.kill(watching["pid"], signal.SIGSTOP)
    try:
        run.wait_for_seconds(4)
    finally:
        os.kill(watching["pid"], signal.SIGCONT)
    run.wait_until(lambda: run.rows()[-1]["Connections"])
    assert run.stop() == 1, run.said
    (line,) = said(run)
    assert line.startswith("✗ db.connections.max is not known (the server could not be asked for")


@pytest.mark.parametrize(("limit", "status"), [("50%", 0), ("5%", 1)])
def test_a_threshold_says_how_many_requests_may_fail(locust, server, tmp_path, limit, status):
    """Locust by itself exits with 1 when any has failed."""
    file = tmp_path / "visitors.py"
    file.write_text(file.read_text().replace('self.client.get("/")', FAILING))
    run = locust(*USERS, "--run-time", "10m", "--threshold", f"http.errors < {limit}")
    run.wait_until(lambda: len(server.moments) > 15)
    assert run.stop() == status, run.said


def test_a_run_is_ended_early_and_says_why(locust):
    """After the delay, in one line; the report says that it is partial."""
    run = locust(
        *(*USERS, "--run-time", "10m", "--json-file", "result", "--html", "report.html"),
        *("--threshold", "http.p95 < 1us abort after 3s"),
        PYTHONIOENCODING="utf-8",
    )
    assert run.wait() == 1, run.said
    (why,) = [line for line in run.said.splitlines() if "the run ends early" in line]
    assert "the run ends early: http.p95 is " in why
    assert said(run)[0].startswith("✗ http.p95 is ")
    found = json.loads((run.folder / "result_connections.json").read_text())
    assert run.moment("the run ends early") - found["started"] > 2.99
    assert found["partial"] is True
    assert found["thresholds"] == [{"status": "failed", "words": said(run)[0].removeprefix("✗ ")}]
    report = (run.folder / "report.html").read_text()
    assert json.dumps(found["thresholds"]).replace("<", "\\u003c") in report
    assert '"partial": true' in report
    assert "Traceback" not in run.said


@pytest.mark.slow
def test_only_the_master_checks(locust, master_port):
    """Its workers' requests are judged together, once, and it ends them, too."""
    run = locust(
        *(*USERS, *master_port, "--processes", "2", "--run-time", "10m"),
        *("--threshold", "http.requests <= 20 abort"),
        PYTHONIOENCODING="utf-8",
    )
    assert run.wait() == 1, run.said
    assert run.said.count("the run ends early") == 1
    assert len(said(run)) == 1
    assert "Traceback" not in run.said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold", "http.p95"], "--threshold: threshold 'http.p95': an operator is missing"),
        (
            ["--threshold", "web: http.p95 < 9"],
            "is for the target web, and the run has none; add --target web, or leave the name out",
        ),
        (
            ["--target", "wep", "--processes", "2", "--threshold", "web: http.p95 < 9"],
            "is for the target web, not wep; add --target web",
        ),
    ],
)
def test_a_mistake_ends_it_before_the_first_request(locust, server, master_port, arguments, words):
    """One line, exit status 2; processes do not wait for a master that is gone."""
    run = locust(*USERS, *master_port, "--run-time", "10m", *arguments)
    assert run.wait() == 2, run.said
    assert len([line for line in run.said.splitlines() if words in line]) == 1, run.said
    assert "Traceback" not in run.said
    assert server.moments == []


def test_a_mistake_in_pyproject_ends_it_too(locust, server, tmp_path):
    """The line says where it stands."""
    (tmp_path / "pyproject.toml").write_text("[tool.poolkit]\nthresholds = ['http.p9 < 1']")
    run = locust(*USERS, "--run-time", "10m")
    assert run.wait() == 2, run.said
    assert "pyproject.toml: [tool.poolkit] thresholds, number 1: threshold 'http.p9" in run.said
    assert "Traceback" not in run.said
    assert server.moments == []


def test_a_junit_file_that_cannot_be_written_is_said(locust, server, tmp_path):
    """Its place was there at the start; the run has its lines all the same, and is not passed."""
    run = locust(
        *(*USERS, "--run-time", "10m", "--threshold", "http.p95 < 60s", "--junit", "out/j.xml")
    )
    run.wait_until(lambda: server.moments)
    (tmp_path / "out").write_text("a file")
    assert run.stop() == 1, run.said
    assert "the verdicts cannot be written: " in run.said
    assert "Traceback" not in run.said
