"""The project's own files in a package: what is included, and what never travels."""

from __future__ import annotations

import fnmatch
import re
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


_PRIVATE_KEY: Final = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    rb"(?:\s|\\[nr]|[\w-]++: [^\n\\]*+)*+[A-Za-z0-9+/]{16}"
)
"""A header and what follows it (RFC 7468), in a file of its own or as a text in JSON or code. The
header alone is what programs look for that read keys."""


def copy_project_code(settings: PackageSettings, folder: Path) -> list[str]:
    """Copy what is included into `folder`; return the names of the secrets left out.

    Raises:
        PackageError: something included is not there, lies outside the project, or is a module
            with a private key in it.
    """
    left_out = []
    for path in _included(settings):
        name = path.relative_to(settings.root).as_posix()
        if any(_within(name, excluded) for excluded in settings.exclude):
            continue
        if _never(name) or _holds_private_key(path):
            left_out.append(name)
        else:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return [name for name in left_out if "__pycache__" not in name]


def not_there(settings: PackageSettings) -> list[str]:
    """Return what of `include_if_there` is missing."""
    return [name for name in settings.include_if_there if not (settings.root / name).exists()]


def _included(settings: PackageSettings) -> Iterator[Path]:
    root = settings.root.resolve()
    missing = not_there(settings)
    there = [name for name in settings.include_if_there if name not in missing]
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
    found = _PRIVATE_KEY.search(file.read_bytes()) is not None
    if found and file.suffix == ".py":
        # Left out, the package would lack a module, and the key would stay in the sources.
        raise PackageError(
            f"{file} holds a private key, which no package may hold; let the code read it from "
            "Secrets Manager, or name the file in exclude"
        )
    return found


def _within(name: str, folder: str) -> bool:
    folder = folder.rstrip("/")
    return name == folder or name.startswith(f"{folder}/")
