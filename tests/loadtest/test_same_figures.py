"""One run with everything that is hard to count, and every output of it, figure by figure.

A page, five files and the terminal show the figures of thresholds, for all requests and by name. What
counts as failed is among Locust's own failures, and decides the exit status.
"""

import csv
import json
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass

import pytest
from loadtest.conftest import LocustRun

from poolkit.loadtest.latency.report import FIGURES, ms

pytestmark = pytest.mark.process

SERVER = """
import asyncio

async def answer(reader, writer):
    while True:
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        path = head.split()[1].decode()
        if path == "/never":
            await asyncio.sleep(3600)
        status = {"/fail": "500 Broken", "/away": "302 Found\\r\\nLocation: http://elsewhere.invalid/"}
        writer.write(f"HTTP/1.1 {status.get(path, '200 OK')}\\r\\nContent-Length: 2\\r\\n\\r\\nok".encode())

async def serve():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(serve())
"""
LOCUSTFILE = """
from itertools import count
from locust import FastHttpUser, task
from poolkit import loadtest

loadtest.register()
numbers = count()

class Visitor(FastHttpUser):
    @task
    def visit(self):
        number = next(numbers)
        if number >= 100:
            self.client.get("/never")
        elif number % 5 == 0:
            self.client.get("/fail", name="/fail, [id]")
        elif number % 5 == 1:
            with self.client.post("/ok", name="checked", catch_response=True) as answer:
                answer.failure("not what was wanted")
        elif number == 7:
            self.client.get("/away")
        else:
            self.client.get("/ok", name=f"/ok/{number % 3}")
"""
NO_ANSWER = "(no answer)"
ARRIVAL_S = 1 / 50
"""The first of so many arrivals takes no time."""
LIMITS = ("http.errors < 5% abort after 7s", "http.p95 < 1us", "http.rate < 1000")


@dataclass
class Finished:
    """A run that has ended, and what its page showed after the test."""

    run: LocustRun
    on_page: dict
    shown_at: float
    """When the page showed it, Unix time."""

    def __post_init__(self):
        self.document = self.run.document()
        self.rows = {(row["method"], row["name"]): row for row in self.document["latency_ms"]}
        self.total = self.rows["", "Aggregated"]
        self.figures = self.document["figures"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, free_port):
    """Failures of three kinds, timed out and dropped requests, a warm-up, and an abort."""
    folder, port = tmp_path_factory.mktemp("run"), free_port()
    (folder / "visitors.py").write_text(LOCUSTFILE)
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        host = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        options = [
            *("-f", "visitors.py", "--host", host, "--autostart", "--web-host", "127.0.0.1"),
            *("--web-port", str(port), "--users", "6", "--spawn-rate", "100", "--run-time", "10m"),
            *("--arrival-rate", "50", "--max-users", "6", "--reset-stats"),
            *("--csv", "run", "--json-file", "result", "--html", "report.html"),
            *(word for limit in LIMITS for word in ("--threshold", limit)),
        ]
        run = LocustRun(folder, options, {"PYTHONIOENCODING": "utf-8"})
        try:
            run.wait_for("the run ends early: http.errors")
            on_page = {}

            def adds_up():
                address = f"http://127.0.0.1:{port}/connections.json"
                with urllib.request.urlopen(address, timeout=60) as answer:
                    on_page.update(json.load(answer))
                *named, total = on_page["latency_ms"]
                load = on_page["load"]
                # What was never answered may come in two seconds, first the dropped ones.
                return (
                    named[-1]["name"] == NO_ANSWER
                    and named[-1]["requests"] == load["unanswered"] + load["unsent"]
                    and total["requests"] == sum(row["requests"] for row in named)
                )

            run.wait_until(adds_up)
            shown_at = time.time()
            assert run.stop() == 1, run.text
        finally:
            run.kill()
            server.kill()
    return Finished(run, on_page, shown_at)


def test_rows_are_those_of_the_thresholds_and_add_up(finished):
    """Of all names together, and of each; what was never answered has a row too."""
    figures, total, rows = finished.figures, finished.total, finished.rows
    assert total["requests"] == figures["http.requests"]
    assert total["failures"] / total["requests"] == figures["http.errors"]
    for name in FIGURES:
        assert total[name] == pytest.approx(figures[f"http.{name}"], abs=0.001)
    *named, _ = finished.document["latency_ms"]
    for count in ("requests", "failures"):
        assert total[count] == sum(row[count] for row in named)
    load = finished.document["load"]
    assert load["unanswered"] == 6
    assert load["unsent"] > 50
    assert rows["", NO_ANSWER]["failures"] == load["unanswered"] + load["unsent"]
    assert total["requests"] == load["arrivals"]
    assert rows["GET", "/fail, [id]"]["failures"] == rows["POST", "checked"]["failures"] == 20
    assert rows["GET", "/away"]["failures"] == 1
    assert {name for _, name in rows if name.startswith("/ok")} == {"/ok/0", "/ok/1", "/ok/2"}


def test_the_rate_is_that_of_the_measured_time(finished):
    """It begins with the first arrival, and ends when the test begins to stop."""
    answered = finished.total["requests"] - finished.total["failures"]
    seconds = answered / finished.figures["http.rate"]
    # It may stand still between the line that says so and the end; the page still runs afterwards.
    assert seconds <= finished.shown_at - finished.document["started"]
    assert seconds >= finished.document["load"]["arrivals"] / 50 - ARRIVAL_S


def test_the_page_and_the_report_show_the_document(finished):
    """The page after the test, the report after the run."""
    for part in ("latency_ms", "thresholds", "figures", "load"):
        assert finished.on_page[part] == finished.document[part]
    report = (finished.run.folder / "report.html").read_text()
    (section,) = re.findall(r'<script type="application/json">(.*?)</script>', report)
    assert json.loads(section) == finished.document


def test_the_table_of_latencies_has_the_same_rows(finished):
    """To its six digits."""
    with (finished.run.folder / "run_latency.csv").open() as file:
        table = {(row["Type"], row["Name"]): row for row in csv.DictReader(file)}
    assert list(table) == list(finished.rows)
    for name, wanted in finished.rows.items():
        counts = [int(table[name]["Request Count"]), int(table[name]["Failure Count"])]
        assert counts == [wanted["requests"], wanted["failures"]]
        for figure in FIGURES:
            shown = "" if wanted[figure] is None else f"{wanted[figure]:g}"
            assert table[name][figure] == shown


def test_the_terminal_has_the_same_rows(finished):
    """To three digits, and the figures that are in no row in a line of their own."""
    for (method, name), wanted in finished.rows.items():
        begin = re.escape(f"{method:<8}|{name:<30}|")
        cells = re.search(rf"^{begin}(.*)$", finished.run.text, re.MULTILINE)[1]
        counts = [str(wanted["requests"]), str(wanted["failures"])]
        latencies = [ms(wanted[figure]) for figure in FIGURES]
        assert cells.replace("|", " ").split() == [*counts, *latencies]
    figures = finished.figures
    assert (
        f"http.requests {figures['http.requests']:,}, http.errors {figures['http.errors']:.3%}, "
        f"http.rate {figures['http.rate']:,.1f}/s"
    ) in finished.run.text


def test_the_verdicts_are_those_of_the_finished_run(finished):
    """Also that of the threshold which ended it, whose figure was another at that moment."""
    verdicts = {each["words"].split()[0]: each for each in finished.document["thresholds"]}
    assert {name: each["status"] for name, each in verdicts.items()} == {
        "http.errors": "failed",
        "http.p95": "failed",
        "http.rate": "passed",
    }
    shown = float(re.search(r"is ([\d.]+)%", verdicts["http.errors"]["words"])[1])
    assert shown == pytest.approx(100 * finished.figures["http.errors"], rel=0.01)


def test_all_that_failed_is_in_the_tables_of_locust(finished):
    """In its files and in its report, by reason; no request is counted twice."""
    failures = finished.run.rows("run_failures.csv")
    assert sum(int(row["Occurrences"]) for row in failures) == finished.total["failures"]
    reasons = {row["Error"].partition(":")[0] for row in failures if row["Name"] == NO_ANSWER}
    assert reasons == {"timed out", "dropped"}
    (total,) = (row for row in finished.run.rows("run_stats.csv") if row["Name"] == "Aggregated")
    counts = [int(total["Request Count"]), int(total["Failure Count"])]
    assert counts == [finished.total["requests"], finished.total["failures"]]
    assert (
        "dropped: the arrival was never sent" in (finished.run.folder / "report.html").read_text()
    )
    assert "Traceback" not in finished.run.text
