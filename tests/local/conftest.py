"""Processes to start, kill and look for, with records of their own."""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import RunningProcess
from small_disks import small_disk


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that other accounts can pass through, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="poolkit-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def own_records(
    open_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Keep the records of this test, and of what it starts, in a directory of its own."""
    tmp_path_factory.getbasetemp()  # made at first use, and not to be made in here
    temporary = open_dir / "tmp"
    temporary.mkdir(mode=0o755)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return temporary


class Owner(RunningProcess):
    """A Python process that starts things, reports what, and waits to be ended."""

    def __init__(self, script: str) -> None:
        prelude = (
            "import json, time\n"
            "from pathlib import Path\n"
            "def tell(**facts): print(json.dumps(facts), flush=True)\n"
            "def wait_for_a_signal():\n"
            # Not pause(): a signal just before it would be waited for in vain.
            "    while True: time.sleep(0.05)\n"
        )
        super().__init__(sys.executable, "-c", prelude + script, new_session=True)
        self.told: dict[str, Any] = json.loads(self.next_line())

    def reapers(self) -> list[psutil.Process]:
        found = []
        for child in self.children():
            # PostgreSQL's own processes come and go meanwhile.
            with contextlib.suppress(psutil.Error):
                found += [child] if "poolkit.local.reaper" in child.cmdline() else []
        return found


@pytest.fixture
def owner(own_records: Path) -> Iterator[Callable[[str], Owner]]:
    """Start a Python process that runs a script, and read what it reports with `tell`."""
    owners: list[Owner] = []

    def start(script: str) -> Owner:
        owners.append(Owner(script))
        return owners[-1]

    yield start
    for process in owners:
        process.kill()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has accounts to change")


@pytest.fixture
def full_disk(open_dir: Path) -> Iterator[Path]:
    """A directory on a file system of 8 MiB: too small for PostgreSQL."""
    directory = open_dir / "disk"
    directory.mkdir()
    with small_disk(directory, "8m"):
        yield directory


@pytest.fixture
def read_only_disk(open_dir: Path) -> Iterator[Path]:
    """A directory that not even root can write to."""
    directory = open_dir / "read-only"
    directory.mkdir()
    with small_disk(directory, "1m", read_only=True):
        yield directory
