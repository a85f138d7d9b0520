"""The settings of a package: `[tool.poolkit.package.TARGET]` in pyproject.toml.

[tool.poolkit.package.lambda]
include = ["my_function", "my_models"]   # files and folders of the project
exclude = ["my_models/migrations"]       # less these
extras = ["lambda"]                      # of [project.optional-dependencies]
architecture = "arm64"                   # or "x86_64"
python = "3.13"                          # the runtime's minor version
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from poolkit.errors import PackageError

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.project import Project

ARCHITECTURES: Final = {"arm64": "aarch64", "x86_64": "x86_64"}
"""AWS's name of an instruction set to the one that wheels carry."""

PROVIDED: Final = ("boto3", "botocore", "s3transfer")
"""Distributions that Lambda's Python runtimes bring (Developer Guide, "Lambda runtimes",
Python, Runtime-included SDK versions). The dependencies of botocore are not listed: another
distribution of the package may need them too."""

OUT: Final = {"lambda": "build/lambda.zip", "webfunction": "build/webfunction.zip"}


@dataclass(frozen=True, kw_only=True)
class PackageSettings:
    """How one target is packaged; paths are relative to the project's folder."""

    target: str
    root: Path
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    include_if_there: tuple[str, ...] = ()
    """As include, but may be missing, such as the database's CA certificates."""
    extras: tuple[str, ...] = ()
    architecture: str = "arm64"
    python: str = "3.13"
    lock: str = "requirements.lock"
    provided: tuple[str, ...] = PROVIDED
    """Distributions that the runtime has already; for Lambda only."""
    dockerfile: str = ""
    """For images; empty: looked for in infra/."""
    out: str = ""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            allowed = " or ".join(ARCHITECTURES)
            raise PackageError(f"architecture must be {allowed}, not {self.architecture!r}")
        if not re.fullmatch(r"3\.\d{1,2}", self.python):
            raise PackageError(f"python must be a minor version such as 3.13, not {self.python!r}")
        if not self.include:
            raise PackageError(
                f"[tool.poolkit.package.{self.target}] include must name the files and folders "
                f"to package, but is empty in {self.root / 'pyproject.toml'}"
            )

    @property
    def lock_file(self) -> Path:
        """The lock file. Raises `PackageError` when it is missing."""
        file = self.root / self.lock
        if not file.is_file():
            raise PackageError(f"{file} is missing; a package is built from a lock file only")
        return file

    @property
    def out_path(self) -> Path:
        """Where the package is written."""
        return self.root / (self.out or OUT.get(self.target, f"build/{self.target}"))


def package_settings(project: Project, target: str, **overrides: str | None) -> PackageSettings:
    """Return the settings of a target.

    Args:
        project: whose pyproject.toml is read.
        target: the last part of the table's name.
        overrides: values of the command line, which win over the table; None: not given.

    Raises:
        PackageError: the table is missing, or one of its values has the wrong type.
    """
    tables = project.table.get("package", {})
    table = tables.get(target) if isinstance(tables, dict) else None
    if not isinstance(table, dict):
        raise PackageError(
            f"[tool.poolkit.package.{target}] is missing in {project.root / 'pyproject.toml'}; "
            'it must have at least include = ["folder", …]'
        )
    kinds = {field.name: str(field.type) for field in fields(PackageSettings)}
    known = sorted(kinds.keys() - {"target", "root"})
    values: dict[str, Any] = {"include": ()}
    for name, value in (table | {k: v for k, v in overrides.items() if v is not None}).items():
        path = f"[tool.poolkit.package.{target}] {name}"
        if name not in known:
            raise PackageError(f"{path} is unknown; known are {', '.join(known)}")
        if not kinds[name].startswith("tuple"):
            if not isinstance(value, str):
                raise PackageError(f"{path} must be a string, not {value!r}")
            values[name] = value
        elif not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise PackageError(f"{path} must be a list of strings, not {value!r}")
        else:
            values[name] = tuple(value)
    return PackageSettings(target=target, root=project.root, **values)


def function_package(project: Project, target: str = "lambda") -> Path:
    """Return the path of a function's zip, also in a project that has no table for it.

    A target without a package of its own is deployed with the package `lambda`.

    Raises:
        PackageError: a value of the table is wrong.
    """
    tables = project.table.get("package")
    if isinstance(tables, dict) and target in tables:
        return package_settings(project, target).out_path
    if isinstance(tables, dict) and "lambda" in tables:
        return package_settings(project, "lambda").out_path
    return project.root / OUT["lambda"]
