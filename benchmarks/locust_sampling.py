"""Ways to query the server from inside Locust: in a greenlet, a real thread, or a process.

Queries ten times a second while greenlets keep the event loop busy, then while the server does not
answer (SIGSTOP for a second). It measures the cost of each way, and the longest time for which the
event loop stood still: no user of a load test could run then.

    python benchmarks/locust_sampling.py [seconds per row]
"""

from gevent import monkey

monkey.patch_all()

import contextlib  # noqa: E402  (gevent must come first)
import itertools  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
from harness import backend_of, postgresql, read_options  # noqa: E402

from poolkit.activity.server import APPLICATION_NAME, ActivityConnection, ActivitySampler  # noqa: E402
from poolkit.loadtest.recording import ActivityInThread  # noqa: E402

INTERVAL_S = 0.1
PROCESS = """
import sys, time
from poolkit.activity.server import ActivitySampler
with ActivitySampler(sys.argv[1], interval_s=0.1, sink=lambda s: print(s.time, flush=True)):
    time.sleep(600)
"""


@contextlib.contextmanager
def within(connection):
    """Sample in this process; yield the moments of the samples."""
    moments = []
    with ActivitySampler(
        connection, interval_s=INTERVAL_S, sink=lambda sample: moments.append(sample.time)
    ):
        yield moments


@contextlib.contextmanager
def process(url):
    """Sample in a process of its own; yield the moments of the samples."""
    moments = []
    child = subprocess.Popen([sys.executable, "-c", PROCESS, url], stdout=subprocess.PIPE)
    reader = gevent.spawn(
        lambda: [moments.append(float(line)) for line in iter(child.stdout.readline, b"")]
    )
    while len(moments) < 3:
        gevent.sleep(0.05)
    moments.clear()
    try:
        yield moments
    finally:
        child.kill()
        child.wait()
        reader.kill()
        child.stdout.close()


def keep_busy(share):
    """Use a share of a core in slices of a millisecond, as answers to requests would."""
    while True:
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
        gevent.sleep(0.001 * (1 - share) / share)


def watch_loop(longest):
    while True:
        before = time.perf_counter()
        gevent.sleep(0.01)
        longest[0] = max(longest[0], time.perf_counter() - before - 0.01)


def measure(postgres, sampling, share, seconds):
    """Return in ms: the longest stand-still, the delay of samples, both with a silent server."""
    longest = [0.0]
    greenlets = [gevent.spawn(keep_busy, share), gevent.spawn(watch_loop, longest)]
    with sampling as moments:
        gevent.sleep(0.5)
        longest[0] = 0.0
        gevent.sleep(seconds)
        busy = longest[0]
        # The highest delay of a sample, compared with a steady interval.
        steps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        late = max(steps, default=float("nan")) - INTERVAL_S
        pid = backend_of(postgres, APPLICATION_NAME).pid
        os.kill(pid, signal.SIGSTOP)
        longest[0] = 0.0
        # From outside: an event loop that stands still cannot wake another greenlet.
        waker = subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {pid}"])
        gevent.sleep(1.5)
        waker.wait()
        silent = longest[0]
    gevent.killall(greenlets)
    return busy * 1000, late * 1000, silent * 1000


def main():
    seconds = read_options(__doc__, positional=True, seconds=5.0).seconds
    print(
        f"{'way':<10} {'loop busy':>9}  {'longest stand-still':>19}  {'sample late':>11}  silent server"
    )
    with postgresql(durable=False) as postgres:
        url = postgres.monitor_url(driver="")
        for share in (0.3, 0.8):
            for name, sampling in (
                ("greenlet", within(ActivityConnection(url))),
                ("thread", within(ActivityInThread(url))),
                ("process", process(url)),
            ):
                busy, late, silent = measure(postgres, sampling, share, seconds)
                print(
                    f"{name:<10} {share:>9.0%}  {busy:>16.1f} ms  {late:>8.1f} ms  {silent:>10.0f} ms"
                )


if __name__ == "__main__":
    main()
