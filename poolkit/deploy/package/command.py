"""The commands `poolkit package`: make the package, print its size and what it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.deploy.package.contents import missing_files
from poolkit.deploy.package.image import write_image_context
from poolkit.deploy.package.lambda_zip import package_lambda
from poolkit.deploy.package.settings import package_settings
from poolkit.deploy.progress import make_console, make_table, print_table
from poolkit.errors import PackageError
from poolkit.project import Project

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from poolkit.deploy.package.contents import ProjectFiles
    from poolkit.deploy.package.lambda_zip import LambdaPackage
    from poolkit.deploy.package.settings import PackageSettings

SHOWN = 8
"""Rows of the table of the largest parts."""


def package_function(
    target: str = "lambda",
    *,
    architecture: str | None = None,
    python: str | None,
    out: Path | None,
    bytecode: bool,
    interpreter: Path | None,
) -> None:
    """Make the zip and print its size. Raises `PackageError`."""
    project = Project.find()
    settings = package_settings(
        project,
        target,
        architecture=architecture,
        python=python,
        out=None if out is None else str(out.absolute()),
    )
    targets = project.table.get("targets", {})
    handler = targets.get(target, {}).get("handler") if isinstance(targets, dict) else None
    if handler is not None and not isinstance(handler, str):
        raise PackageError(f"[tool.poolkit.targets.{target}] handler must be a string: {handler!r}")
    package = package_lambda(settings, bytecode=bytecode, interpreter=interpreter, handler=handler)
    console = make_console()
    _print_sizes(console, package, settings)
    if package.bytecode:
        console.print(f"bytecode: compiled by {package.bytecode}")
    elif bytecode:
        console.print(
            f"bytecode: NONE, because no Python {settings.python} was found here; every cold "
            "start will compile each module again. Name one with --interpreter, or: "
            f"uv python install {settings.python}",
            style="yellow",
        )
    else:
        console.print("bytecode: none, by --no-bytecode")
    _print_not_packaged(console, settings, package.project_files)


def _print_sizes(console: Console, package: LambdaPackage, settings: PackageSettings) -> None:
    table = make_table("part")
    table.add_column("zipped", justify="right")
    table.add_column("unzipped", justify="right")
    for part in package.parts[:SHOWN]:
        table.add_row(part.name, _mb(part.zipped), _mb(part.unzipped))
    rest = package.parts[SHOWN:]
    if rest:
        zipped, unzipped = sum(part.zipped for part in rest), sum(part.unzipped for part in rest)
        table.add_row(f"{len(rest)} smaller ones", _mb(zipped), _mb(unzipped))
    print_table(console, table)
    console.print(
        f"\n{package.file}: {_mb(package.zipped)} ({_mb(package.unzipped)} unzipped), "
        f"Python {settings.python}, {settings.architecture}"
    )
    console.print(f"sha256 {package.sha256}")


def package_image(target: str, *, architecture: str | None, out: Path | None) -> None:
    """Write the context of an image. Raises `PackageError`."""
    settings = package_settings(
        Project.find(),
        target,
        architecture=architecture,
        out=None if out is None else str(out.absolute()),
    )
    context = write_image_context(settings)
    console = make_console()
    console.print(
        f"{context.folder}: {context.files} files, {context.requirements} locked distributions"
    )
    if context.dockerfile is None:
        console.print(f"no Dockerfile: infra/Dockerfile.{target} is missing", style="yellow")
    else:
        console.print(f"Dockerfile: {context.dockerfile}")
        # Without --platform the image is for the machine that builds it.
        build = context.build_command(target, settings.architecture)
        console.print(f"build: {build}", soft_wrap=True, highlight=False)
    _print_not_packaged(console, settings, context.project_files)


def _print_not_packaged(console: Console, settings: PackageSettings, files: ProjectFiles) -> None:
    for name in missing_files(settings):
        hint = "; run scripts/database-certificates" if name == "certificates" else ""
        console.print(f"without {name}, which include_if_there names{hint}", style="yellow")
    for name in files.unreadable:
        console.print(f"OpenSSL reads no certificate from {name}; write it again", style="yellow")
    if files.left_out:
        names = ", ".join(files.left_out)
        console.print(f"left out (hidden, secret or a test): {names}", style="yellow")
    if files.links:
        names = ", ".join(files.links)
        console.print(f"links, packaged as what they point to: {names}", style="yellow")


def _mb(size: int) -> str:
    return f"{size / 2**20:.2f} MB"
