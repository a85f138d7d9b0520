"""Several levels in one run, and thresholds that end a target's measurements."""

import csv
import json
import re
import signal
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from compare.end_to_end.conftest import web

from poolkit.compare.results.run_folder import InvokeRow, Request, RunFolder

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]
TWO = web("weak") + web("strong")
SHORT = ("--rate", "5", "--duration", "2", "--warm-up", "1")


def begun(command):
    lines = (re.match(r"(.*) \(\d+ of \d+\): measuring", line) for line in command.said)
    return [line[1] for line in lines if line]


@pytest.mark.slow
def test_a_threshold_ends_the_measurements_of_a_target_and_the_others_go_on(
    start, stranger, tmp_path
):
    """Its higher loads are left out; status 1, a line for each, and files for CI."""
    out, junit = tmp_path / "run", tmp_path / "junit.xml"
    # If the machine stalls at the end, scheduled requests are dropped, and count as errors.
    command = start(
        "compare",
        *("--users", "2,1", *SHORT, "--duration", "8"),
        *("--out", str(out), "--junit", str(junit), "--github"),
        *("--threshold", "weak: http.requests < 3 abort", "--threshold", "http.errors < 90%"),
        cwd=stranger(TWO),
    )
    command.ends_with(1)
    assert "3 measurements" not in command.said[1], (
        "the announcement cannot know that it will be fewer"
    )
    assert begun(command) == ["weak, 1 user", "strong, 1 user", "strong, 2 users"]
    run = RunFolder.open(out)
    weak, strong, harder, *_ = (run.step(run.plan(), step) for step in run.plan().steps)
    window = weak.window()
    assert re.fullmatch(r"http.requests is \d+, wanted < 3", window.aborted_by)
    assert window.partial
    assert window.to - window.from_ < 8, "8 s were asked for"
    assert window.left_over == 0
    assert harder.window() is None
    assert not strong.window().partial
    assert any(line.startswith("✗ weak: http.requests") for line in command.said)
    assert any(line.startswith("✓ strong: http.errors") for line in command.said)
    (annotation,) = [line for line in command.said if line.startswith("::")]
    assert annotation.startswith("::error title=Threshold failed%3A weak at 1 user%3A")
    suites = {suite.get("name"): suite for suite in ET.parse(junit).getroot()}
    assert (suites["weak"].get("failures"), suites["strong"].get("failures")) == ("1", "0")


@pytest.mark.slow
def test_ctrl_c_between_two_loads_keeps_what_was_measured(start, stranger, tmp_path):
    """The finished load is whole in the report, and the rest is marked as stopped."""
    out = tmp_path / "run"
    command = start(
        "compare", "--users", "1,2", "--repeat", "2", *SHORT, "--out", str(out), cwd=stranger(TWO)
    )
    command.wait_until_it_says(r"strong, 1 user, round 1 .*measuring")
    command.ends_with(130, signal.SIGINT)
    assert command.error == ""
    assert any("Interrupted" in line for line in command.said)
    found = json.loads((out / "results.json").read_text())["levels"]
    assert not found["weak"][0]["repeats"][0]["partial"]


@pytest.mark.slow
def test_an_open_loop_offers_its_rate_even_if_tasks_are_dropped(start, stranger, tmp_path):
    """Two rates, two rounds: every scheduled task has a row, sent or not."""
    out = tmp_path / "run"
    words = ("--rates", "50,20", "--arrivals", "constant", "--repeat", "2")
    timed = ("--duration", "2", "--warm-up", "1", "--out", str(out))
    command = start("compare", *words, *timed, cwd=stranger())
    assert command.end() == 0, command.error
    assert begun(command) == [
        *("web, 20/s, round 1", "web, 50/s, round 1", "web, 20/s, round 2", "web, 50/s, round 2")
    ]
    run = RunFolder.open(out)
    for step in run.plan().steps:
        folder = run.step(run.plan(), step)
        report, window = folder.load_report(), folder.window()
        rows = folder.rows(Request).rows
        dropped = sum(row.error == "unsent" for row in rows)
        assert (report.loop, report.arrivals) == ("open", len(rows))
        assert (report.dropped, report.timed_out) == (dropped, 0)
        due = sorted(row.due for row in rows)
        gaps = [b - a for a, b in pairwise(due)]
        assert gaps == pytest.approx([1 / step.level.arrival_rate] * len(gaps), abs=2e-3)
        assert due[0] < window.from_ < window.to - 1 < due[-1]


# -- more users than connections ------------------------------------------------------------


# One request a second of each: what 30 environments can do on a busy machine, too.
PLENTY = ("--max-connections", "30", "--users", "30", "--rate", "1", "--duration", "6")


@pytest.mark.sample
@pytest.mark.slow
def test_a_fleet_that_fits_answers_everything_and_stays_inside_the_limit(start, tmp_path):
    """30 users, 30 connections: `lambda_warm` is limited to 24, `lambda` is not."""
    out = tmp_path / "run"
    command = start(
        "compare", "--targets", "lambda,lambda_warm", *PLENTY, "--warm-up", "3", "--out", str(out)
    )
    command.ends_with(0)
    targets = json.loads((out / "results.json").read_text())["targets"]
    warm, plain = targets["lambda_warm"], targets["lambda"]
    assert warm["connections"]["ceiling"] == 24
    # If the machine stalls, all 30 come at once, for 24; nothing fails for want of a connection.
    assert set(warm["error_kinds"]) <= {"429", "unsent"}
    assert warm["requests"] == pytest.approx(30 * 6, rel=0.5)
    assert warm["connections"]["peak"] <= 24
    assert sum(plain["error_kinds"].values()) == plain["errors"]
    assert plain["connections"]["peak"] <= 30
    folder = RunFolder.open(out).target("lambda")
    window = folder.window()
    with (folder.path / InvokeRow.FILE).open() as file:
        invokes = [row["status"] for row in csv.DictReader(file)]
    # The server's count of the whole run; an invoke that failed may have had one, too.
    opened = window.sessions_after - window.sessions_before
    assert 30 < invokes.count("ok") <= opened <= len(invokes)
