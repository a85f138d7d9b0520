"""Runs that end early: by Ctrl-C, SIGTERM or SIGKILL, or because something died in the middle."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from compare.end_to_end.conftest import web
from processes import wait_until

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]
SHORT = ("--users", "4", "--rate", "5", "--duration", "3", "--warm-up", "1")
LONG = ("--users", "4", "--rate", "5", "--duration", "60", "--warm-up", "1")
WARMING_UP = ("--users", "4", "--rate", "5", "--duration", "5", "--warm-up", "60")

# Two targets, of which the second keeps a run at a certain moment until a file says "go":
# a signal for that moment then comes in it, however late.
TWO = web("first") + web("second", "held:app")
HELD_AT_ITS_START = """
import pathlib, time
from plain import app

while not pathlib.Path("go").exists():
    time.sleep(0.05)
"""
HELD_WHILE_MEASURED = """
import asyncio, pathlib
import plain

asked = 0

async def app(scope, receive, send):
    global asked
    asked += scope["type"] == "http"
    while asked > 40 and not pathlib.Path("go").exists():
        await asyncio.sleep(0.05)
    await plain.app(scope, receive, send)
"""

# A function one of whose execution environments answers no more, and says so with a file.
FUNCTION = """
[tool.poolkit.targets.function]
kind = "lambda"
handler = "held.handler"
preset = "lambda"
database = false
"""
HANDLER = """
import pathlib, time

asked = 0

def handler(event, context):
    global asked
    asked += 1
    while asked > 60:
        pathlib.Path("held").touch()
        time.sleep(0.05)
    return {"statusCode": 200, "body": "ok"}
"""


def results(out: Path):
    return json.loads((out / "results.json").read_text())


def have_read_slowly(file: Path):
    """Make the opening of a file wait, as on a disk that does not answer."""
    file.unlink()
    os.mkfifo(file)


def wait_for_requests(out: Path, target: str, seconds: float):
    """Wait until a request has a row that was due some seconds from now."""
    file, until = out / "targets" / target / "requests.csv", time.time() + seconds

    def are_written():
        with file.open() as rows:
            whole = [row for row in csv.DictReader(rows) if row["error"] is not None]
        return any(float(row["due"]) > until for row in whole)

    wait_until(lambda: file.exists() and are_written(), f"{seconds} s of requests")


def reapers(command):
    found = []
    for process in psutil.Process(command.process.pid).children():
        with contextlib.suppress(psutil.Error):
            found += [process] if "reaper" in str(process.cmdline()) else []
    return found


def wait_for(file: Path):
    wait_until(file.exists, file)


def wait_for_process(command, *words: str):
    """Return a process that is being started."""

    def found():
        try:
            return command.find(*words)
        except AssertionError:
            return None

    return wait_until(found, words)


@pytest.mark.sample
def test_ctrl_c_while_measuring_leaves_a_report_and_nothing_else(start, tmp_path):
    """Exit status 130, the target marked partial, its figures those of the time it had."""
    command = start("compare", "--targets", "lambda_warm", *LONG, "--out", str(tmp_path / "run"))
    command.wait_until_it_says("measuring")
    wait_for_requests(tmp_path / "run", "lambda_warm", 2.5)
    command.ends_with(130, signal.SIGINT)
    target = results(tmp_path / "run")["targets"]["lambda_warm"]
    assert target["partial"]
    assert 2 < target["measured_s"] < 59
    # After a stall of the machine some were due and not yet sent.
    assert set(target["error_kinds"]) <= {"unsent"}, "what was cut off did not fail"
    # Over the minute that was asked for, it would be one a second.
    assert target["offered_per_s"] == pytest.approx(20, rel=0.5)
    assert target["connections"]["opened"] in range(5), "known, and no more than users"
    assert any("Interrupted" in line for line in command.said)


@pytest.mark.sample
@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["starting PostgreSQL", "preparing", "lambda_warm.*starting", "warming up"]
)
def test_ctrl_c_before_anything_was_measured_is_status_130_and_no_report(start, tmp_path, moment):
    """There is nothing to report, and one line on the terminal has that."""
    options = (*WARMING_UP, "--out", str(tmp_path / "run"))
    command = start("compare", "--targets", "lambda_warm", *options)
    command.wait_until_it_says(moment)
    assert command.end(signal.SIGINT) == 130, command.error
    # A reaper that was just being started sees a moment later that its owner is gone.
    command.wait_until_nothing_is_left()
    assert command.said[-1] == "Nothing was measured, so there is no report."
    assert command.error == ""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["second .*starting", "second .*measuring", "second .*draining"])
def test_ctrl_c_keeps_the_targets_that_were_finished(start, stranger, tmp_path, moment):
    """Later moments: the first target is in the report whole."""
    out = tmp_path / "run"
    held = HELD_AT_ITS_START if "starting" in moment else HELD_WHILE_MEASURED
    project = stranger(TWO, held=held)
    command = start("compare", *SHORT, "--out", str(out), cwd=project)
    command.wait_until_it_says(moment)
    command.send(signal.SIGINT)
    (project / "go").touch()
    command.ends_with(130)
    assert command.error == ""
    first = results(out)["targets"]["first"]
    assert (first["partial"], first["measured_s"]) == (False, 3)
    assert first["requests"] > 10


@pytest.mark.slow
def test_ctrl_c_while_the_report_is_written_leaves_the_rows(start, stranger, tmp_path):
    """The report is cut itself, and the last line says how to have it after all."""
    out = tmp_path / "run"
    project = stranger(TWO, held=HELD_AT_ITS_START)
    command = start("compare", *SHORT, "--out", str(out), cwd=project)
    command.wait_until_it_says("^first: ")
    have_read_slowly(out / "targets" / "first" / "requests.csv")
    (project / "go").touch()
    command.wait_until_it_says("writing the report")
    command.ends_with(130, signal.SIGINT)
    assert command.error == ""
    assert command.said[-1] == f"Interrupted: `poolkit report {out}` writes the report."


@pytest.mark.slow
def test_an_impatient_second_ctrl_c_leaves_nothing_either(start, stranger):
    """It may cost the report; what the interrupted clean-up did not end, the reaper ends."""
    project = stranger(FUNCTION, held=HANDLER)
    command = start("compare", *LONG, cwd=project)
    command.wait_until_it_says("measuring")
    wait_for(project / "held")
    command.send(signal.SIGINT)
    # Locust waits for an answer that does not come, and the clean-up waits for Locust.
    with pytest.raises(subprocess.TimeoutExpired):
        command.process.wait(0.5)
    assert command.end(signal.SIGINT) == 130, command.error
    command.wait_until_nothing_is_left()


@pytest.mark.sample
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting PostgreSQL", "starting$", "measuring"])
def test_sigterm_ends_everything_with_its_own_status(start, tmp_path, moment):
    """143 as shells have it, and a report of what was measured, as after Ctrl-C."""
    out = tmp_path / "run"
    command = start("compare", "--targets", "lambda_warm", *LONG, "--out", str(out))
    command.wait_until_it_says(moment)
    if moment == "measuring":
        wait_for_requests(out, "lambda_warm", 1.0)  # of less there is no report
    assert command.end(signal.SIGTERM) == 143, command.error
    # A reaper that was just being started sees a moment later that its owner is gone.
    command.wait_until_nothing_is_left()
    if moment == "measuring":
        assert results(out)["targets"]["lambda_warm"]["partial"]
        assert (out / "report.html").exists()


@pytest.mark.sample
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting PostgreSQL", "lambda_warm.*starting", "measuring"])
def test_what_sigkill_leaves_is_cleaned_up_at_once(start, tmp_path, moment):
    """The reaper outlives the run that was killed, and ends its frozen environments too."""
    command = start("compare", "--targets", "lambda_warm", *LONG, "--out", str(tmp_path / "run"))
    command.wait_until_it_says(moment)
    command.look()
    command.process.kill()
    command.end()
    command.wait_until_nothing_is_left()


@pytest.mark.sample
@pytest.mark.slow
def test_what_sigkill_leaves_without_a_reaper_is_cleaned_up_by_the_next_run(
    start, stranger, tmp_path
):
    """Where the reaper was killed too, the next run finds the records, and then does its own work."""
    command = start("compare", "--targets", "lambda_warm", *LONG, "--out", str(tmp_path / "run"))
    command.wait_until_it_says("measuring")
    command.look()
    killed = reapers(command)
    assert killed
    for process in killed:
        process.kill()
    command.process.kill()
    command.end()
    assert command.left() != [], "otherwise the next run has nothing to find"
    following = start("compare", *SHORT, cwd=stranger())
    following.wait_until_it_says("measuring")
    assert command.left(following) == []
    following.ends_with(0)


@pytest.mark.sample
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "victim", "named"),
    [
        ("web_async", ("uvicorn",), "web_async"),
        ("web_async", ("locust",), "locust@web_async"),
        ("web_async", ("postgres", "-D"), "PostgreSQL"),
        ("worker", ("valkey-server",), "the broker"),
        ("lambda_warm", ("lambda_fleet",), "lambda_warm"),
    ],
)
def test_a_process_that_dies_is_named_and_the_rest_is_reported(
    start, tmp_path, name, victim, named
):
    """One line, nothing left, and what was measured until then is reported; 2 for a server."""
    out = tmp_path / "run"
    command = start("compare", "--targets", name, *LONG, "--out", str(out))
    command.wait_until_it_says("measuring")
    wait_for_requests(out, name, 1.0)  # of less there is no report
    command.find(*victim).kill()
    assert command.end() == (2 if named in ("PostgreSQL", "the broker") else 1)
    line = command.errors[0]
    assert line.startswith(f"poolkit: {named} ended by itself with signal 9"), line
    assert command.left() == []
    assert results(out)["targets"][name]["partial"]
    assert (out / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_target_that_dies_keeps_those_that_were_finished(start, stranger, tmp_path):
    """The report of the one before it is there, and whole."""
    out = tmp_path / "run"
    project = stranger(TWO, held=HELD_AT_ITS_START)
    command = start("compare", *SHORT, "--out", str(out), cwd=project)
    command.wait_until_it_says("second .*starting")
    wait_for_process(command, "uvicorn", "held:app").kill()
    assert command.end() == 1
    assert command.error.startswith("poolkit: second ended with signal 9 before it was ready")
    assert command.left() == []
    assert list(results(out)["targets"]) == ["first"]
    assert not results(out)["targets"]["first"]["partial"]
