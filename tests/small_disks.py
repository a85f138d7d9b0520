"""File systems that are soon full, or that cannot be written to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import run, wait_until


@contextmanager
def small_disk(directory: Path, size: str, *, read_only: bool = False) -> Iterator[None]:
    """Mount a file system of a given size on a directory; read-only binds even root."""
    options = f"size={size},mode=0755,{'ro' if read_only else 'rw'}"
    mount = ("mount", "-t", "tmpfs", "-o", options, "tmpfs", directory)
    if os.geteuid() != 0 or run(*mount).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield
    finally:
        # Until the last process that uses it has ended, the kernel refuses.
        wait_until(lambda: run("umount", directory).returncode == 0, f"{directory} is free")
