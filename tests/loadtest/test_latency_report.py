"""The same latencies on the console, in the files, in the document and on the page."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import pytest
from loadtest.browser import chromium
from programs import needs_chromium

from poolkit.loadtest.figures import MetricAccumulator
from poolkit.loadtest.latency.connects import ClientConnects
from poolkit.loadtest.latency.counters import NO_NAME, Latencies, Rates
from poolkit.loadtest.latency.report import LatencyFiles, line, load_text, ms, rows, table
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.output import document, section, summary
from poolkit.loadtest.recording import Second, Series

COUNTS = {"arrivals": 1000, "late": 400, "latest_ms": 2100.0, "dropped": 7, "timed_out": 3}
OUTCOMES = {"in_time": 500, "answered_late": 450, "failed": 40, "answer_within_s": 1.0}
OPEN = LoopReport(loop="open", rate=200.0, kind="poisson", users_max=50, **COUNTS, **OUTCOMES)
SATURATED = replace(OPEN, saturated_by="all 50 users (--max-users) were waiting for answers")


@pytest.fixture
def latencies():
    """A hundred requests from 1 to 100 ms, a failed one, and one name that only fails."""
    found = Latencies()
    for number in range(1, 101):
        found.record("GET", "/articles/[id]", float(number))
    found.record("GET", "/articles/[id]", 5000.0, outcome="failed")
    found.record("POST", "/articles", 1.0, outcome="failed")
    return found


def second(**found):
    return Second(time=1.0, targets=None, opened=None, users=5, rates=Rates(10.0, 0.0, **found))


def test_a_row_is_about_answered_requests_and_counts_the_failed(latencies):
    """A failure that took long, or no time, is no latency."""
    posts, articles, total = rows(latencies)
    assert (articles["requests"], articles["failures"]) == (101, 1)
    assert articles["p50"] == pytest.approx(50, rel=0.001)
    assert articles["p99.9"] == pytest.approx(100, rel=0.001)
    assert (posts["failures"], posts["p50"], posts["max"]) == (1, None, None)
    assert (total["name"], total["requests"], total["failures"]) == ("Aggregated", 102, 2)
    assert total["p95"] == articles["p95"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0.00"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")],
)
def test_a_figure_has_three_digits(value, shown):
    """More are not known."""
    assert ms(value) == shown


@pytest.mark.parametrize(
    ("load", "text"),
    [
        (LoopReport(), "closed loop"),
        (OPEN, "open loop, 200/s poisson"),
        (SATURATED, "open loop, 200/s poisson, SATURATED"),
    ],
)
def test_the_line_of_a_second_names_the_loop(latencies, load, text):
    """And says so when its schedule is not kept."""
    assert load_text(load) == text
    said = line(Rates(0.0, 0.0, 1.5, 20.25, 300.4), latencies, load)
    latencies_now = "p50 1.50, p95 20.2, p99 300 now; p99 99.0, max 100 in the run"
    assert said == f"Latency, ms: {latencies_now} ({text})"


def test_the_table_at_the_end_names_the_loop_and_why_it_is_saturated(latencies):
    """Before the figures, for they mean little without it."""
    said = list(table(latencies, SATURATED))
    assert said[0].startswith("Open loop, 200/s poisson: 1,000 arrivals, 990 finished")
    assert said[1].startswith(
        "Of 1,000 arrivals: 500 answered in time (50.0%), 450 late (45.0%), 40 failed (4.0%), "
        "10 never answered (1.0%);"
    )
    assert said[2] == "SATURATED: all 50 users (--max-users) were waiting for answers"
    (row,) = [line for line in said if line.startswith("POST")]
    assert row.split() == ["POST", "|/articles", "|", "1", "|", "1", "|", *"-------"]


def recording(latencies, load):
    """What outputs read of a `Recording`; the real one needs a Locust that runs."""
    series = Series()
    series.add(second(p50_ms=1.0, p95_ms=2.0, p99_ms=3.0))
    found = {"series": series, "measured": MetricAccumulator(), "latencies": latencies}
    lost = ["worker 1 (one) ended in the middle: up to 3 s of its latencies are lost"]
    without = {"limits": None, "note": "no DATABASE_URL", "started": 0.0, "client": ClientConnects}
    return SimpleNamespace(**found, **without, lost=lost, loop=lambda: load, limit=lambda: None)


def test_the_document_has_the_load_and_what_is_lost(latencies):
    """With all counts of an open loop."""
    found = document(recording(latencies, SATURATED))
    assert found["load"] == SATURATED.to_json()
    assert found["latency_ms"] == rows(latencies)
    assert found["series"]["p99_ms"] == [3.0]
    (lost,) = found["lost"]
    assert "worker 1 (one) ended in the middle" in lost
    assert lost in list(summary(recording(latencies, SATURATED)))


def test_files_grow_with_the_run(tmp_path, latencies):
    """A run that is killed leaves all but the last ten seconds."""
    files, run = LatencyFiles(str(tmp_path / "run"), 100.0), Latencies()

    def add(until, write=files.add):
        run.add(latencies)
        write(latencies, until, run)

    add(101.0)
    assert files.log.read_text().count("HISTF") == 0
    add(110.5)
    assert read(files.table)[-1]["Request Count"] == "204"
    add(112.0, files.finish)
    assert read(files.table)[-1]["Request Count"] == "306"
    lines = [one for one in files.log.read_text().splitlines() if "HISTF" in one]
    moments = [one.split(",")[:2] for one in (lines[0], lines[5])]
    assert moments == [["0.000", "10.500"], ["10.500", "1.500"]]
    tags = ["failed", "failed_POST_/articles", "GET_/articles/[id]"]
    assert [line.split(",")[0] for line in lines[1:4]] == [f"Tag={tag}" for tag in tags]


def test_a_new_test_begins_new_files(tmp_path, latencies):
    """In Locust's web UI one process runs several."""
    files = LatencyFiles(str(tmp_path / "run"), 100.0)
    files.add(latencies, 111.0, latencies)
    files.begin_again(200.0)
    files.write(201.0, Latencies())
    assert "HISTF" not in files.log.read_text()
    assert [row["Request Count"] for row in read(files.table)] == ["0"]
    assert {file.name for file in tmp_path.iterdir()} == {"run_latency.csv", "run_latency.hlog"}


def test_the_files_of_thousands_of_names_are_written_in_parts(tmp_path):
    """The event loop waits for a thread that computes, so it pauses after every few names."""
    pauses = []
    files = LatencyFiles(str(tmp_path / "run"), 0.0, pause=lambda: pauses.append(1))
    second = Latencies()
    for number in range(4000):
        second.record("GET", f"/item/{number}", 5.0)
    files.add(second, 10.0, second)
    assert len(pauses) > 2 * 4000 / 10
    assert len(read(files.table)) == 4001
    assert files.log.read_text().count("HISTF") == 4001


def test_requests_without_an_answer_have_a_row_so_that_rows_add_up():
    """Their names are unknown, and they are failures of the whole."""
    found = Latencies()
    found.record("GET", "/", 10.0)
    for wait, outcome in ((5000, "timed_out"), (20, "timed_out"), (7, "dropped")):
        found.record(*NO_NAME, wait, outcome=outcome)
    *named, total = rows(found)
    assert [(row["name"], row["requests"], row["failures"]) for row in named] == [
        ("/", 1, 0),
        ("(no answer)", 2, 2),
    ]
    assert (total["requests"], total["failures"]) == (3, 2)
    assert named[1]["p99"] is None
    assert total["max"] == pytest.approx(5000, rel=0.001)


def read(file):
    with file.open() as opened:
        return list(csv.DictReader(opened))


@pytest.mark.slow
@needs_chromium
def test_the_page_shows_loop_saturation_and_percentiles(tmp_path, latencies):
    """In words, not by colour alone."""
    file = tmp_path / "report.html"
    found = document(recording(latencies, SATURATED), partial=True)
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{section(found)}</body>")
    shadow = "document.querySelector('poolkit-connections').shadowRoot"
    with chromium() as page:
        page.open(f"file://{file}")
        page.wait_for(f"{shadow}.querySelectorAll('path.line').length >= 3")
        text = page.evaluate(f"{shadow}.querySelector('.all').innerText")
        page.picture(tmp_path / "report.png")
    assert "Open loop, 200 arrivals a second (poisson)" in text
    assert "1,000 scheduled, 400 late, 7 dropped, 3 timed out" in text
    assert "500 answered in time, 450 late, 40 failed, 10 without an answer" in text
    assert "Saturated: all 50 users (--max-users) were waiting for answers." in text
    assert "Partial: the run ended before its planned end." in text
    assert "worker 1 (one) ended in the middle" in text
    assert "GET /articles/[id]\t101\t1\t50.0\t90.0\t95.0\t99.0\t100\t100\t50.5" in text
