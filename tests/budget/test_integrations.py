"""The GitHub Action and the pre-commit hook: their commands and options exist."""

import json
import os
import re
import sys
from pathlib import Path

import click
import pytest
import yaml
from processes import ROOT, run

from poolkit.cli import main

pytestmark = pytest.mark.process


ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEP = ACTION["runs"]["steps"][-1]
COMPOSE = """
    services:
      db: {image: "postgres:17"}
      web: {image: x, environment: {POOLKIT_TARGET: web, POOLKIT_ENVIRONMENT: prod}, scale: %s}
"""


def act(folder, **inputs):
    """Run the action's last step as GitHub does, with inputs in variables."""
    variables = {
        name: inputs.get(re.search(r"inputs\.([\w-]+)", value)[1].replace("-", "_"), "")
        for name, value in STEP["env"].items()
    }
    variables |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_OUTPUT": str(folder.path / "output"),
        "GITHUB_STEP_SUMMARY": str(folder.path / "summary"),
    }
    return run("bash", "-e", "-c", STEP["run"], cwd=folder.path, environ=variables, clean=True)


@pytest.mark.parametrize(
    ("scale", "status", "verdict"),
    [(3, 0, "fits"), (4, 1, "does not fit"), ('"?"', 3, "cannot be shown to fit")],
)
def test_the_action_annotates_sums_up_and_decides(folder, scale, status, verdict):
    """The verdict as an output, a summary, annotations, SARIF, and the status of the command."""
    folder.write("compose.yaml", COMPOSE % scale)
    answer = act(folder, paths="compose.yaml", sarif_file="budget.sarif")
    assert answer.returncode == status, answer.stderr
    assert (folder.path / "output").read_text() == f"verdict={verdict}\n"
    assert "### Connection budget" in (folder.path / "summary").read_text()
    assert ("::error" in answer.stdout) == (verdict == "does not fit")
    assert ("::warning" in answer.stdout) == (status == 3)
    assert json.loads((folder.path / "budget.sarif").read_text())["version"] == "2.1.0"


def test_inputs_are_arguments_and_no_part_of_a_script(folder):
    """A semicolon in an input runs nothing."""
    folder.write("compose.yaml", COMPOSE % 3)
    answer = act(folder, paths="compose.yaml; touch made", arguments="--operators 2")
    assert answer.returncode == 2
    assert not (folder.path / "made").exists()


def test_no_input_stands_inside_a_script():
    """`${{ }}` in a run line would run code of any pull request."""
    assert not [step for step in ACTION["runs"]["steps"] if "${{" in step.get("run", "")]
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(ACTION["inputs"])


def test_the_hook_names_an_existing_command():
    """pre-commit runs `poolkit budget`, with its extra."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, command = hook["entry"].split()
    assert program == "poolkit"
    assert isinstance(main.commands[command], click.Command)
    assert hook["additional_dependencies"] == [".[infra]"]
    assert re.search(hook["files"], "infra/web.yaml")
