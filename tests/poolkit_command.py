"""The command `poolkit`, in a process of its own or, for half a second less, in this one."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, TypeAlias

from click.testing import CliRunner
from processes import PATIENCE_S, ROOT, Finished, run

from poolkit.cli import main

POOLKIT = Path(sys.executable).with_name("poolkit")

Answer: TypeAlias = Finished


def run_process(
    *arguments: Any,
    cwd: Path = ROOT,
    typed: str = "",
    timeout_s: float = PATIENCE_S,
    **environ: str,
) -> Answer:
    """Run it as a user does, without a terminal; further keywords are variables."""
    variables = {"COLUMNS": "200"} | environ
    return run(
        POOLKIT,
        *arguments,
        cwd=cwd,
        typed=typed,
        timeout_s=timeout_s,
        environ=variables,
        clean=True,
    )


def run_here(*arguments: Any, cwd: Path = ROOT, typed: str = "", **environ: str) -> Answer:
    """Do the same in this process; what would be a traceback there is raised."""
    unset = dict.fromkeys(filter(_says_something, os.environ))
    with contextlib.chdir(cwd):
        answer = CliRunner().invoke(
            main,
            [str(word) for word in arguments],
            input=typed,
            env=unset | {"COLUMNS": "200"} | environ,
            catch_exceptions=False,
            prog_name="poolkit",
        )
    return Finished(arguments, answer.exit_code, answer.stdout, answer.stderr)


def _says_something(variable: str) -> bool:
    """Return whether the command, or a library that it uses, would read the variable."""
    return variable.startswith(("AWS_", "DATABASE_", "POOLKIT_"))


def refused(answer: Answer, *messages: str, lines: int | None = None) -> str:
    """Check that a command ended with status 2 and an error with these texts; return the error.

    Args:
        answer: the command that has ended.
        messages: what its standard error contains.
        lines: the number of lines of the error, if it matters.
    """
    assert answer.returncode == 2, answer.stdout + answer.stderr
    for message in messages:
        assert message in answer.stderr, answer.stderr
    assert lines is None or len(answer.stderr.strip().splitlines()) == lines, answer.stderr
    return answer.stderr


def succeeded(answer: Answer, *messages: str) -> str:
    """Check that a command ended with status 0 and an output with these texts; return the output."""
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr
    for message in messages:
        assert message in answer.stdout, answer.stdout
    return answer.stdout
