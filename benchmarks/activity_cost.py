"""What watching costs: processor time of the sampler and of its backend, at 10 Hz.

With 10, 50 and 90 open connections, it samples for some seconds each. It reads the processor time
of the sampling thread and of the one backend that answers it.

    python benchmarks/activity_cost.py [seconds per row]
"""

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import psutil
import psycopg2

from poolkit.activity.server import APPLICATION_NAME, ActivitySampler
from poolkit.local.postgres import EmbeddedPostgres

INTERVAL_S = 0.1
CACHE = Path(__file__).parents[1] / ".poolkit" / "cache"


def backend_of(postgres, name):
    """Find the process of the one backend with that name."""
    with contextlib.closing(psycopg2.connect(postgres.admin_url(driver=""))) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", (name,))
        ((pid,),) = cursor.fetchall()
    return psutil.Process(pid)


def cpu_s(process):
    times = process.cpu_times()
    return times.user + times.system


def measure(postgres, connections, seconds):
    """Return the shares of a core that the backend and the sampling thread use."""
    with contextlib.ExitStack() as held:
        for number in range(connections):
            name = f"web:{number}"
            connection = psycopg2.connect(postgres.url(driver=""), application_name=name)
            held.enter_context(contextlib.closing(connection))
        with ActivitySampler(postgres.monitor_url(), interval_s=INTERVAL_S) as sampler:
            backend = backend_of(postgres, APPLICATION_NAME)
            server, client, began = cpu_s(backend), sampler.cpu_s, time.monotonic()
            time.sleep(seconds)
            took = time.monotonic() - began
            return (cpu_s(backend) - server) / took, (sampler.cpu_s - client) / took


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    print(f"sampling every {INTERVAL_S:g} s for {seconds:g} s a row; shares of one core")
    print(f"{'connections':>11}  {'server':>7}  {'sampler':>7}")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        EmbeddedPostgres(Path(folder), durable=False, cache_dir=CACHE) as postgres,
    ):
        for connections in (10, 50, 90):
            server, client = measure(postgres, connections, seconds)
            print(f"{connections:>11}  {server:>7.2%}  {client:>7.2%}")


if __name__ == "__main__":
    main()
