"""How busy a process is that has something to do now and then."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

# In a process of its own, which somebody stops for a second while it waits.
SCRIPT = """
import os, subprocess, time
import gevent
from poolkit.loadtest.open_loop.hub_time import WINDOW_S, HubTime

def busy_shares(hub, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        gevent.sleep(WINDOW_S)
        hub.look(time.monotonic())
        yield hub.busy_share

hub = HubTime()
hub.start()
print(next(share for share in busy_shares(hub, 60) if share < 0.5))
me = os.getpid()
stopping = subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -STOP {me}; sleep 1; kill -CONT {me}"])
print(max(busy_shares(hub, 1)))
stopping.wait()
"""


def test_a_process_that_stands_still_has_no_time_to_spare():
    """Nobody does what is due meanwhile, so it is not taken for one that waits for something to do."""
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=100
    )
    assert answer.returncode == 0, answer.stderr
    waiting, stopped = map(float, answer.stdout.split())
    assert waiting < 0.5
    assert stopped > 0.9
