"""Everything that is refused before the load, in one line and with exit status 2.

Options that contradict each other, files that cannot be written, missing variables, and a host that
is not this machine. The host is checked again at the start of each test: the web page can name
another one.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from locust.runners import MasterRunner, WorkerRunner

from poolkit.errors import ConfigurationError
from poolkit.loadtest.host_safety import OPTION, check_host
from poolkit.loadtest.locust_internals import (
    after_parsing,
    refuse_test_start,
    wait_for_processes,
)
from poolkit.output_file import check_output_file

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

REFUSED = 2
"""The exit status, as of argparse."""
CSV_ENDS = (
    *("_stats.csv", "_stats_history.csv", "_failures.csv", "_exceptions.csv"),
    *("_connections.csv", "_latency.csv", "_latency.hlog"),
)
"""What Locust and poolkit append to the prefix of `--csv`."""

logger = logging.getLogger("poolkit.loadtest")


def check_when_parsed(parser: LocustArgumentParser, check: Callable[[Namespace], object]) -> None:
    """Check the options as soon as they are parsed, unless they are a worker's.

    Args:
        parser: Locust's.
        check: raises ConfigurationError; its line is printed, and Locust ends with status 2.

    """

    def check_or_refuse(options: Namespace) -> None:
        try:
            if not options.worker:
                check(options)
        except ConfigurationError as error:
            refuse(error)

    after_parsing(parser, check_or_refuse)


def refuse(reason: object) -> None:
    """Print the reason in one line, and end Locust with status 2."""
    sys.stderr.write(f"{reason}\n")
    # Locust logs any other exception of a listener with its traceback, and goes on.
    sys.exit(REFUSED)


def refuse_in_process(environment: Environment, reason: object) -> None:
    """Refuse once for all processes of `--processes`: their master prints the reason.

    A worker's process ends quietly; a status above 1 would make Locust print more.
    """
    options = environment.parsed_options
    if isinstance(environment.runner, WorkerRunner) and getattr(options, "master_is_here", False):
        sys.exit(1)
    wait_for_processes(environment)
    refuse(reason)


def check_outputs(options: Namespace) -> None:
    """Check every file of results that Locust's options name.

    Raises:
        ConfigurationError: one cannot be written; one line.
    """
    json_file = f"{options.json_file}.json" if options.json_file else ""
    for option, name in (
        ("--html", options.html_file),
        ("--json-file", json_file),
        ("--junit", options.junit),
        *(("--csv", f"{options.csv_prefix}{end}") for end in CSV_ENDS if options.csv_prefix),
    ):
        if name:
            check_output_file(option, Path(name))


def check_variables(environment: Environment, options: Namespace) -> None:
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


# -- the host -------------------------------------------------------------------------------


def add_host_option(parser: LocustArgumentParser, *, check: bool) -> None:
    """Add `--yes-load-this-host`, and check `--host` when the options are parsed."""
    # An option in a group is not in the web UI's form: a visitor of the page may not agree.
    group = parser.add_argument_group("Host (poolkit)")
    group.add_argument(OPTION, action="store_true", help="Load a --host that is not this machine")

    def check_option(options: Namespace) -> None:
        # A worker on another machine does not get here, but the processes of --processes do.
        options.master_is_here = True
        if options.host:
            check_host(options.host, options.yes_load_this_host)

    if check:
        check_when_parsed(parser, check_option)


class HostGuard:
    """Checks the host that a test is about to load, whether an option, a class or the page named it.

    Args:
        environment: Locust's.
        agreed: whether `--yes-load-this-host` was given; the web page cannot change it.

    """

    def __init__(self, environment: Environment, *, agreed: bool) -> None:
        self._environment, self._agreed = environment, agreed

    def refusal(self, host: str | None = None) -> str:
        """Return why a host must not be loaded; empty if it may be.

        Args:
            host: the host; without one, that of the test or of its user classes.
        """
        named = host or self._environment.host
        hosts = [named] if named else [one.host for one in self._environment.user_classes]
        try:
            for url in dict.fromkeys(filter(None, hosts)):
                check_host(url, self._agreed)
        except ConfigurationError as error:
            return str(error)
        return ""

    def check_now(self) -> None:
        """End Locust with status 2 and one line if the host is refused."""
        reason = self.refusal()
        if reason:
            refuse_in_process(self._environment, reason)

    def check_each_test(self) -> None:
        """Refuse a host at the start of each test, too: the web page can name another one."""
        environment = self._environment

        def on_start(**_: Any) -> None:
            reason = self.refusal()
            if not reason:
                return
            logger.error(reason)
            environment.process_exit_code = REFUSED
            if environment.web_ui is None and environment.runner is not None:
                gevent.spawn(environment.runner.quit)
            refuse_test_start(reason)

        environment.events.test_start.add_listener(on_start)  # type: ignore[no-untyped-call]
