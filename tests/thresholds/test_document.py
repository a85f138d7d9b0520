"""docs/thresholds.md: every metric with its units, and examples that are thresholds."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from poolkit.thresholds import Threshold, thresholds_of

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/thresholds.md").read_text()
CODE = re.compile(r"`([^`]+)`")


@pytest.mark.process
def test_the_table_is_that_of_the_accumulator_s_docstring():
    """Every metric with its units and its one definition."""
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts/metric-table", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_its_examples_are_thresholds():
    """In the table of pyproject.toml, behind --threshold, and in the text."""
    ((block),) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(thresholds_of(tomllib.loads(block)["tool"]["poolkit"])) == 4
    options = re.findall(r"--threshold '(.*?)'", DOCUMENT)
    prose = re.sub(r"```.*?```", "", DOCUMENT, flags=re.DOTALL)
    inline = [code for code in CODE.findall(prose) if re.search(r"\.\w+ [<>=]+ \d", code)]
    assert len(options) >= 4
    assert len(inline) >= 4
    for text in (*options, *inline):
        Threshold.parse(text)
