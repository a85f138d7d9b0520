"""Runs that end early: by Ctrl-C, SIGTERM or SIGKILL, or because something died in the middle."""

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

SHORT = ("--users", "4", "--rate", "5", "--duration", "3", "--warm-up", "1")
LONG = ("--users", "4", "--rate", "5", "--duration", "60", "--warm-up", "1")


def results(out: Path):
    return json.loads((out / "results.json").read_text())


def keepers(command):
    return [
        p for p in psutil.Process(command.process.pid).children() if "keeper" in str(p.cmdline())
    ]


def test_ctrl_c_while_measuring_leaves_a_report_and_nothing_else(start, tmp_path):
    """Exit status 130, the target marked partial, its figures those of the time it had."""
    command = start("compare", "--targets", "lambda_warm", *LONG, "--out", str(tmp_path / "run"))
    command.wait_until_it_says("measuring")
    command.wait_until_it_says(r"requests/s")
    assert command.end(signal.SIGINT) == 130, command.error
    assert command.left() == []
    target = results(tmp_path / "run")["targets"]["lambda_warm"]
    assert target["partial"]
    assert 0 < target["measured_s"] < 30
    assert target["errors"] == 0, "what was cut off did not fail"
    assert target["requests_per_s"] == pytest.approx(20, rel=0.25)
    assert target["connections"]["opened"] == 0
    assert any("Interrupted" in line for line in command.said)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["starting PostgreSQL", "preparing", "lambda_warm.*starting", "warming up"]
)
def test_ctrl_c_before_anything_was_measured_is_status_130_and_no_report(start, tmp_path, moment):
    """There is nothing to report, and it says so in one line."""
    command = start("compare", "--targets", "lambda_warm", *LONG, "--out", str(tmp_path / "run"))
    command.wait_until_it_says(moment)
    assert command.end(signal.SIGINT) == 130, command.error
    assert command.left() == []
    assert command.said[-1] == "Nothing was measured, so there is no report."
    assert command.error == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["web .*starting", "web .*measuring", "web .*draining", "writing the report"]
)
def test_ctrl_c_keeps_the_targets_that_were_finished(start, tmp_path, moment):
    """Later moments: the first target is in the report whole, unless the report is cut itself."""
    out = tmp_path / "run"
    command = start("compare", "--targets", "lambda_warm,web", *SHORT, "--out", str(out))
    command.wait_until_it_says(moment)
    assert command.end(signal.SIGINT) == 130, command.error
    assert command.left() == []
    assert command.error == ""
    if "report" in moment:
        assert command.said[-1] == f"Interrupted: `poolkit report {out}` writes the report."
    else:
        assert not results(out)["targets"]["lambda_warm"]["partial"]
        assert results(out)["targets"]["lambda_warm"]["requests"] > 30


@pytest.mark.slow
def test_an_impatient_second_ctrl_c_leaves_nothing_either(start, tmp_path):
    """It may cost the report; what the interrupted clean-up did not end, the keeper ends."""
    command = start("compare", "--targets", "lambda_warm", *LONG, "--out", str(tmp_path / "run"))
    command.wait_until_it_says("measuring")
    command.wait_until_it_says("requests/s")
    command.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        command.process.wait(0.15)
    assert command.end(signal.SIGINT) == 130, command.error
    command.wait_until_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting PostgreSQL", "starting$", "measuring"])
def test_sigterm_ends_everything_with_its_own_status(start, tmp_path, moment):
    """143 as shells have it, and a report of what was measured, as after Ctrl-C."""
    out = tmp_path / "run"
    command = start("compare", "--targets", "lambda_warm", *LONG, "--out", str(out))
    command.wait_until_it_says(moment)
    assert command.end(signal.SIGTERM) == 143, command.error
    assert command.left() == []
    if moment == "measuring":
        assert results(out)["targets"]["lambda_warm"]["partial"]
        assert (out / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting PostgreSQL", "lambda_warm.*starting", "measuring"])
def test_what_sigkill_leaves_is_cleaned_up_at_once(start, tmp_path, moment):
    """The keeper outlives the run that was killed, and ends its frozen environments too."""
    command = start("compare", "--targets", "lambda_warm", *LONG, "--out", str(tmp_path / "run"))
    command.wait_until_it_says(moment)
    command.seen.look(psutil.Process(command.process.pid))
    command.process.kill()
    command.end()
    command.wait_until_nothing_is_left()


@pytest.mark.slow
def test_what_sigkill_leaves_without_a_keeper_is_cleaned_up_by_the_next_run(
    start, stranger, tmp_path
):
    """Where the keeper was killed too, the next run finds the records, and then does its own work."""
    command = start("compare", "--targets", "lambda_warm", *LONG, "--out", str(tmp_path / "run"))
    command.wait_until_it_says("measuring")
    command.seen.look(psutil.Process(command.process.pid))
    killed = keepers(command)
    assert killed
    for process in killed:
        process.kill()
    command.process.kill()
    command.end()
    assert command.left() != [], "otherwise the next run has nothing to find"
    following = start("compare", *SHORT, cwd=stranger())
    following.wait_until_it_says("measuring")
    assert command.left() == []
    assert following.end() == 0, following.error
    assert following.left() == []


DEATHS = [
    pytest.param("web_async", ("uvicorn",), "web_async ended by itself with signal 9", id="target"),
    pytest.param(
        "web_async", ("locust",), "locust@web_async ended by itself with signal 9", id="locust"
    ),
    pytest.param(
        "web_async", ("postgres", "-D"), "PostgreSQL ended by itself with signal 9", id="postgres"
    ),
    pytest.param(
        "worker", ("valkey-server",), "the broker ended by itself with signal 9", id="broker"
    ),
    pytest.param(
        "lambda_warm", ("lambda_fleet",), "lambda_warm ended by itself with signal 9", id="fleet"
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "victim", "message"), DEATHS)
def test_what_dies_in_the_middle_is_named_and_the_rest_is_reported(
    start, tmp_path, name, victim, message
):
    """One line, exit status 2, nothing left, and the finished target's report is there."""
    out = tmp_path / "run"
    command = start("compare", "--targets", f"web,{name}", *SHORT, "--out", str(out))
    command.wait_until_it_says(f"{name} .*measuring")
    command.find(*victim).kill()
    assert command.end() == 2
    (line,) = command.errors
    assert line.startswith(f"poolkit: {message}"), line
    assert command.left() == []
    assert not results(out)["targets"]["web"]["partial"]
    assert results(out)["targets"].get(name, {"partial": True})["partial"]
    assert (out / "report.html").stat().st_size > 10_000
