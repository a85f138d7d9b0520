"""What watching costs: processor time of the sampler and of its backend, at 10 Hz.

With 10, 50 and 90 open connections, it samples for some seconds each. It reads the processor time
of the sampling thread and of the one backend that answers it.

    python benchmarks/activity_cost.py [seconds per row]
"""

import contextlib
import time

import psycopg2
from harness import backend_of, cpu_s, postgresql, read_options

from poolkit.activity.server import APPLICATION_NAME, ActivitySampler

INTERVAL_S = 0.1


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
    seconds = read_options(__doc__, positional=True, seconds=10.0).seconds
    print(f"sampling every {INTERVAL_S:g} s for {seconds:g} s a row; shares of one core")
    print(f"{'connections':>11}  {'server':>7}  {'sampler':>7}")
    with postgresql(durable=False) as postgres:
        for connections in (10, 50, 90):
            server, client = measure(postgres, connections, seconds)
            print(f"{connections:>11}  {server:>7.2%}  {client:>7.2%}")


if __name__ == "__main__":
    main()
