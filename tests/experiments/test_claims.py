"""Every claim of the texts is judged by an experiment, or has a pointer to what shows it."""

import ast
import re
import shlex

import click
import pytest
from processes import ROOT

from poolkit.cli import main
from poolkit.experiment.claims import claims_page, read_claims
from poolkit.experiment.experiment import find_experiments
from poolkit.experiment.outcome import Outcome, Report, Status, judged

EXPERIMENTS = find_experiments()
CLAIMS = read_claims()
JUDGED = {row for experiment in EXPERIMENTS.values() for row in experiment.rows}
PAGE = ROOT / "docs/claims.md"
CELLS = re.compile(r"(?<!\\)\|")
CODE_OR_LINK = re.compile(r"`([^`]+)`|\[[^\]]+\]\(([^)]+)\)")


def test_the_texts_have_197_claims():
    """As many rows as were counted in the five texts."""
    assert [text.rows for text in CLAIMS.texts] == [41, 56, 27, 31, 42]


def test_every_claim_is_judged_or_has_a_pointer():
    """None is left out, none has both, and no experiment judges a claim that no text makes."""
    assert set(CLAIMS.rows) - JUDGED - set(CLAIMS.pointers) == set()
    assert JUDGED & set(CLAIMS.pointers) == set()
    assert JUDGED | set(CLAIMS.pointers) <= set(CLAIMS.rows)


# -- pointers -------------------------------------------------------------------------------


def check_command(text):
    """Check that the command and its options exist, and that an experiment has that name."""
    program, name, *arguments = shlex.split(text)
    assert program == "poolkit"
    command = main.commands[name]
    command.make_context(name, list(arguments))  # Parses, and runs nothing.
    if name == "experiment":
        assert set(arguments) <= {*EXPERIMENTS, "list", "--all"}


def check_test(text):
    """Check that the file has a test of that name."""
    file, _, name = text.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def check_page(address):
    """Check that the page of the documentation has that heading."""
    file, _, anchor = address.partition("#")
    text = (ROOT / "docs" / file).read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
    assert not anchor or anchor in anchors


@pytest.mark.parametrize("row", CLAIMS.pointers)
def test_what_a_pointer_points_to_exists(row):
    """Commands with their options, tests and headings; and nothing else stands there."""
    shown_by = CLAIMS.pointers[row].shown_by
    found = CODE_OR_LINK.findall(shown_by)
    assert found
    assert CODE_OR_LINK.sub("", shown_by).replace(", ", "") == ""
    for code, address in found:
        if address:
            check_page(address)
        elif code.startswith("tests/"):
            check_test(code)
        else:
            check_command(code)


@pytest.mark.parametrize(
    ("check", "text", "error"),
    [
        (check_command, "poolkit guess", KeyError),
        (check_command, "poolkit preset --guess", click.NoSuchOption),
        (check_command, "poolkit experiment guess", AssertionError),
        (check_test, "tests/test_cli.py::test_guess", AssertionError),
        (check_page, "pooling.md#guess", AssertionError),
        (check_page, "guess.md", FileNotFoundError),
    ],
)
def test_a_pointer_to_nothing_is_noticed(check, text, error):
    """A command, an option, a test, a page or a heading that does not exist."""
    with pytest.raises(error):
        check(text)


# -- verdicts -------------------------------------------------------------------------------


def constant_verdicts(source):
    """Return the lines whose `holds=` has a part that names nothing that was measured."""
    lines = []
    for call in ast.walk(ast.parse(source)):
        if not (isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "judge"):
            continue
        for keyword in call.keywords:
            if keyword.arg == "holds":
                value = keyword.value
                parts = value.values if isinstance(value, ast.Dict) else [value]
                names = [any(isinstance(n, ast.Name) for n in ast.walk(part)) for part in parts]
                lines += [] if names and all(names) else [call.lineno]
    return lines


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_verdict_is_a_constant(name):
    """What is judged depends on something that the experiment measured."""
    assert constant_verdicts(EXPERIMENTS[name].path.read_text()) == []


@pytest.mark.parametrize("holds", ["True", "1 < 2", "{'a': opened == 5, 'b': False}", "{}"])
def test_a_constant_verdict_is_noticed(holds):
    """A literal, a comparison of literals, or one of them among conditions."""
    assert constant_verdicts(f"lab.judge('0.1', 'claim', holds={holds}, measured='')") == [1]
    assert constant_verdicts("lab.judge('0.1', 'claim', holds=opened == 5)") == []


# -- the page -------------------------------------------------------------------------------


def rows_of(page):
    """Return the last cells, by the rows of a page."""
    found = {}
    for line in page.splitlines():
        cells = [each.strip() for each in CELLS.split(line)]
        if len(cells) > 2 and cells[1] in CLAIMS.rows:
            _, row, _claim, _verdict, _measured, shown_by, _ = cells
            found.setdefault(row, []).append(shown_by)
    return found


def check_rows(page):
    """Check that a page has each row, with the experiments that judge it or with its pointer."""
    found = rows_of(page)
    assert list(found) == list(CLAIMS.rows)
    for row, shown_by in found.items():
        if row in CLAIMS.pointers:
            assert shown_by == [CLAIMS.pointers[row].shown_by]
        else:
            names = [re.match(r"`poolkit experiment (\w+)`", each)[1] for each in shown_by]
            assert names == [name for name, each in EXPERIMENTS.items() if row in each.rows]


def test_the_page_has_a_row_for_each_claim():
    """Written from a run of every experiment: verdicts, or what a pointer says."""
    outcomes = tuple(
        Outcome(
            name=name,
            chapter=experiment.chapter,
            question=experiment.question,
            status=Status.DONE,
            judgements=tuple(
                judged(row, "a | claim *of* <text>", {"here": True, "far": False}, "5 of 7", "")
                for row in experiment.rows
            ),
        )
        for name, experiment in EXPERIMENTS.items()
    )
    report = Report(
        command="poolkit experiment --all",
        date="today",
        machine="a machine",
        versions={"PostgreSQL": "18"},
        distance="loopback",
        outcomes=outcomes,
    )
    page = claims_page(report, EXPERIMENTS)
    check_rows(page)
    assert f"{len(JUDGED)} depend on conditions. {len(CLAIMS.pointers)} are advice" in page
    assert r"| a \| claim \*of\* &lt;text> | **depends** (true for here; false for far) |" in page


@pytest.mark.skipif(not PAGE.exists(), reason="docs/claims.md has not been written yet")
def test_the_page_in_the_documentation_is_that_of_the_experiments():
    """docs/claims.md was written by a run of the experiments as they are."""
    check_rows(PAGE.read_text())
