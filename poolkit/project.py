"""A project: its folder, and its settings from pyproject.toml or poolkit.toml.

    [tool.poolkit]                        # in poolkit.toml the same keys without this line
    python = ".venv/bin/python"           # runs the targets and the commands
    directory = "backend"                 # where they run
    schema = ["{python}", "-m", "alembic", "upgrade", "head"]
    env = { POSTGRES_SERVER = "{db_host}" }

docs/configuration.md lists every key.
"""

from __future__ import annotations

import difflib
import os
import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from poolkit import placeholders
from poolkit.errors import ConfigurationError

OWN_FILE = "poolkit.toml"
SHARED_FILE = "pyproject.toml"
_OTHER_KEYS = ("budget", "drill", "migrations", "package", "targets", "thresholds")
"""Keys whose readers check them."""

Rule: TypeAlias = tuple[Callable[[Any], bool], str]
"""The check of a value, and the end of "KEY must be ..."."""


def is_text(value: object) -> bool:
    """Return whether a value is a string with something in it."""
    return isinstance(value, str) and bool(value.strip())


def is_command(value: object) -> bool:
    """Return whether a value is a program and its arguments."""
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


def is_env(value: object) -> bool:
    """Return whether a value is a table of variables."""
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


_RULES: Mapping[str, Rule] = {
    "python": (is_text, "the path of an interpreter"),
    "directory": (is_text, "the path of a folder"),
    "schema": (is_command, "a command, as a list of strings"),
    "seed": (is_command, "a command, as a list of strings"),
    "env": (is_env, "a table of strings"),
    "extensions": (
        lambda value: isinstance(value, list) and all(is_text(name) for name in value),
        "a list of strings",
    ),
    "postgres_bin": (is_text, "the folder of PostgreSQL's programs"),
    "migrations": (lambda value: isinstance(value, str), "the name of a folder or a module"),
}


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder and its settings; the settings are empty where no file has any."""

    root: Path
    table: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    """The file of the settings."""

    @classmethod
    def find(cls, start: Path | None = None) -> Project:
        """Return the nearest project at or above `start` (default: the current folder).

        A folder with settings of poolkit goes before a nearer one with a mere pyproject.toml, such
        as a package within a repository.

        Raises:
            ConfigurationError: a file is no TOML, two files of one folder have settings, or a
                setting is wrong; the message names the file and the key.
        """
        start = (start or Path.cwd()).resolve()
        nearest: Project | None = None
        for folder in (start, *start.parents):
            project = cls._in(folder)
            if project is not None and project.table:
                project.check()
                return project
            nearest = nearest or project
        return nearest or cls(root=start)

    @classmethod
    def _in(cls, folder: Path) -> Project | None:
        own, shared = folder / OWN_FILE, folder / SHARED_FILE
        shared_table = _poolkit_table(shared) if shared.is_file() else {}
        if own.is_file():
            if shared_table:
                raise ConfigurationError(
                    f"both {own} and [tool.poolkit] of {shared} configure poolkit; "
                    "move everything into one of them"
                )
            return cls(root=folder, table=_read(own), file=own)
        return cls(root=folder, table=shared_table, file=shared) if shared.is_file() else None

    def section(self, name: str = "") -> str:
        """Return a table's name for messages, such as `/p/pyproject.toml: [tool.poolkit.targets]`."""
        file = self.file or self.root / SHARED_FILE
        keys = [] if file.name == OWN_FILE else ["tool.poolkit"]
        keys += [name] if name else []
        return f"{file}: [{'.'.join(keys)}]" if keys else f"{file}:"

    def check(self) -> None:
        """Check the settings that concern the project as a whole.

        Raises:
            ConfigurationError: a key is unknown, or its value is wrong.
        """
        known = (*_RULES, *_OTHER_KEYS)
        for key, value in self.table.items():
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                raise ConfigurationError(f"{self.section()} has an unknown key {key}; {hint}")
            is_valid, wanted = _RULES.get(key, (lambda _: True, ""))
            if not is_valid(value):
                raise ConfigurationError(f"{self.section()} {key} must be {wanted}, not {value!r}")
        for key in ("schema", "seed"):
            placeholders.check_command(
                f"{self.section()} {key}", self.table.get(key, ()), ("python",)
            )
        placeholders.check_env(f"{self.section()} env", self.env)

    @property
    def env(self) -> Mapping[str, str]:
        """The variables of every target and of both commands, with placeholders."""
        env: dict[str, str] = self.table.get("env", {})
        return env

    @property
    def python(self) -> Path:
        """The interpreter of targets and commands."""
        return self.interpreter(self.table.get("python"))

    @property
    def directory(self) -> Path:
        """The working directory of targets and commands."""
        return self.root / str(self.table.get("directory", ""))

    @property
    def postgres_bin(self) -> Path | None:
        """The programs of another PostgreSQL; `POOLKIT_POSTGRES_BIN` goes first."""
        text = os.environ.get("POOLKIT_POSTGRES_BIN") or self.table.get("postgres_bin")
        return self.root / Path(text).expanduser() if text else None

    @property
    def commands(self) -> dict[str, Sequence[str]]:
        """The commands that prepare a database, by name, in the order of their run."""
        return {name: self.table[name] for name in ("schema", "seed") if name in self.table}

    def interpreter(self, text: str | None) -> Path:
        """Return the interpreter that a setting names; poolkit's own for None.

        A name without a folder, such as `python3.12`, is looked up on PATH. Links are kept: the
        interpreter of a virtual environment is one, and finds its packages by its own path.
        """
        if text is None:
            return Path(sys.executable)
        path = Path(text).expanduser()
        if path.parent == Path() and not (self.root / path).exists():
            return Path(shutil.which(text) or self.root / path)
        return self.root / path


def with_interpreter(environ: Mapping[str, str], python: Path) -> dict[str, str]:
    """Return variables as an activated environment of that interpreter would have them.

    So `command = ["gunicorn", ...]` finds the program of that environment.
    """
    if python == Path(sys.executable):
        return dict(environ)
    changed = {name: text for name, text in environ.items() if name != "VIRTUAL_ENV"}
    changed["PATH"] = os.pathsep.join([str(python.parent), environ.get("PATH", os.defpath)])
    if (python.parent.parent / "pyvenv.cfg").is_file():
        changed["VIRTUAL_ENV"] = str(python.parent.parent)
    return changed


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: {error}") from None


def _poolkit_table(file: Path) -> dict[str, Any]:
    found = _read(file)
    for name, path in (("tool", "tool"), ("poolkit", "tool.poolkit")):
        found = found.get(name, {})
        if not isinstance(found, dict):
            raise ConfigurationError(f"{file}: {path} must be a table, not {found!r}")
    return found
