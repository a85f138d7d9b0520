"""The share of time in which gevent's event loop has something to do."""

import pytest
from processes import run_python

pytestmark = pytest.mark.process

# In a process of its own, which is stopped for a second while it waits: whenever that comes.
SCRIPT = """
import os, subprocess, time
import gevent
from poolkit.loadtest.event_loop import WINDOW_S, EventLoopLoad

def busy_shares(load, until):
    while not until():
        gevent.sleep(WINDOW_S)
        load.look(time.monotonic())
        yield load.busy_share

load = EventLoopLoad()
load.start()
end = time.monotonic() + 60
print(next(share for share in busy_shares(load, lambda: time.monotonic() > end) if share < 0.5))
me = os.getpid()
stopping = subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -STOP {me}; sleep 1; kill -CONT {me}"])
print(max(busy_shares(load, lambda: stopping.poll() is not None)))
"""


def test_a_stopped_process_counts_as_busy():
    """Scheduled work waits meanwhile, so the process must not pass for one with time to spare."""
    done = run_python("-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    waiting, stopped = map(float, done.stdout.split())
    assert waiting < 0.5
    assert stopped > 0.9
