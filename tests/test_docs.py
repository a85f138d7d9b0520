"""The README and the documents: what they tell people to type works."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from poolkit.cli import main

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def blocks(*languages):
    """Give every fenced block in one of the languages, with the document it stands in."""
    return [
        pytest.param(text, id=f"{document.name}-{number}")
        for document in DOCUMENTS
        for number, (language, text) in enumerate(FENCE.findall(document.read_text()))
        if language in languages
    ]


def commands():
    """Give every line of the shell blocks; a comment behind a command is not part of it."""
    for block in blocks("sh"):
        (text,) = block.values
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield pytest.param(words, id=f"{block.id}-{' '.join(words)}")


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_run(text, migrated_database, tmp_path):
    """A block runs as it stands, with DATABASE_URL set as a platform sets it."""
    ast.parse(text)
    file = tmp_path / "block.py"
    file.write_text(text)
    answer = subprocess.run(
        [sys.executable, str(file)],
        cwd=ROOT,
        env={"DATABASE_URL": migrated_database.url(driver=""), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("words", list(commands()))
def test_commands_exist_as_they_are_written(words):
    """`make` knows its target, and `poolkit` takes the command with these options."""
    variables = [word for word in words if re.fullmatch(r"[A-Z_]+=\S*", word)]
    program, *arguments = [word for word in words if word not in variables]
    if program == "make":
        answer = subprocess.run(
            ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr
    elif program == "poolkit":
        parse(main, arguments)
    elif program == "python":
        assert runs_as_module(arguments), f"{words} is not a module or file of this project"
    else:
        assert program in {"cd", "git", "pip", "uvicorn", "locust"}, f"who has {program}?"


def parse(command, arguments):
    """Read a command line as click does, without doing what it says."""
    while isinstance(command, click.Group):
        name, *arguments = arguments
        assert name in command.commands, f"poolkit has no command {name}"
        command = command.commands[name]
    command.make_context(command.name, list(arguments), resilient_parsing=False)


def runs_as_module(arguments):
    """Tell whether `python …` names a module or a file that is there."""
    if arguments[0] == "-m":
        path = ROOT / arguments[1].replace(".", "/")
        return (path / "__main__.py").is_file() or path.with_suffix(".py").is_file()
    return (ROOT / arguments[0]).is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document):
    """A relative link names a file of this project."""
    for target in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
