"""What Locust's command line says about the arrival rate, and the open loop that it asks for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from locust.runners import MasterRunner, WorkerRunner

from poolkit.errors import ConfigurationError
from poolkit.loadtest.open_loop.arrivals import ArrivalRate
from poolkit.loadtest.open_loop.closed_loop import ClosedLoop
from poolkit.loadtest.open_loop.distributed import MasterLoop, WorkerLoop
from poolkit.loadtest.open_loop.loop import MAX_USERS, OpenLoop
from poolkit.loadtest.option_checks import check_when_parsed, let_processes_come, refuse

if TYPE_CHECKING:
    from argparse import Namespace

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

KIND = "constant"
_SPAWN_RATE = 100.0
"""The highest that Locust takes without a warning."""


def add_open_loop_options(parser: LocustArgumentParser) -> None:
    """Add `--arrival-rate`, `--arrivals` and `--max-users`."""
    group = parser.add_argument_group("Open loop (poolkit)")
    group.add_argument(
        "--arrival-rate",
        metavar="<number>",
        help="Begin so many tasks a second, each when it is due, whatever the server does; latencies "
        "count from then. --users are ready at the start, more are made when all are busy",
    )
    group.add_argument(
        "--arrivals",
        metavar="<kind>",
        default=KIND,
        help="constant (one every 1/rate seconds; the default) or poisson (at random, independent "
        "of each other)",
    )
    group.add_argument(
        "--max-users",
        metavar="<int>",
        type=int,
        default=MAX_USERS,
        help=f"With --arrival-rate: never more users than this at once, {MAX_USERS} by default",
    )

    check_when_parsed(parser, _check)


def own_loop(environment: Environment) -> OpenLoop | ClosedLoop:
    """Return the loop of the one process of a run; see `master_loop`."""
    rate = _rate(environment)
    if rate is None:
        return ClosedLoop(environment)
    return OpenLoop(environment, rate, max_users=_max_users(environment))


def master_loop(environment: Environment, runner: MasterRunner) -> MasterLoop | None:
    """Return the open loop that the options ask for; None when they ask for none.

    Together with a shape an arrival rate ends Locust with status 2 and one line.
    """
    rate = _rate(environment)
    if rate is None:
        return None
    return MasterLoop(environment, runner, rate, max_users=_max_users(environment))


def worker_loop(environment: Environment, runner: WorkerRunner) -> WorkerLoop:
    """Return the loop of a worker, which has its options from its master when a test starts."""
    _rate(environment)
    return WorkerLoop(environment, runner)


def _rate(environment: Environment) -> ArrivalRate | None:
    options = environment.parsed_options
    if options is None or options.arrival_rate is None:
        return None
    _refuse_shape(environment)
    return ArrivalRate.parse(options.arrival_rate, options.arrivals)


def _max_users(environment: Environment) -> int:
    options = environment.parsed_options
    return MAX_USERS if options is None else int(options.max_users)


def _refuse_shape(environment: Environment) -> None:
    shape = environment.shape_class
    if shape is None:
        return
    if isinstance(environment.runner, WorkerRunner):
        sys.exit(1)  # a process of --processes, whose master says why
    let_processes_come(environment)
    refuse(
        f"--arrival-rate and the shape {type(shape).__name__} cannot be used together: a shape says "
        f"how many users wait for their answers, an arrival rate waits for none"
    )


def _check(options: Namespace) -> None:
    if options.arrival_rate is None:
        _refuse_without_rate(options)
        return
    ArrivalRate.parse(options.arrival_rate, options.arrivals)
    if options.max_users < 1:
        raise ConfigurationError(f"--max-users is {options.max_users}; wanted 1 or more")
    if (options.num_users or 0) > options.max_users:
        raise ConfigurationError(
            f"--users is {options.num_users}, more than --max-users {options.max_users}"
        )
    if options.spawn_rate is None:
        # They are to be ready when the arrivals begin.
        options.spawn_rate = min(_SPAWN_RATE, max(1.0, float(options.num_users or 1)))


def _refuse_without_rate(options: Namespace) -> None:
    """Refuse what would be passed over: the run would be a closed loop, and nobody meant that."""
    given = {"--arrivals": options.arrivals != KIND, "--max-users": options.max_users != MAX_USERS}
    for option in (name for name, is_given in given.items() if is_given):
        raise ConfigurationError(
            f"{option} is for an open loop; say --arrival-rate too, or leave it out"
        )
