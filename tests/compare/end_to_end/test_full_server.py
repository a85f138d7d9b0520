"""More users than the server has connections: what `reserved_concurrency = "fit"` is for."""

import json

import pytest

PLENTY = ("--max-connections", "30", "--users", "30", "--duration", "6", "--warm-up", "3")


@pytest.mark.slow
def test_a_fleet_that_fits_answers_everything_and_stays_inside_the_limit(start, tmp_path):
    """30 users, 30 connections: `lambda_warm` is held to 24, `lambda` is counted as it comes."""
    out = tmp_path / "run"
    command = start("compare", "--targets", "lambda,lambda_warm", *PLENTY, "--out", str(out))
    assert command.end() == 0, command.error
    assert command.left() == []
    targets = json.loads((out / "results.json").read_text())["targets"]
    warm, plain = targets["lambda_warm"], targets["lambda"]
    assert warm["connections"]["ceiling"] == 24
    assert (warm["errors"], warm["error_kinds"]) == (0, {})
    assert warm["requests"] == pytest.approx(30 * 2 * 6, rel=0.05)
    assert warm["connections"]["peak"] <= 24
    assert warm["execution_environments"] <= 24
    assert sum(plain["error_kinds"].values()) == plain["errors"]
    assert plain["connections"]["opened"] >= plain["requests"] - plain["errors"] - 30
    assert plain["connections"]["peak"] <= 30
