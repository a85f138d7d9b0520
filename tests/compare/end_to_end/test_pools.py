"""`poolkit compare --app --pool`: an application as it is, beside the presets, without any file."""

import json
import shutil

import pytest
from processes import ROOT

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_an_application_is_measured_with_its_own_pool_and_a_preset_s(stranger, start):
    """Its schema, variables and paths are found; both ceilings are those of the running engine."""
    project = stranger("")
    (project / "pyproject.toml").unlink()
    shutil.copytree(ROOT / "tests/strangers/fastapi_sqlmodel", project, dirs_exist_ok=True)
    command = start(
        *("compare", "--app", "app.main:app", "--pool", "now,lambda_warm", "--out", "run"),
        *("--users", "3", "--duration", "2", "--warm-up", "1"),
        cwd=project,
    )
    command.wait_until_it_says("POSTGRES_SERVER")
    command.wait_until_it_says("alembic upgrade head")
    command.ends_with(0)
    targets = json.loads((project / "run/results.json").read_text())["targets"]
    assert targets.keys() == {"web@now", "web@lambda_warm"}
    for name, each in targets.items():
        # If the machine stalls at the end, scheduled requests are dropped: no failure of the targets.
        assert set(each["error_kinds"]) <= {"unsent"}, name
        assert each["requests"] > each["errors"], name
    connections = {name: each["connections"] for name, each in targets.items()}
    assert connections["web@now"]["ceiling"] == 4 * 15
    assert "4 processes x QueuePool 5+10" in connections["web@now"]["ceiling_reason"]
    assert connections["web@lambda_warm"]["ceiling"] == 4
    assert sorted(path.name for path in project.iterdir() if path.suffix == ".toml") == []
