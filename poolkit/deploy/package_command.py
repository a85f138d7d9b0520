"""`poolkit package`: what is printed of what was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.deploy.image_context import write_image_context
from poolkit.deploy.package_lambda import package_lambda
from poolkit.deploy.package_settings import package_settings
from poolkit.deploy.project_code import not_there
from poolkit.deploy.terminal import make_console, make_table, print_table
from poolkit.errors import PackageError
from poolkit.project import Project

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from poolkit.deploy.package_lambda import LambdaPackage
    from poolkit.deploy.package_settings import PackageSettings

SHOWN = 8
"""Lines of the table of what takes the room."""


def package_function(
    *,
    architecture: str | None,
    python: str | None,
    out: Path | None,
    bytecode: bool,
    interpreter: Path | None,
) -> None:
    """Make the zip and print its size. Raises `PackageError`."""
    project = Project.find()
    settings = package_settings(
        project,
        "lambda",
        architecture=architecture,
        python=python,
        out=None if out is None else str(out.absolute()),
    )
    made = package_lambda(
        settings, bytecode=bytecode, interpreter=interpreter, handler=_handler(project)
    )
    _print_function(made, settings, wanted=bytecode)


def package_image(target: str, *, architecture: str | None, out: Path | None) -> None:
    """Write the context of an image. Raises `PackageError`."""
    settings = package_settings(
        Project.find(),
        target,
        architecture=architecture,
        out=None if out is None else str(out.absolute()),
    )
    made = write_image_context(settings)
    console = make_console()
    console.print(f"{made.folder}: {made.files} files, {made.requirements} locked distributions")
    if made.dockerfile is None:
        console.print(f"no Dockerfile: infra/Dockerfile.{target} is not there", style="yellow")
    else:
        console.print(f"Dockerfile: {made.dockerfile}")
    _print_not_packaged(console, settings, made.left_out)


def _handler(project: Project) -> str | None:
    targets = project.table.get("targets", {})
    handler = targets.get("lambda", {}).get("handler") if isinstance(targets, dict) else None
    if handler is not None and not isinstance(handler, str):
        raise PackageError(f"[tool.poolkit.targets.lambda] handler must be a string: {handler!r}")
    return handler


def _print_function(made: LambdaPackage, settings: PackageSettings, *, wanted: bool) -> None:
    console = make_console()
    table = make_table("part")
    table.add_column("zipped", justify="right")
    table.add_column("unzipped", justify="right")
    for name, plain, zipped in made.rooms[:SHOWN]:
        table.add_row(name, _mb(zipped), _mb(plain))
    rest = made.rooms[SHOWN:]
    if rest:
        count, zipped, plain = len(rest), sum(r[2] for r in rest), sum(r[1] for r in rest)
        table.add_row(f"{count} smaller ones", _mb(zipped), _mb(plain))
    print_table(console, table)
    console.print(
        f"\n{made.file}: {_mb(made.zipped)} ({_mb(made.unzipped)} unzipped), "
        f"Python {settings.python}, {settings.architecture}"
    )
    console.print(f"sha256 {made.sha256}")
    _print_bytecode(console, made, settings, wanted=wanted)
    _print_not_packaged(console, settings, made.left_out)


def _print_bytecode(
    console: Console, made: LambdaPackage, settings: PackageSettings, *, wanted: bool
) -> None:
    if made.bytecode:
        console.print(f"bytecode: compiled by {made.bytecode}")
    elif wanted:
        console.print(
            f"bytecode: NONE, because no Python {settings.python} was found here; every cold "
            "start will compile each module again. Name one with --interpreter, or: "
            f"uv python install {settings.python}",
            style="yellow",
        )
    else:
        console.print("bytecode: none, as was asked")


def _print_not_packaged(console: Console, settings: PackageSettings, left_out: list[str]) -> None:
    for name in not_there(settings):
        console.print(
            f"without {name}, which include_if_there names and which is not there", style="yellow"
        )
    if left_out:
        console.print(f"left out (hidden, secret or a test): {', '.join(left_out)}", style="yellow")


def _mb(size: int) -> str:
    return f"{size / 2**20:.2f} MB"
