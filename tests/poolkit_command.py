"""The command `poolkit`, in a process of its own or, for half a second less, in this one."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, TypeAlias

from click.testing import CliRunner
from processes import Finished, run

from poolkit.cli import main

ROOT = Path(__file__).resolve().parents[1]
POOLKIT = Path(sys.executable).with_name("poolkit")

Answer: TypeAlias = Finished


def run_process(*arguments: Any, cwd: Path = ROOT, typed: str = "", **environ: str) -> Answer:
    """Run it as a user does, without a terminal; keywords are variables."""
    variables = {"COLUMNS": "200"} | environ
    return run(POOLKIT, *arguments, cwd=cwd, typed=typed, environ=variables, clean=True)


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
    """Tell whether the command, or a library of its, would read the variable."""
    return variable.startswith(("AWS_", "DATABASE_", "POOLKIT_"))
