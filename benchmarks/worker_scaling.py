"""The number of worker tasks over some hours of traffic, by a simulation of infra/worker.yaml.

`python benchmarks/worker_scaling.py [--environment prod] [--shape burst]`

Each shape of traffic is simulated with the template's own alarms and policies, and with those of
`worker_scaling_on_age.yaml`, which scale on the age of the oldest message. `autoscaling.py` has the
rules of AWS. Exit status 1 if the template's tasks do not come back to MinTasks. It takes a second
for each shape, and the same numbers come out on every machine.
"""

import argparse
import functools
import math
import random
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from autoscaling import Message, Simulation, read_scaling

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "infra" / "worker.yaml"
ON_AGE = Path(__file__).with_name("worker_scaling_on_age.yaml")
ENVIRONMENTS = ("dev", "staging", "prod", "high_traffic")
HOUR = 3600


@dataclass(frozen=True)
class Shape:
    """Traffic for some hours; `loaded` starts with all tasks, as after a burst."""

    what: str
    messages: list
    hours: float
    loaded: bool


def _every(seconds, hours, work, **more):
    return [Message(float(at), work, **more) for at in range(0, int(hours * HOUR), seconds)]


def _day(processes):
    """Return a day of messages of 3 s that at noon keep nine tenths of the processes busy."""
    chosen = random.Random(6)
    messages = []
    for second in range(24 * HOUR):
        share = max(0.0, math.sin((second / HOUR - 6) / 12 * math.pi)) ** 2
        rate = 0.9 * processes * share / 3 + 0.02
        whole, rest = divmod(rate, 1)
        count = int(whole) + (chosen.random() < rest)
        messages += [Message(second + chosen.random(), 3.0) for _ in range(count)]
    return messages


@functools.cache
def shapes(processes):
    """Return the shapes of traffic by name, sized for the most processes of the service."""
    noon = 0.5 * HOUR
    return {
        "nothing": Shape("nothing, after a burst", [], 3, loaded=True),
        "small": Shape("a task of 8 s each 10 s", _every(10, 3, 8.0), 3, loaded=True),
        "long": Shape("a task of 100 s each minute", _every(60, 3, 100.0), 3, loaded=True),
        "failing": Shape(
            "one task that fails, tried again each minute",
            [Message(0.0, 1.0, retries=10_000)],
            3,
            loaded=True,
        ),
        "crashing": Shape(
            "a task each 15 minutes that kills its worker",
            _every(900, 3, 1.0, crashes=True),
            3,
            loaded=True,
        ),
        "periodic": Shape(
            "a burst each ten minutes, worked off in one",
            [Message(float(at), 30.0) for at in range(0, 3 * HOUR, 600) for _ in range(processes)],
            3,
            loaded=True,
        ),
        "outage": Shape(
            "a task each 2 s; for an hour all fail",
            [
                Message(float(at), 0.5, retries=8 if HOUR < at < 2 * HOUR else 0)
                for at in range(0, 4 * HOUR, 2)
            ],
            4,
            loaded=False,
        ),
        "burst": Shape(
            "100 tasks of 3 s for each process, at once",
            [Message(noon, 3.0)] * (100 * processes),
            3,
            loaded=False,
        ),
        "long burst": Shape(
            "5 tasks of 100 s for each process, at once",
            [Message(noon, 100.0)] * (5 * processes),
            3,
            loaded=False,
        ),
        "day": Shape("a day, with its peak at noon", _day(processes), 24, loaded=False),
    }


def scaling_of(environment, template=TEMPLATE, **given):
    """Return a template's scaling with the parameters of an environment."""
    file = ROOT / "infra" / "environments" / f"{environment}.toml"
    table = tomllib.loads(file.read_text())["worker"]
    names = ("Concurrency", "MinTasks", "MaxTasks")
    return read_scaling(template, {name: table[name] for name in names} | given)


def simulate(scaling, shape, **options):
    """Return the outcome of a shape of traffic."""
    tasks = scaling.maximum if shape.loaded else scaling.minimum
    return Simulation(scaling, shape.messages, tasks=tasks, **options).run(shape.hours)


def _row(name, shape, outcomes):
    cells = []
    for outcome in outcomes:
        tasks = outcome.tasks()
        waits = sorted(outcome.waits) or [0.0]
        late = waits[int(0.99 * (len(waits) - 1))]
        cells.append(f"{max(tasks):3} {tasks[-1]:3} {outcome.task_hours():7.1f} {late:6.0f}")
    return f"{name:11} {' | '.join(cells)} | {shape.what}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", default="prod", choices=ENVIRONMENTS)
    parser.add_argument("--shape", help="this one only, minute by minute")
    options = parser.parse_args()
    scaling = scaling_of(options.environment)
    on_age = scaling_of(options.environment, ON_AGE)
    print(
        f"{options.environment}: {scaling.minimum} to {scaling.maximum} tasks of "
        f"{scaling.concurrency} processes"
    )
    chosen = shapes(scaling.maximum * scaling.concurrency)
    if options.shape:
        outcome = simulate(scaling, chosen[options.shape])
        print("minute desired running visible in flight")
        for each in outcome.minutes:
            print(
                f"{each.minute:6} {each.desired:7} {each.running:7} {each.visible:7} "
                f"{each.in_flight:9}"
            )
        return 0
    print("tasks: most, at the end; task hours; p99 of the wait in s")
    print(f"{'':11} {'infra/worker.yaml':22} | {'on the age':22} |")
    failed = False
    for name, shape in chosen.items():
        outcomes = [simulate(each, shape) for each in (scaling, on_age)]
        print(_row(name, shape, outcomes), flush=True)
        failed |= outcomes[0].tasks()[-1] != scaling.minimum and name != "periodic"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
