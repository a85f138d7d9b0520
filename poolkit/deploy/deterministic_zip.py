"""The same bytes from the same files: order, times and permissions are fixed."""

from __future__ import annotations

import hashlib
import zipfile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

TIME: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest that the format can say."""

LEVEL: Final = 6
"""zlib's own choice: 9 takes four times as long for less than one percent of the size."""


def write_zip(folder: Path, out: Path) -> None:
    """Pack everything below `folder`.

    The bytes are a function of the files, and of the version of zlib.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:
        for file in sorted(folder.rglob("*"), key=lambda path: path.as_posix()):
            if file.is_file():
                _add(archive, file, file.relative_to(folder).as_posix())
    # Whoever deploys meanwhile finds the old package or the new one, never half of one.
    partial.replace(out)


def _add(archive: zipfile.ZipFile, file: Path, name: str) -> None:
    entry = zipfile.ZipInfo(name, date_time=TIME)
    entry.create_system = 3  # Unix, on every machine: Lambda needs the permissions
    mode = 0o755 if ".so" in file.suffixes else 0o644
    entry.external_attr = (0o100000 | mode) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, file.read_bytes(), compresslevel=LEVEL)


def sha256(file: Path) -> str:
    """Return the file's SHA-256 in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
