"""The commands of a project that prepare its database: `schema`, and `seed` for its first rows."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit import placeholders
from poolkit.config.credentials import source_for
from poolkit.errors import BinaryMissingError, PreparationFailed
from poolkit.project import with_interpreter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from poolkit.config.settings import Settings
    from poolkit.project import Project

QUOTED_LINES = 12
"""The lines of a failed command's output that its error quotes."""
_NOT_AVAILABLE = re.compile(r'extension "([^"]+)" is not available')
_NOT_PERMITTED = re.compile(r'permission denied to create extension "([^"]+)"')


@dataclass(frozen=True, kw_only=True)
class ProjectCommand:
    """One command with everything that it needs to run."""

    name: str
    """`schema` or `seed`."""
    words: tuple[str, ...]
    environ: Mapping[str, str]
    """Its variables, in addition to inherited ones."""
    directory: Path
    python: Path

    @classmethod
    def of(
        cls,
        project: Project,
        name: str,
        *,
        database_url: str,
        environment: str,
        broker_url: str = "",
    ) -> ProjectCommand:
        """Return a command of the project for a database.

        Args:
            project: the project; it has the command.
            name: `schema` or `seed`.
            database_url: the database to prepare, with a password.
            environment: the preset numbers, such as `prod`.
            broker_url: the broker, if the project's variables name one.
        """
        python = str(project.python)
        values = placeholders.values_for(database_url, python=python, broker_url=broker_url)
        environ = {
            "POOLKIT_TARGET": "script",
            "POOLKIT_ENVIRONMENT": environment,
            "DATABASE_URL": database_url,
            "PYTHONPATH": str(project.directory),
            **placeholders.filled(project.env, values),
        }
        return cls(
            name=name,
            words=tuple(word.format(python=python) for word in project.commands[name]),
            environ=environ,
            directory=project.directory,
            python=project.python,
        )

    def run(self) -> None:
        """Run it to its end, its output on the terminal.

        Raises:
            BinaryMissingError: its program cannot be run.
            PreparationFailed: it failed.
        """
        # As from the shell, except for the database.
        environ = {**with_interpreter(os.environ, self.python), **self.environ}
        try:
            done = subprocess.run(self.words, cwd=self.directory, env=environ, check=False)
        except OSError as error:
            raise BinaryMissingError(
                f"{self.name}: cannot run {self.words[0]} in {self.directory}: {error.strerror}"
            ) from None
        if done.returncode:
            raise PreparationFailed(
                f"{self.name} failed with exit status {done.returncode}: {' '.join(self.words)}"
            )


def upgrade_url(settings: Settings) -> str:
    """Return the URL of the settings' database with its user and password.

    Raises:
        CredentialsError: they cannot be fetched from AWS.
    """
    url = settings.engine_url()
    if (source := source_for(settings)) is not None:
        credentials = source.fetch()
        url = url.set(username=credentials.user, password=credentials.password)
    return url.render_as_string(hide_password=False)


def extension_hint(output: str) -> str:
    """Return advice if a command's output says that PostgreSQL lacks an extension, else nothing."""
    if missing := _NOT_AVAILABLE.search(output):
        return (
            f"\nThis PostgreSQL does not have {missing[1]}: set postgres_bin to the programs of a "
            "server that has it, such as /usr/lib/postgresql/16/bin of Debian's package postgresql"
        )
    if refused := _NOT_PERMITTED.search(output):
        return (
            f'\nOnly a superuser may create {refused[1]}: add extensions = ["{refused[1]}"] '
            "to the settings of poolkit, and it is created before the schema"
        )
    return ""


def quoted(lines: Iterable[str]) -> str:
    """Return the last lines of an output for an error message, indented."""
    filled = [line.rstrip() for line in lines if line.strip()]
    return "".join(f"\n  {line}" for line in filled[-QUOTED_LINES:])
