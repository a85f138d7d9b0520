"""Every claim of the texts is judged by an experiment, or has a pointer to what shows it."""

import ast
import re
import shlex
from typing import NamedTuple

import click
import pytest
from processes import ROOT

from poolkit.cli import main
from poolkit.errors import ConfigurationError
from poolkit.experiment.claims import claims_page, read_claims
from poolkit.experiment.experiment import find_experiments
from poolkit.experiment.outcome import Outcome, Report, Status, judged

EXPERIMENTS = find_experiments()
CLAIMS = read_claims()
JUDGED = {row for experiment in EXPERIMENTS.values() for row in experiment.rows}
PAGE = ROOT / "docs/claims.md"
ENTRY = re.compile(
    r'^- ((?:<a id="[\d.]+"></a>)+)\*\*([\d., ]+) (true|false|depends|no verdict):\*\* (\S.*)$'
)
POOLING = (ROOT / "docs/pooling.md").read_text(encoding="utf-8")
TAUGHT = re.compile(
    r"^> You may have read that .*?"
    r"^\*\*(True|False|It depends)\b.*?`poolkit experiment (\w+)` \(\[([\d.]+)\]\(claims\.md#\3\)\)",
    re.MULTILINE | re.DOTALL,
)
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


class Entry(NamedTuple):
    """What the page says of a claim."""

    verdict: str
    lines: list[str]

    def after(self, word):
        """Return what follows a word at the beginning of lines."""
        return [line.removeprefix(word) for line in self.lines if line.startswith(word)]


def entries_of(page):
    """Return the entries of a page by their rows."""
    found, lines = {}, []
    for line in page.splitlines():
        if match := ENTRY.match(line):
            anchors, rows, verdict, _ = match.groups()
            lines = []
            assert re.findall(r'"([\d.]+)"', anchors) == rows.split(", ")
            for row in rows.split(", "):
                assert row not in found, f"{row} stands there twice"
                found[row] = Entry(verdict, lines)
        elif line.startswith("    - "):
            lines.append(line.removeprefix("    - "))
    return found


def check_rows(page):
    """Check that a page has each row, with the experiments that judge it or with its pointer.

    A false claim has a number, and one that depends has its condition.
    """
    found = entries_of(page)
    assert set(found) == set(CLAIMS.rows)
    for row, entry in found.items():
        shown_by = entry.after("Shown by ")
        if row in CLAIMS.pointers:
            pointer = CLAIMS.pointers[row]
            assert entry == ("no verdict", [pointer.answer, f"Shown by {pointer.shown_by}"])
            continue
        assert entry.verdict != "no verdict", row
        names = [re.match(r"`poolkit experiment (\w+)`", each)[1] for each in shown_by]
        assert names == [name for name, each in EXPERIMENTS.items() if row in each.rows], row
        measured = entry.after("Measured: ")
        assert len(measured) == len(names)
        assert all(measured), row
        if entry.verdict == "false":
            assert all(re.search(r"\d", each) for each in measured), f"{row} has no number"
        if entry.verdict == "depends":
            assert entry.after("It is "), f"{row} depends on what?"


def report_of(*, holds=True, measured="5 of 7", without=""):
    """Return the report of a run of every experiment but one, in which all comes out alike."""
    outcomes = tuple(
        Outcome(
            name=name,
            chapter=experiment.chapter,
            question=experiment.question,
            status=Status.FAILED if name == without else Status.DONE,
            judgements=tuple(
                judged(row, "a | claim *of* <text>", holds, measured, "")
                for row in experiment.rows
                if name != without
            ),
        )
        for name, experiment in EXPERIMENTS.items()
    )
    return Report(
        command="poolkit experiment --all",
        date="today",
        machine="a machine",
        versions={"PostgreSQL": "18"},
        distance="loopback",
        outcomes=outcomes,
    )


@pytest.mark.parametrize("holds", [True, False, {"here": True, "far": False}])
def test_the_page_has_a_row_for_each_claim(holds):
    """Written from a run of every experiment: verdicts, or what a pointer says."""
    page = claims_page(report_of(holds=holds), EXPERIMENTS)
    check_rows(page)
    assert r":** a | claim \*of\* &lt;text>" in page
    verdicts = [0, 0, 0]
    verdicts[2 if isinstance(holds, dict) else 0 if holds else 1] = len(JUDGED)
    assert f"| all | 197 | {' | '.join(map(str, verdicts))} | {len(CLAIMS.pointers)} |" in page


def test_a_run_that_judged_less_writes_no_page():
    """The error has the rows, and the experiment that was not run."""
    with pytest.raises(ConfigurationError, match=r"the rows 0\.6, 0\.8.*: when_connections_open"):
        claims_page(report_of(without="when_connections_open"), EXPERIMENTS)


@pytest.mark.parametrize(
    ("holds", "measured", "old", "new"),
    [
        (True, "5 of 7", r'(?m)^- <a id="0.41"></a>.*\n(    - .*\n)*', ""),
        (True, "5 of 7", r'<a id="0.8"></a>', ""),
        (True, "5 of 7", r"(0\.8) true", r"\1 no verdict"),
        (True, "5 of 7", r"    - Measured: 5 of 7\n", ""),
        (True, "5 of 7", r"Measured: 5 of 7", "Measured: "),
        (True, "5 of 7", r"poolkit experiment pool_size`", "poolkit experiment pool_sizes`"),
        (False, "all of them", "", ""),
        ({"a": True, "b": False}, "5 of 7", r"    - It is .*\n", ""),
    ],
)
def test_a_page_that_lacks_something_is_noticed(holds, measured, old, new):
    """A row, a verdict, a measurement, the experiment, a number against it, or a condition."""
    page = claims_page(report_of(holds=holds, measured=measured), EXPERIMENTS)
    changed, count = re.subn(old, new, page, count=1)
    assert count == 1
    with pytest.raises(AssertionError):
        check_rows(changed)


def test_the_page_in_the_documentation_is_that_of_the_experiments():
    """docs/claims.md was written by a run of the experiments as they are."""
    check_rows(PAGE.read_text(encoding="utf-8"))


# -- the page that teaches pooling -----------------------------------------------------------


def test_each_claim_of_the_page_on_pooling_has_a_verdict_and_the_experiment_that_judges_it():
    """In brackets behind the command stands the claim's row, which that experiment judges."""
    taught = TAUGHT.findall(POOLING)
    assert len(taught) == POOLING.count("You may have read that") > 20
    for _, name, row in taught:
        assert row in EXPERIMENTS[name].rows


def test_the_page_on_pooling_has_the_verdicts_of_the_page_of_claims():
    """A claim that has become false or conditional needs another text there."""
    found = entries_of(PAGE.read_text(encoding="utf-8"))
    for verdict, _, row in TAUGHT.findall(POOLING):
        assert found[row].verdict == verdict.removeprefix("It ").lower(), row
