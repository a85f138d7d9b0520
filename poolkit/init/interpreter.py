"""The interpreter of a project, and the versions of the packages in it, without running it."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_FOLDERS = (".venv", "venv", "env", ".virtualenv", ".conda", ".pixi/envs/default")
"""Where uv, poetry (in-project), pip's users, conda and pixi put a project's environment."""
DRIVERS = ("psycopg2", "psycopg2-binary", "psycopg", "asyncpg", "pg8000")
FRAMEWORKS = (
    "fastapi",
    "starlette",
    "flask",
    "django",
    "celery",
    "mangum",
    "aws-lambda-powertools",
)


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python of a project."""

    path: Path
    version: str = ""
    """Such as 3.12.1; empty if it is not known."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions by normalised name."""
    origin: str = ""
    """Where it was found, for people."""

    def has(self, name: str) -> bool:
        """Return whether a package is installed."""
        return name in self.packages

    def described(self) -> str:
        """Return its version and the packages that matter here, for one line."""
        known = {"sqlalchemy": "SQLAlchemy", "fastapi": "FastAPI", "flask": "Flask"}
        known |= {"django": "Django", "celery": "Celery", "mangum": "Mangum"}
        names = ("sqlalchemy", *FRAMEWORKS, *DRIVERS)
        found = [f"{known.get(n, n)} {self.packages[n]}" for n in names if n in self.packages]
        return ", ".join([f"Python {self.version or '(version unknown)'}", *found])


def find_interpreter(
    folders: Sequence[Path], environ: Mapping[str, str] = os.environ
) -> Interpreter | None:
    """Return the interpreter of the nearest environment, or None.

    Args:
        folders: where to look, the likeliest first.
        environ: `VIRTUAL_ENV` and `CONDA_PREFIX` are read last: an activated environment may be
            poolkit's own.
    """
    for folder in folders:
        for name in _FOLDERS:
            if (path := _python_in(folder / name)) is not None:
                return interpreter_at(path, origin=name)
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = environ.get(variable)
        if not prefix or Path(prefix).resolve() == Path(sys.prefix).resolve():
            continue
        if (path := _python_in(Path(prefix))) is not None:
            return interpreter_at(path, origin=variable)
    return None


def interpreter_at(path: Path, *, origin: str = "") -> Interpreter:
    """Return the interpreter with this path, its version and its packages."""
    prefix = path.parent.parent
    packages: dict[str, str] = {}
    version = ""
    # Reversed: 3.9 sorts after 3.12, and one environment has one.
    for site in sorted(prefix.glob("lib/python3*/site-packages"), reverse=True):
        packages = dict(_installed(site))
        version = site.parent.name.removeprefix("python")
        break
    config = _read(prefix / "pyvenv.cfg")
    if match := re.search(r"^version(?:_info)?\s*=\s*([\d.]+)", config, re.MULTILINE):
        version = match[1]
    return Interpreter(path=path, version=version, packages=packages, origin=origin)


def own_interpreter() -> Interpreter:
    """Return poolkit's own interpreter: the default of targets."""
    found = interpreter_at(Path(sys.executable), origin="poolkit's own")
    version = ".".join(map(str, sys.version_info[:3]))
    return Interpreter(
        path=found.path, version=version, packages=found.packages, origin=found.origin
    )


def _python_in(prefix: Path) -> Path | None:
    for name in ("bin/python", "bin/python3", "Scripts/python.exe"):
        if (prefix / name).exists():
            # Not resolved: the link decides which environment it is.
            return prefix / name
    return None


def _installed(site: Path) -> Iterator[tuple[str, str]]:
    for folder in site.glob("*.dist-info"):
        headers = HeaderParser().parsestr(_read(folder / "METADATA"), headersonly=True)
        if headers["Name"] and headers["Version"]:
            yield re.sub(r"[-_.]+", "-", headers["Name"]).lower(), headers["Version"]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
