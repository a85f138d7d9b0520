"""What a function never reads: removed from the installed wheels."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

FOLDERS: Final = ("bin", "__pycache__", "tests", "test")
"""Command-line programs, stale bytecode, and the libraries' own tests."""

FILES: Final = ("*.pyi", "*.pyx", "*.pxd", "*.c", "*.h", "*.cpp", "py.typed")
"""For type checkers and compilers."""

DIST_INFO: Final = ("RECORD", "INSTALLER", "REQUESTED", "WHEEL", "direct_url.json", "top_level.txt")
"""For installers. METADATA stays, because `importlib.metadata.version` reads it, and so do
licences, because they ask for it. RECORD would list files that are gone."""


def prune(folder: Path) -> None:
    """Remove the above from `folder`, in which wheels have been installed."""
    for name in FOLDERS:
        for found in sorted(folder.rglob(name)):
            # `bin` is where installers put programs only at the top.
            if found.is_dir() and (name != "bin" or found.parent == folder):
                shutil.rmtree(found)
    for pattern in FILES:
        _remove(folder, pattern)
    for name in DIST_INFO:
        _remove(folder, f"*.dist-info/{name}")
    # Installers lock the folder they work in.
    (folder / ".lock").unlink(missing_ok=True)


def _remove(folder: Path, pattern: str) -> None:
    for file in sorted(folder.rglob(pattern)):
        if file.is_file():
            file.unlink()
