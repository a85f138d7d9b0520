"""The load generator's cost of a request: an open loop, plain Locust, and wrk for scale.

    python benchmarks/load_generator.py [rounds] [seconds per round and arm]

The figure is requests per second of the load generator's processor time; the arms take turns. The
goal is that both loops have 0.95 of the figure of plain `FastHttpUser` at fixed rates. Two loads
are compared: a core that is used up (20 users without think time), and fixed rates, where each
request wakes the process. At a fixed rate the plain users send at even intervals, so both arms send
at the same moments and neither saves wake-ups. Users of `constant_throughput` would begin in step
and stay so, with 20 requests to a wake-up. Both loops record latencies, as every run with the
plugin does; plain users have nothing of poolkit. The server has a process of its own and does
little more than find the end of a request.
`benchmarks/activity_cost.py` shows what watching the database costs beside it.
"""

from gevent import monkey

monkey.patch_all()

import logging  # noqa: E402  (gevent must come first)
import re  # noqa: E402
import resource  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from functools import partial  # noqa: E402
from itertools import count  # noqa: E402

import gevent  # noqa: E402
from harness import answering_server, compare, machine, read_options  # noqa: E402
from locust import FastHttpUser, task  # noqa: E402
from locust.env import Environment  # noqa: E402

from poolkit.loadtest.latency.collection import OwnLatencies  # noqa: E402
from poolkit.loadtest.open_loop.arrivals import LEAD_S, ArrivalRate  # noqa: E402
from poolkit.loadtest.open_loop.loop import ClosedLoop, OpenLoop  # noqa: E402

GOAL = 0.95
PLAIN, CLOSED, OPEN = "plain FastHttpUser", "closed loop", "open loop"
MORE_THAN_IT_CAN = 50_000.0
RATES_PER_S = (200, 1000)
USERS = 20
WARM_UP_S = 0.5


def pace(user_class, period_s):
    """Make each user begin a task once a period, one after the other at even intervals."""
    numbers = count()

    def wait(user):
        user.due += period_s
        return max(0.0, user.due - time.perf_counter())

    def on_start(user):
        # One clock for all users: they are made one after the other, and would differ by that time.
        begin = time.perf_counter() // period_s * period_s
        user.due = begin + (1 + next(numbers) / USERS) * period_s
        gevent.sleep(user.due - time.perf_counter())

    user_class.wait_time, user_class.on_start = wait, on_start


def locust(host, seconds, *, arrivals_per_s=None, paced_per_s=None, records=True):
    """Run users for some seconds; return requests per second of processor time."""

    class Visitor(FastHttpUser):
        # A new class each time, since an open loop changes the class that it is given.
        @task
        def visit(self):
            self.client.get("/")

    Visitor.host = host
    if paced_per_s is not None:
        pace(Visitor, USERS / paced_per_s)
    environment = Environment(user_classes=[Visitor])
    runner = environment.create_local_runner()
    if arrivals_per_s is not None:
        loop = OpenLoop(environment, ArrivalRate.constant(arrivals_per_s), max_users=USERS)
        OwnLatencies(environment, loop.take_cut_off)
    elif records:
        OwnLatencies(environment, ClosedLoop(environment).take_cut_off)
    runner.start(USERS, spawn_rate=USERS)
    gevent.sleep(LEAD_S + WARM_UP_S)
    total = runner.stats.total
    requests, cpu_s = total.num_requests, time.process_time()
    gevent.sleep(seconds)
    requests, cpu_s = total.num_requests - requests, time.process_time() - cpu_s
    runner.quit()
    assert not total.num_failures
    return requests / cpu_s


def wrk(host, seconds):
    """Run wrk in one thread, over as many connections."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["wrk", "-t1", f"-c{USERS}", f"-d{max(1, round(seconds))}s", host]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return int(re.search(r"(\d+) requests in", output)[1]) / cpu_s


def main():
    # The rate is higher than possible on purpose.
    logging.getLogger("poolkit.loadtest").setLevel(logging.ERROR)
    options = read_options(__doc__, positional=True, rounds=7, seconds=2.0)
    with answering_server() as host:
        run = partial(locust, host, options.seconds)
        # The arms that are compared with each other, by their load.
        loads = {
            "with a core used up": {
                PLAIN: partial(run, records=False),
                CLOSED: run,
                OPEN: partial(run, arrivals_per_s=MORE_THAN_IT_CAN),
            }
        }
        if shutil.which("wrk"):
            loads["with a core used up"]["wrk"] = partial(wrk, host, options.seconds)
        for per_s in RATES_PER_S:
            loads[f"at {per_s:,}/s"] = {
                PLAIN: partial(run, paced_per_s=per_s, records=False),
                CLOSED: partial(run, paced_per_s=per_s),
                OPEN: partial(run, arrivals_per_s=per_s),
            }
        found = {load: compare(arms, rounds=options.rounds) for load, arms in loads.items()}
    print(machine("locust", "gevent", "geventhttpclient"))
    print("requests per second of processor time of the load generator")
    for load, comparison in found.items():
        print(f"{load}\n{comparison.table(baseline=PLAIN, unit='1/s', scale=1)}")
    ratios = {
        f"{loop} {load}": comparison.ratio(loop, to=PLAIN)
        for load, comparison in found.items()
        for loop in (CLOSED, OPEN)
        if load.startswith("at")
    }
    measured = ", ".join(f"{ratio:.3f} {load}" for load, ratio in ratios.items())
    print(f"goal {GOAL:g}, measured {measured}")
    return 0 if min(ratios.values()) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
