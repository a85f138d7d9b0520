"""Bytecode for a package, made by an interpreter of the runtime's minor version.

Lambda's code folder is read-only: without shipped bytecode each cold start compiles every
module again. Unchecked hashes (PEP 552), because the files' times are not those of the
sources, and because checking would read every source at every cold start.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from poolkit.errors import PackageError

if TYPE_CHECKING:
    from collections.abc import Iterator

TASK_ROOT: Final = "/var/task"
"""Where Lambda unpacks the code; the file names in tracebacks."""

_VERSION = (
    "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2], sys.executable)"
)


class _Found(NamedTuple):
    version: str
    executable: Path


def find_interpreter(minor: str, uv: Path, named: Path | None = None) -> Path | None:
    """Return an interpreter of that minor version, or None: the running one, on PATH, or uv's.

    It is the program itself: what is found may be a script that starts it, and that needs
    variables which `compile_folder` does not hand on.

    Args:
        minor: such as "3.13".
        uv: asked for the interpreters it knows; it downloads none.
        named: this one, or none at all.

    Raises:
        PackageError: the interpreter `named` has another version.
    """
    if named is not None:
        answered = _asked(named)
        if answered is None or answered.version != minor:
            found = answered.version if answered else "nothing that answers as CPython"
            raise PackageError(f"{named} should be Python {minor}, but is {found}")
        return answered.executable
    found_all = filter(None, map(_asked, _candidates(minor, uv)))
    return next((each.executable for each in found_all if each.version == minor), None)


def _candidates(minor: str, uv: Path) -> Iterator[Path]:
    yield Path(sys.executable)
    found = shutil.which(f"python{minor}")
    if found:
        yield Path(found)
    command = [str(uv), "python", "find", "--no-python-downloads", "--no-project", minor]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        yield Path(done.stdout.strip())


def _asked(interpreter: Path) -> _Found | None:
    command = [str(interpreter), "-I", "-c", _VERSION]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    implementation, _, rest = done.stdout.strip().partition(" ")
    version, _, executable = rest.partition(" ")
    return _Found(version, Path(executable)) if implementation == "cpython" else None


def compile_folder(folder: Path, interpreter: Path) -> None:
    """Compile every module below `folder`, the same bytes each time.

    Raises:
        PackageError: a module of the package is not Python of that version.
    """
    words = ["-m", "compileall", "-q", "-f", "-j", "1", "--invalidation-mode", "unchecked-hash"]
    done = subprocess.run(
        [str(interpreter), "-s", *words, "-s", str(folder), "-p", TASK_ROOT, str(folder)],
        # Nothing else of the environment, and a folder without modules: -I would do both, and
        # would ignore the seed as well, on which the order of sets in bytecode depends.
        env={"PYTHONHASHSEED": "0"},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise PackageError(f"compiling with {interpreter} failed: {' '.join(lines[:4])}")
