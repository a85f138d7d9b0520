"""More users than the server has connections: the purpose of `reserved_concurrency = "fit"`."""

import csv
import json

import pytest

from poolkit.compare.results.run_folder import InvokeRow, RunFolder

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]
PLENTY = ("--max-connections", "30", "--users", "30", "--duration", "6", "--warm-up", "3")


@pytest.mark.slow
def test_a_fleet_that_fits_answers_everything_and_stays_inside_the_limit(start, tmp_path):
    """30 users, 30 connections: `lambda_warm` is limited to 24, `lambda` is not."""
    out = tmp_path / "run"
    command = start("compare", "--targets", "lambda,lambda_warm", *PLENTY, "--out", str(out))
    assert command.end() == 0, command.error
    assert command.left() == []
    targets = json.loads((out / "results.json").read_text())["targets"]
    warm, plain = targets["lambda_warm"], targets["lambda"]
    assert warm["connections"]["ceiling"] == 24
    # If the machine stalls, all 30 come at once, for 24; nothing fails for want of a connection.
    assert set(warm["error_kinds"]) <= {"429", "unsent"}
    assert warm["requests"] == pytest.approx(30 * 2 * 6, rel=0.5)
    assert warm["connections"]["peak"] <= 24
    assert sum(plain["error_kinds"].values()) == plain["errors"]
    assert plain["connections"]["peak"] <= 30
    folder = RunFolder.open(out).target("lambda")
    window = folder.window()
    with (folder.path / InvokeRow.FILE).open() as file:
        invokes = [row["status"] for row in csv.DictReader(file)]
    # The server's count of the whole run; an invoke that failed may have had one, too.
    opened = window.sessions_after - window.sessions_before
    assert 100 < invokes.count("ok") <= opened <= len(invokes)
