"""The command `poolkit`, in a process of its own or, for half a second less, in this one."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeAlias

from click.testing import CliRunner

from poolkit.cli import main

ROOT = Path(__file__).resolve().parents[1]
POOLKIT = Path(sys.executable).with_name("poolkit")

Answer: TypeAlias = subprocess.CompletedProcess[str]


def run_process(*arguments: Any, cwd: Path = ROOT, typed: str = "", **environ: str) -> Answer:
    """Run it as a user does, without a terminal; keywords are variables."""
    keep = {name: value for name, value in os.environ.items() if not _says_something(name)}
    return subprocess.run(
        [str(POOLKIT), *map(str, arguments)],
        cwd=cwd,
        env=keep | {"COLUMNS": "200"} | environ,
        input=typed,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
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
    return subprocess.CompletedProcess(arguments, answer.exit_code, answer.stdout, answer.stderr)


def _says_something(variable: str) -> bool:
    """Tell whether the command, or a library of its, would read the variable."""
    return variable.startswith(("AWS_", "DATABASE_", "POOLKIT_"))
