"""File systems that are soon full."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    """Mount a file system of a given size on a directory."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield
    finally:
        _unmount(directory)


def _unmount(directory: Path) -> None:
    """Unmount it, as soon as whoever was using it has ended."""
    deadline = time.monotonic() + 60
    while subprocess.run(["umount", str(directory)], capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, f"{directory} is still in use"
        time.sleep(0.1)
