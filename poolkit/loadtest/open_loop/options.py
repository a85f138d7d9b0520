"""The options of the arrival rate, and the loop that a process has by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.errors import ConfigurationError
from poolkit.loadtest.open_loop.arrivals import ArrivalRate
from poolkit.loadtest.open_loop.distributed import MasterLoop, WorkerLoop
from poolkit.loadtest.open_loop.loop import MAX_USERS, ClosedLoop, OpenLoop
from poolkit.loadtest.preflight import check_when_parsed, refuse_in_process

if TYPE_CHECKING:
    from argparse import Namespace

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment
    from locust.runners import MasterRunner, WorkerRunner

KIND = "constant"
_SPAWN_RATE = 100.0
"""The highest that Locust accepts without a warning."""


def add_open_loop_options(parser: LocustArgumentParser) -> None:
    """Add `--arrival-rate`, `--arrivals` and `--max-users`."""
    group = parser.add_argument_group("Open loop (poolkit)")
    group.add_argument(
        "--arrival-rate",
        metavar="<number>",
        help="Tasks per second, each begun at its scheduled moment, whatever the server does; "
        "latencies count from that moment. --users are ready at the start, more are made when all "
        "are busy",
    )
    group.add_argument(
        "--arrivals",
        metavar="<kind>",
        default=KIND,
        help="Distribution of the arrivals: constant (one every 1/rate seconds; the default) or "
        "poisson (random, independent of each other)",
    )
    group.add_argument(
        "--max-users",
        metavar="<int>",
        type=int,
        default=MAX_USERS,
        help=f"Highest number of users at once with --arrival-rate, {MAX_USERS} by default",
    )
    check_when_parsed(parser, _check)


def _check(options: Namespace) -> None:
    if options.arrival_rate is None:
        # It would have no effect: the run would be a closed loop, which is not what was meant.
        given = {
            "--arrivals": options.arrivals != KIND,
            "--max-users": options.max_users != MAX_USERS,
        }
        for option in (name for name, is_given in given.items() if is_given):
            raise ConfigurationError(
                f"{option} is for an open loop; add --arrival-rate, or leave it out"
            )
        return
    ArrivalRate.parse(options.arrival_rate, options.arrivals)
    if options.max_users < 1:
        raise ConfigurationError(f"--max-users is {options.max_users}; wanted 1 or more")
    if (options.num_users or 0) > options.max_users:
        raise ConfigurationError(
            f"--users is {options.num_users}, more than --max-users {options.max_users}"
        )
    if options.spawn_rate is None:
        # The users are to be ready when the arrivals begin.
        options.spawn_rate = min(_SPAWN_RATE, max(1.0, float(options.num_users or 1)))


def own_loop(environment: Environment) -> OpenLoop | ClosedLoop:
    """Return the loop of a run in one process."""
    rate = _rate(environment)
    if rate is None:
        return ClosedLoop(environment)
    return OpenLoop(environment, rate, max_users=_max_users(environment))


def master_loop(environment: Environment, runner: MasterRunner) -> MasterLoop | None:
    """Return the open loop of a master; None without an arrival rate."""
    rate = _rate(environment)
    if rate is None:
        return None
    return MasterLoop(environment, runner, rate, max_users=_max_users(environment))


def worker_loop(environment: Environment, runner: WorkerRunner) -> WorkerLoop:
    """Return the loop of a worker, which gets its options from its master when a test starts."""
    _rate(environment)
    return WorkerLoop(environment, runner)


def _rate(environment: Environment) -> ArrivalRate | None:
    """Return the arrival rate of the options; end Locust if there is a shape as well."""
    options = environment.parsed_options
    if options is None or options.arrival_rate is None:
        return None
    shape = environment.shape_class
    if shape is not None:
        refuse_in_process(
            environment,
            f"--arrival-rate and the shape {type(shape).__name__} cannot be used together: a shape "
            "sets the number of users that wait for their answers, an arrival rate waits for none",
        )
    return ArrivalRate.parse(options.arrival_rate, options.arrivals)


def _max_users(environment: Environment) -> int:
    options = environment.parsed_options
    return MAX_USERS if options is None else int(options.max_users)
