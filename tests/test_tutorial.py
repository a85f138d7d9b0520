"""docs/tutorial.md: the reader's own application, built from the page and measured."""

import json
import re

import pytest
from poolkit_command import POOLKIT
from processes import ROOT, run

TUTORIAL = ROOT / "docs/tutorial.md"
FILES = re.compile(r'^```\w+ title="([\w.]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_application_of_the_tutorial_is_measured(tmp_path):
    """The page's files are enough: both targets answer, with the ceilings that the page names."""
    files = dict(FILES.findall(TUTORIAL.read_text()))
    assert set(files) == {"app.py", "schema.py", "locustfile.py", "pyproject.toml"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    measured = tmp_path / "run"
    command = (POOLKIT, "compare", "--quick", "--users", "5", "--out", measured)
    answer = run(*command, cwd=tmp_path, clean=True, timeout_s=500)
    assert answer.returncode == 0, answer.stderr
    targets = json.loads((measured / "results.json").read_text())["targets"]
    assert {name: each["errors"] for name, each in targets.items()} == {"web": 0, "web_small": 0}
    assert all(each["requests"] > 0 for each in targets.values())
    ceilings = {name: each["connections"]["ceiling"] for name, each in targets.items()}
    assert ceilings == {"web": 30, "web_small": 2}
