"""Whether a file of results can be written: checked before the work, not after it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


def check_output_file(option: str, file: Path, *, makes_folders: bool = True) -> None:
    """Check that a file can be written. Nothing is created.

    Args:
        option: where the file was named, for the message: "--html".
        file: the file, which may exist already.
        makes_folders: whether the writer creates missing folders.

    Raises:
        ConfigurationError: it cannot be written; one line with the option, the file and the reason.
    """
    if file.is_dir():
        raise ConfigurationError(f"{option}: {file} is a folder; wanted the name of a file")
    folder = file.absolute().parent
    if not makes_folders and not folder.exists():
        raise ConfigurationError(f"{option}: {file} cannot be written: there is no folder {folder}")
    if file.exists():
        existing = file
    else:
        existing = next(one for one in file.absolute().parents if one.exists())
        if not existing.is_dir():
            raise ConfigurationError(
                f"{option}: {file} cannot be written: {existing} is not a folder"
            )
    if not os.access(existing, os.W_OK):
        raise ConfigurationError(
            f"{option}: {file} cannot be written: no permission for {existing}"
        )


def check_regular_file(option: str, file: Path) -> None:
    """Check that nothing but a regular file is at a path whose file is replaced or removed.

    As root, to replace `/dev/null` would take it from the whole machine.

    Args:
        option: where the file was named, for the message: "WORKER_READY_FILE".
        file: the file, which need not exist.

    Raises:
        ConfigurationError: a folder, a device, a pipe or a socket is there.
    """
    if file.exists() and not file.is_file():
        raise ConfigurationError(
            f"{option}: {file} is not a regular file; wanted a new name, or that of a file"
        )
