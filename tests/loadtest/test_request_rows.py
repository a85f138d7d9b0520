"""Every request of a plain run, in a file of its own."""

import csv
import os
import signal
import time

import pytest
from loadtest.conftest import PATIENT
from processes import ROOT, run_python

pytestmark = pytest.mark.process

LOCUSTFILE = """
import os
from locust import FastHttpUser, HttpUser, constant, events, tag, task
from poolkit import loadtest

loadtest.register()

def done(user):
    # After this round nothing is under way when the test ends the run.
    user.rounds = getattr(user, "rounds", 0) + 1
    if user.rounds == int(os.environ.get("ROUNDS", 0)):
        user.wait_time = lambda: 3600

class Visitor(FastHttpUser):
    wait_time = constant(0.05)

    @tag("reading", "cheap")
    @task
    def visit(self):
        self.client.get("/visit", name="a name, with a comma")
        done(self)

class Other(HttpUser):
    wait_time = constant(0.05)

    @task
    def fail(self):
        with self.client.get("/fail", catch_response=True) as response:
            response.failure("not as wanted")
        done(self)
"""
COLUMNS = "due,started,latency_ms,service_ms,method,name,status,error,user_class,tags"


def rows_of(file):
    """Return the rows that a file has by now, without an incomplete last line."""
    text = file.read_text() if file.exists() else ""
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


@pytest.fixture
def start(locust):
    """A function that starts both users, and keeps the requests in a file."""
    file = locust.folder / "both.py"
    file.write_text(LOCUSTFILE + PATIENT)

    def start(name, *words, **variables):
        arguments = ("-f", str(file), "--headless", "--users", "2", "--spawn-rate", "100")
        run = locust(
            *arguments, "--requests-file", name, "--json-file", "result", *words, **variables
        )
        run.file = locust.folder / name
        return run

    return start


def test_every_request_is_a_row(start):
    """With moments, outcome, user class and tags; as many as the tables count."""
    began = time.time()
    run = start("out/requests.csv", "--run-time", "10m", ROUNDS="20")
    run.wait_until(lambda: len(rows_of(run.file)) == 40)
    assert run.stop() == 1, run.text
    assert run.file.read_text().splitlines()[0] == COLUMNS
    rows = rows_of(run.file)
    answered = [row for row in rows if not row["error"]]
    failed = [row for row in rows if row["error"] == "200"]
    assert {(one["user_class"], one["tags"], one["name"]) for one in answered} == {
        ("Visitor", "cheap,reading", "a name, with a comma")
    }
    assert {(one["user_class"], one["tags"], one["name"]) for one in failed} == {
        ("Other", "", "/fail")
    }
    for row in (*answered, *failed):
        due, started, latency, service = (float(row[name]) for name in COLUMNS.split(",")[:4])
        assert began < due <= started < time.time()
        assert 0 < service <= latency < 60_000
        assert (row["method"], row["status"]) == ("GET", "200")
    aggregated = run.document()["latency_ms"][-1]
    assert len(answered) + len(failed) == aggregated["requests"]
    assert len(failed) == aggregated["failures"]
    assert f"{len(rows):,} requests are in out/requests.csv" in run.text


def test_a_killed_run_keeps_its_rows(start, server):
    """All but those of the last second, and every line is whole."""
    run = start("requests.csv", "--run-time", "10m")
    run.wait_until(lambda: len(rows_of(run.file)) > 20)
    asked_before = len(server.asked)
    # A second of the process's own, however slow the machine is: some more rows came.
    run.wait_until(lambda: len(rows_of(run.file)) >= asked_before)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(60)
    text = run.file.read_text()
    assert text.endswith("\n")
    assert len(rows_of(run.file)) >= asked_before
    assert {len(row) for row in csv.reader(text.splitlines())} == {len(COLUMNS.split(","))}


def test_parquet_has_the_same_columns_with_types(start):
    """It is read by pyarrow, and what is not known is null."""
    from pyarrow import parquet

    run = start("requests.parquet", "--run-time", "3s", "--arrival-rate", "40")
    run.wait()
    table = parquet.read_table(run.file)
    assert ",".join(table.column_names) == COLUMNS
    assert [str(field.type) for field in table.schema] == ["double"] * 4 + [
        *("string", "string", "int32", "string", "string", "string")
    ]
    rows = table.to_pylist()
    load = run.document()["load"]
    assert load["arrivals"] == len(rows)
    assert all(row["due"] <= (row["started"] or row["due"]) for row in rows)
    assert [row for row in rows if not row["error"] and row["user_class"] != "Visitor"] == []


def test_every_worker_has_a_file_of_its_own(start, master_port):
    """With its number before the suffix; together they have all requests."""
    words = ("--run-time", "10m", "--processes", "2", *master_port)
    run = start("requests.csv", *words, ROUNDS="20")
    files = [run.folder / f"requests-{number}.csv" for number in (0, 1)]
    run.wait_until(lambda: all(len(rows_of(file)) == 20 for file in files))
    assert run.stop() == 1, run.text
    assert sum(len(rows_of(file)) for file in files) == 40
    assert run.document()["latency_ms"][-1]["requests"] == 40
    assert not run.file.exists()


def test_requests_that_the_end_cut_off_are_rows_too(start, server):
    """Their names are not known, and those that were never sent have no sending."""
    server.opened.clear()
    run = start(
        *("requests.csv", "--run-time", "10m", "--arrival-rate", "20", "--max-users", "2"),
    )
    run.wait_until(lambda: server.asked)
    run.wait_until(lambda: len(server.asked) == 2)
    run.stop()
    load = run.document()["load"]
    errors = [row["error"] for row in rows_of(run.file)]
    assert errors.count("unanswered") == load["unanswered"] > 0
    assert errors.count("unsent") == load["unsent"]
    cut_off = [row for row in rows_of(run.file) if row["error"] in ("unanswered", "unsent")]
    assert {(row["name"], row["started"], row["service_ms"]) for row in cut_off} == {("", "", "")}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("requests.json", "wanted a name that ends in .csv or .parquet"),
        ("both.py/requests.csv", "both.py"),
        ("pipe.csv", "--requests-file: pipe.csv is not a regular file"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_load(
    start, server, locust, name, text
):
    """In one line, with status 2."""
    os.mkfifo(locust.folder / "pipe.csv")
    run = start(name, "--run-time", "5s")
    assert run.wait() == 2
    assert text in run.text
    assert "Traceback" not in run.text
    assert server.asked == []


MISSING = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "pyarrow":
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
from poolkit.loadtest.request_rows import check_format
check_format("requests.csv")
try:
    check_format("requests.parquet")
except Exception as error:
    print(error)
"""


def test_parquet_without_pyarrow_names_the_command():
    """And CSV needs nothing."""
    done = run_python("-c", MISSING)
    assert done.returncode == 0, done.stderr
    assert "pip install pyarrow" in done.stdout


def test_the_columns_are_documented():
    """Those of the code, in their order."""
    text = (ROOT / "docs/loadtest-output.md").read_text()
    section = text.partition("## Requests")[2].partition("\n## ")[0]
    described = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert ",".join(described) == COLUMNS
