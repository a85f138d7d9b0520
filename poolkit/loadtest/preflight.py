"""The options, and everything that is refused before the load, in one line and with exit status 2.

Options that contradict each other, files that cannot be written, missing variables, and a host that
is not this machine. The host is checked again at the start of each test: the web page can name
another one.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from locust.runners import MasterRunner, WorkerRunner

from poolkit.errors import ConfigurationError
from poolkit.loadtest.figures import ONLY_IN_COMPARE
from poolkit.loadtest.host_safety import OPTION, check_host
from poolkit.loadtest.locust_internals import (
    around_parsing,
    option_names,
    refuse_test_start,
    wait_for_processes,
)
from poolkit.loadtest.open_loop.arrivals import ArrivalRate
from poolkit.loadtest.open_loop.limit_search import bounds
from poolkit.loadtest.open_loop.loop import MAX_USERS
from poolkit.loadtest.open_loop.user_class_queue import ANSWER_WITHIN_S
from poolkit.loadtest.open_loop.users import RateUsers
from poolkit.loadtest.open_loop.users_ready import ON_START_WITHIN_S
from poolkit.loadtest.request_rows import OPTION as REQUESTS_OPTION
from poolkit.loadtest.request_rows import check_format
from poolkit.loadtest.shapes import MOST_SPAWNED_PER_S, ArrivalRateShape
from poolkit.loadtest.telemetry.prometheus import OPTION as METRICS_OPTION
from poolkit.loadtest.telemetry.prometheus import address
from poolkit.output_file import check_output_file
from poolkit.project import Project
from poolkit.thresholds import Threshold, thresholds_of
from poolkit.thresholds.parse import duration_s

if TYPE_CHECKING:
    import argparse
    from argparse import Namespace
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

    _Add: TypeAlias = Callable[..., argparse.Action]
    """Adds an option to a group, with both of its names: see `_add_options`."""

REFUSED = 2
"""The exit status, as of argparse."""
MEASURED_BY_COMPARE = "POOLKIT_LOAD_REQUESTS"
"""Set by `poolkit compare`, which watches the server and checks the host itself."""
CSV_ENDS = (
    *("_stats.csv", "_stats_history.csv", "_failures.csv", "_exceptions.csv"),
    *("_connections.csv", "_latency.csv", "_latency.hlog"),
)
"""The endings that Locust and poolkit append to the prefix of `--csv`."""
PREFIX = "poolkit-"
"""Of every option; each has a name without it as well, where that is free."""
HELP = "--poolkit-help"
KIND = "constant"
STEP = "20s"

logger = logging.getLogger("poolkit.loadtest")


# -- the options ----------------------------------------------------------------------------


def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    """Add poolkit's options to Locust's, and check them as soon as they are parsed.

    They are added just before the parsing: by then each locustfile has added its own, whichever
    listener came first.
    """
    around_parsing(parser, partial(_add_options, parser), _check_options)


def _add_options(parser: LocustArgumentParser) -> None:
    taken = option_names(parser)
    if HELP in taken:
        return  # parsed again

    def add(
        group: argparse._ArgumentGroup, name: str, text: str, *, env_var: str = "", **settings: Any
    ) -> argparse.Action:
        # The short name remains that of Locust or of the locustfile if either has it.
        names = [f"--{PREFIX}{name}", f"--{name}"]
        variable = f"LOCUST_{PREFIX}{name}".upper().replace("-", "_")
        return group.add_argument(
            *(one for one in names if one not in taken),
            env_var=env_var or variable,
            help=f"{text} [{variable}]",
            **settings,
        )

    # Locust prints --help before it has read the locustfile, so without any option of that.
    parser.add_argument_group("Help (poolkit)").add_argument(
        HELP, action="help", help="Print all options, with those of poolkit and the locustfile"
    )
    _add_connection_options(parser, add)
    _add_result_options(parser, add)
    group = parser.add_argument_group("Open loop (poolkit)")
    _add_rate_options(group, add)
    _add_arrival_options(group, add)


def _add_connection_options(parser: LocustArgumentParser, add: _Add) -> None:
    """Add what the load test connects to: the database, and a host elsewhere."""
    variable = "LOCUST_POOLKIT_DATABASE_URL"
    group = parser.add_argument_group("Connections (poolkit)")
    add(
        group,
        "database-url",
        "The PostgreSQL database whose connections to watch, with a role that has pg_monitor: "
        "postgresql://user:password@host:port/database. Default: that of DATABASE_URL",
        metavar="<url>",
        env_var=variable if variable in os.environ else "DATABASE_URL",
    )
    # An option in a group is not in the web UI's form: a visitor of the page may not agree.
    group = parser.add_argument_group("Host (poolkit)")
    add(
        group,
        OPTION.removeprefix("--"),
        "Load a --host that is not this machine",
        action="store_true",
    )


def _add_result_options(parser: LocustArgumentParser, add: _Add) -> None:
    """Add what a run is checked against, and where its figures go."""
    group = parser.add_argument_group("Thresholds (poolkit)")
    add(
        group,
        "threshold",
        "A condition for exit status 0, such as 'http.p95 < 200' or 'http.errors < 1%% "
        "abort after 10s'; may be repeated. Replaces one of pyproject.toml for the same metric",
        metavar="<text>",
        action="append",
        default=[],
    )
    add(
        group,
        "target",
        "The target under load: only its thresholds and its connections count",
        metavar="<name>",
        default="",
    )
    add(
        group,
        "junit",
        "File for the verdicts on the thresholds, as JUnit XML",
        metavar="<file>",
        default="",
    )
    group = parser.add_argument_group("Requests (poolkit)")
    add(
        group,
        REQUESTS_OPTION.removeprefix("--"),
        "File for every request, in the format of its suffix: .csv or .parquet. Each worker writes "
        "its own, with its number before the suffix",
        metavar="<file>",
        default="",
    )
    group = parser.add_argument_group("Monitoring (poolkit)")
    add(
        group,
        METRICS_OPTION.removeprefix("--"),
        "Serve the figures of the run to Prometheus, on a port of this machine such as 9646, or at "
        "an address such as 0.0.0.0:9646; the web UI has them at /metrics too",
        metavar="<port>",
        default="",
    )


def _add_rate_options(group: argparse._ArgumentGroup, add: _Add) -> None:
    """Add the arrival rate, given or searched for."""
    rate = add(
        group,
        "arrival-rate",
        "Tasks per second, each begun at its scheduled moment, however slow the server is. "
        "Latencies count from that moment. 50 is constant, 10..200/5m a ramp, and "
        "50/1m,50..200/5m,200/2m are stages. Without --run-time, the run ends with the last stage. "
        "Reader=50,Writer=5 is a rate for each user class. "
        "--users are ready at the start, and more are created when all are busy",
        metavar="<rate>",
    )
    # Locust's form of the page has what its own add_argument marks so; a group has another one.
    rate.include_in_web_ui = True  # type: ignore[attr-defined]
    add(
        group,
        "find-limit",
        "Find the highest arrival rate at which every threshold holds. The rate doubles until one "
        "fails, then approaches the limit in steps. --arrival-rate is the first rate (10 by "
        "default), or the first and the highest, such as 50..2000",
        action="store_true",
    )
    add(
        group,
        "find-limit-step",
        "Measured time of each step of --find-limit, after a quarter of it to settle; "
        "20s by default",
        metavar="<time>",
        default=STEP,
    )


def _add_arrival_options(group: argparse._ArgumentGroup, add: _Add) -> None:
    """Add how arrivals are distributed, and how many users and seconds they may take."""
    add(
        group,
        "arrivals",
        "Distribution of the arrivals: constant (evenly spaced; the default) or "
        "poisson (random, independent of each other)",
        metavar="<kind>",
        default=KIND,
    )
    add(
        group,
        "max-users",
        f"Highest number of users at once with --arrival-rate, {MAX_USERS} by default",
        metavar="<int>",
        type=int,
        default=MAX_USERS,
    )
    add(
        group,
        "on-start-within",
        "Longest time in seconds of a user's on_start with --arrival-rate; arrivals begin when the "
        f"--users are ready. {ON_START_WITHIN_S:g} by default",
        metavar="<seconds>",
        type=float,
        default=ON_START_WITHIN_S,
    )
    add(
        group,
        "answer-within",
        "Seconds from its scheduled moment within which an arrival is answered in time; a later "
        f"answer counts as late. {ANSWER_WITHIN_S:g} by default",
        metavar="<seconds>",
        type=float,
        default=ANSWER_WITHIN_S,
    )


def _check_options(options: Namespace) -> None:
    """Check all options but a worker's, which come from its master; a mistake ends Locust."""
    if options.worker:
        return
    try:
        if MEASURED_BY_COMPARE not in os.environ:
            # A worker on another machine does not get here, but the processes of --processes do.
            options.poolkit_master_is_here = True
            if options.host:
                check_host(options.host, options.poolkit_yes_load_this_host)
        selectors = [each.selector for each in run_thresholds(options) if each.selector]
        # A worker gets them with its master's options.
        options.poolkit_tags = sorted({one.value for one in selectors if one.key == "tag"})
        _check_find_limit(options)
        _check_open_loop(options)
        if options.poolkit_requests_file:
            check_format(options.poolkit_requests_file)
        if options.poolkit_metrics_port:
            address(options.poolkit_metrics_port)
        json_file = f"{options.json_file}.json" if options.json_file else ""
        for option, name in (
            ("--html", options.html_file),
            ("--json-file", json_file),
            ("--junit", options.poolkit_junit),
            (REQUESTS_OPTION, options.poolkit_requests_file),
            *(("--csv", f"{options.csv_prefix}{end}") for end in CSV_ENDS if options.csv_prefix),
        ):
            if name:
                check_output_file(option, Path(name))
    except ConfigurationError as error:
        _refuse(error)


def run_thresholds(options: Namespace) -> tuple[Threshold, ...]:
    """Return the thresholds of pyproject.toml and of the options that apply to a run.

    Raises:
        ConfigurationError: one is invalid, or one of the options is for another target; one line.
    """
    thresholds = thresholds_of(Project.find().table, options.poolkit_threshold)
    for text in options.poolkit_threshold:
        names = Threshold.parse(text).targets
        if names and options.poolkit_target not in names:
            meant = (
                f"not {options.poolkit_target}"
                if options.poolkit_target
                else "and the run has none"
            )
            raise ConfigurationError(
                f"threshold {text!r} is for the target {' or '.join(names)}, {meant}; "
                f"add --target {names[0]}, or leave the name out"
            )
    return tuple(each for each in thresholds if each.applies_to(options.poolkit_target))


def _check_find_limit(options: Namespace) -> None:
    """Check the options of a search, and set its first and highest rate."""
    options.poolkit_find_limit_step_s = duration_s(options.poolkit_find_limit_step)
    if not options.poolkit_find_limit_step_s:
        raise ConfigurationError(
            f"--find-limit-step is {options.poolkit_find_limit_step!r}; wanted a time such as 20s"
        )
    if not options.poolkit_find_limit:
        if options.poolkit_find_limit_step != STEP:
            raise ConfigurationError("--find-limit-step is for --find-limit; add that too")
        return
    first, options.poolkit_highest_per_s = bounds(options.poolkit_arrival_rate)
    options.poolkit_arrival_rate = f"{first:g}"
    limits = limiting(run_thresholds(options))
    for one in limits:
        # Requests without an answer count with their wait, which a step's length bounds.
        if one.measure.kind == "ms" and one.limit * 2 > options.poolkit_find_limit_step_s * 1000:
            raise ConfigurationError(
                f"--find-limit-step {options.poolkit_find_limit_step} is too short for "
                f"{one.expression!r}: no wait is longer than the step; use one of at least "
                f"{math.ceil(one.limit / 500)}s"
            )
    if not limits:
        raise ConfigurationError(
            "--find-limit needs a threshold that decides whether a rate holds, such as "
            "--threshold 'http.p95 < 200'"
        )
    if options.poolkit_junit:
        raise ConfigurationError("--find-limit and --junit cannot be used together")


def limiting(thresholds: Sequence[Threshold]) -> list[Threshold]:
    """Return the thresholds that can decide about a step of `--find-limit`."""
    return [each for each in thresholds if each.metric not in ONLY_IN_COMPARE]


def _check_open_loop(options: Namespace) -> None:
    has_shape = bool(ArrivalRateShape.__subclasses__())  # the locustfile has been read
    if options.poolkit_arrival_rate is None and not has_shape:
        # It would have no effect: the run would be a closed loop, which the user did not mean.
        for option, is_set in (
            ("--arrivals", options.poolkit_arrivals != KIND),
            ("--max-users", options.poolkit_max_users != MAX_USERS),
            ("--on-start-within", options.poolkit_on_start_within != ON_START_WITHIN_S),
            ("--answer-within", options.poolkit_answer_within != ANSWER_WITHIN_S),
        ):
            if is_set:
                raise ConfigurationError(
                    f"{option} is for an open loop; add --arrival-rate, or leave it out"
                )
        return
    ArrivalRate.parse(options.poolkit_arrival_rate or "1", options.poolkit_arrivals)
    if options.poolkit_max_users < 1:
        raise ConfigurationError(f"--max-users is {options.poolkit_max_users}; wanted 1 or more")
    for option, seconds in (
        ("--on-start-within", options.poolkit_on_start_within),
        ("--answer-within", options.poolkit_answer_within),
    ):
        if not seconds > 0:
            raise ConfigurationError(f"{option} is {seconds:g}; wanted seconds, more than 0")
    if (options.num_users or 0) > options.poolkit_max_users:
        raise ConfigurationError(
            f"--users is {options.num_users}, more than --max-users {options.poolkit_max_users}"
        )
    if options.spawn_rate is None:
        # The users are to be ready when the arrivals begin.
        options.spawn_rate = min(MOST_SPAWNED_PER_S, max(1.0, float(options.num_users or 1)))


# -- refusals -------------------------------------------------------------------------------


def _refuse(reason: object) -> None:
    """Print the reason in one line, and end Locust with status 2."""
    sys.stderr.write(f"{reason}\n")
    # Locust logs any other exception of a listener with its traceback, and goes on.
    sys.exit(REFUSED)


def refuse_in_process(environment: Environment, reason: object) -> None:
    """Refuse once for all processes of `--processes`: their master prints the reason.

    A worker's process ends quietly; a status above 1 would make Locust print more.
    """
    options = environment.parsed_options
    if isinstance(environment.runner, WorkerRunner) and getattr(
        options, "poolkit_master_is_here", False
    ):
        sys.exit(1)
    wait_for_processes(environment)
    _refuse(reason)


def check_user_classes(environment: Environment, options: Namespace) -> None:
    """End Locust with status 2 if a user class of this process needs a variable that is not set.

    A user class lists them as `needs`: pairs of a variable and its purpose. Otherwise each of its
    users would fail by itself. A master has no users, and workers on other machines have variables
    of their own; `--processes` share those of their master.
    """
    if isinstance(environment.runner, MasterRunner) and not options.processes:
        return
    for user_class in environment.user_classes:
        for name, purpose in getattr(user_class, "needs", ()):
            if not os.environ.get(name):
                reason = f"{name} is not set; {user_class.__name__} needs it: {purpose}"
                refuse_in_process(environment, reason)


def check_arrivals(environment: Environment, options: Namespace) -> None:
    """End Locust with status 2 if an arrival rate does not go with the shape or the user classes."""
    shape = environment.shape_class
    if options.poolkit_arrival_rate is None:
        return
    if isinstance(shape, ArrivalRateShape):
        refuse_in_process(
            environment,
            f"--arrival-rate and the shape {type(shape).__name__} cannot be used together: the shape "
            "returns the arrival rate itself",
        )
    if shape is not None:
        refuse_in_process(
            environment,
            f"--arrival-rate and the shape {type(shape).__name__} cannot be used together: a shape "
            "sets the number of users that wait for their answers, an arrival rate waits for none",
        )
    if reason := arrival_refusal(environment):
        refuse_in_process(environment, reason)


def arrival_refusal(environment: Environment) -> str:
    """Return why the user classes cannot have the arrival rate; empty if they can, or without one."""
    options = environment.parsed_options
    # The form of the page makes it an empty text.
    if options is None or not options.poolkit_arrival_rate:
        return ""
    rate = ArrivalRate.parse(options.poolkit_arrival_rate, options.poolkit_arrivals)
    return class_refusal(environment, rate)


def class_refusal(environment: Environment, rate: ArrivalRate) -> str:
    """Return why the user classes cannot have an arrival rate; empty if they can."""
    options = environment.parsed_options
    has_tags = options is not None and bool(options.tags or options.exclude_tags)
    return RateUsers.among(environment.user_classes, has_tags=has_tags).refusal(rate)


def refuse_tests(environment: Environment, refusal: Callable[[], str]) -> None:
    """Refuse each test for which a function returns a reason at its start.

    By then the web page may have named another host, and tags have left out tasks.
    """

    def on_start(**_: Any) -> None:
        reason = refusal()
        if not reason:
            return
        logger.error(reason)
        environment.process_exit_code = REFUSED
        if environment.web_ui is None and environment.runner is not None:
            gevent.spawn(environment.runner.quit)
        refuse_test_start(reason)

    environment.events.test_start.add_listener(on_start)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class HostGuard:
    """Checks the host that a test is about to load, whether an option, a class or the page named it."""

    environment: Environment
    agreed: bool
    """Whether `--yes-load-this-host` was given; the web page cannot change it."""

    def refusal(self, host: str | None = None) -> str:
        """Return why a host must not be loaded; empty if it may be.

        Args:
            host: the host; without one, that of the test or of its user classes.
        """
        named = host or self.environment.host
        hosts = [named] if named else [one.host for one in self.environment.user_classes]
        try:
            for url in dict.fromkeys(filter(None, hosts)):
                check_host(url, self.agreed)
        except ConfigurationError as error:
            return str(error)
        return ""
