"""The reaper, seen from its owner."""

import os
import signal

import pytest
from processes import runs

from poolkit.local.reaper import Reaper

pytestmark = pytest.mark.process


def test_stopped_reaper_does_not_delay_its_owner(own_records):
    """A dismissed reaper that does not end in time is killed, without an error for its owner."""
    reaper = Reaper(patience_s=0.1)
    reaper.engage()
    pid = reaper._process.pid
    os.kill(pid, signal.SIGSTOP)
    reaper.dismiss()
    assert not runs(pid)
