"""docs/thresholds.md: every metric with its units, and examples that are thresholds."""

import re
import runpy
import tomllib

import pytest
from processes import ROOT

from poolkit.thresholds import Threshold, thresholds_of

DOCUMENT = (ROOT / "docs/thresholds.md").read_text()
CODE = re.compile(r"`([^`]+)`")


@pytest.mark.process
def test_the_table_is_that_of_the_accumulator_s_docstring():
    """Every metric with its units and its one definition."""
    script = runpy.run_path(str(ROOT / "scripts/metric-table"))
    assert script["renewed"](DOCUMENT) == DOCUMENT, "run scripts/metric-table"


def test_its_examples_are_thresholds():
    """Those in the table of pyproject.toml, behind --threshold and in the text are parsed."""
    ((block),) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(thresholds_of(tomllib.loads(block)["tool"]["poolkit"])) == 4
    options = re.findall(r"--threshold '(.*?)'", DOCUMENT)
    prose = re.sub(r"```.*?```", "", DOCUMENT, flags=re.DOTALL)
    inline = [code for code in CODE.findall(prose) if re.search(r"\.\w+ [<>=]+ \d", code)]
    assert len(options) >= 4
    assert len(inline) >= 4
    for text in (*options, *inline):
        Threshold.parse(text)
