"""The keeper, seen from its owner."""

import os
import signal

from poolkit.local.keeper import Keeper


def test_keeper_that_stands_still_does_not_hold_up_its_owner(own_records, runs):
    """Dismissed, it has its time to go; then it is ended, and the owner hears of no error."""
    keeper = Keeper(patience_s=0.1)
    keeper.engage()
    pid = keeper._process.pid
    os.kill(pid, signal.SIGSTOP)
    keeper.dismiss()
    assert not runs(pid)
