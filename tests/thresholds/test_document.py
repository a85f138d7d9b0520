"""docs/thresholds.md: every metric with its units, and examples that are thresholds."""

import re
import tomllib
from pathlib import Path

from poolkit.thresholds import METRICS, Threshold, thresholds_of

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/thresholds.md").read_text()
ROW = re.compile(r"^\| (`(?:http|db|lambda)\..*?) \| (.*?) \|", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")


def test_the_table_has_every_metric_with_its_units():
    """What can be written is what the document says."""
    units: list[str] = []
    found = {}
    for names, wanted in ROW.findall(DOCUMENT):
        units = units if wanted == "the same" else CODE.findall(wanted)
        found |= dict.fromkeys(CODE.findall(names), sorted(units))
    assert found == {name: sorted(metric.units) for name, metric in METRICS.items()}


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
