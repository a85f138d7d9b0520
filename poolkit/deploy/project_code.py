"""The project's own files in a package: what is included, and what never travels."""

from __future__ import annotations

import fnmatch
import shutil
from typing import TYPE_CHECKING, Final

from poolkit.errors import PackageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from poolkit.deploy.package_settings import PackageSettings

NEVER: Final = (
    *(".*", "__pycache__", "*.py[cod]", "*.egg-info"),
    *("tests", "test_*.py", "conftest.py"),
    *("*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", "credentials.json"),
    *("*.env", "*.sqlite", "*.sqlite3", "*.db"),
)
"""Names of files and folders that are left out wherever they are: hidden ones (among them
.env and .git), secrets, tests, and what tools make."""


def copy_project_code(settings: PackageSettings, folder: Path) -> list[str]:
    """Copy what is included into `folder`; return the names of the secrets left out.

    Raises:
        PackageError: something included is not there, or lies outside the project.
    """
    left_out = []
    for path in _included(settings):
        name = path.relative_to(settings.root).as_posix()
        if _never(name) or _holds_private_key(path):
            left_out.append(name)
        elif not any(_within(name, excluded) for excluded in settings.exclude):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return [name for name in left_out if "__pycache__" not in name]


def _included(settings: PackageSettings) -> Iterator[Path]:
    root = settings.root.resolve()
    there = [name for name in settings.include_if_there if (root / name).exists()]
    for name in (*settings.include, *there):
        path = root / name
        if not path.resolve().is_relative_to(root):
            raise PackageError(f"include names {name!r}, which lies outside of {root}")
        if path.is_dir():
            yield from (_inside(root, file) for file in sorted(path.rglob("*")) if file.is_file())
        elif path.is_file():
            yield path
        else:
            raise PackageError(f"include names {name!r}, but there is no {path}")


def _inside(root: Path, file: Path) -> Path:
    if not file.resolve().is_relative_to(root):
        raise PackageError(f"{file} is a link to something outside of {root}; it is not packaged")
    return file


def _never(name: str) -> bool:
    parts = name.split("/")
    return any(fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in NEVER)


def _holds_private_key(file: Path) -> bool:
    # Certificates are public and have the same endings.
    return b"PRIVATE KEY-----" in file.read_bytes()


def _within(name: str, folder: str) -> bool:
    folder = folder.rstrip("/")
    return name == folder or name.startswith(f"{folder}/")
