"""`poolkit init`."""

from __future__ import annotations

from pathlib import Path

import click

_path = click.Path(path_type=Path)


@click.command()
@click.argument("folder", type=_path, default=".")
@click.option(
    "--app", default="", metavar="MODULE:NAME", help="the application to take, if there are several"
)
@click.option(
    "--python", type=_path, help="its interpreter, if not .venv, venv or the activated one"
)
@click.option(
    "--no-import", is_flag=True, help="read the source alone, without an import of the application"
)
@click.option("--dry-run", is_flag=True, help="print the files and write none")
@click.option("--yes", is_flag=True, help="agree to replace what exists")
def init(
    *, folder: Path, app: str, python: Path | None, no_import: bool, dry_run: bool, yes: bool
) -> None:
    """Write the configuration for a project of your own.

    Reads the project in FOLDER: its application, interpreter, database variables and migrations.
    Writes [tool.poolkit] into pyproject.toml, or a poolkit.toml where there is none, and a locustfile.
    The application is imported once, in its own interpreter, to list its paths.
    """
    from poolkit.init.command import init  # noqa: PLC0415

    init(folder, app=app, python=python, imports=not no_import, dry_run=dry_run, yes=yes)
