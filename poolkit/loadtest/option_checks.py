"""Refusing options in one line, before Locust starts anything.

Locust has no event between reading its options and starting the processes of `--processes`,
which would wait for minutes for a master that has ended meanwhile.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import gevent
from locust.runners import MasterRunner

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

REFUSED = 2
"""The exit status, as of argparse."""
_PROCESSES_WITHIN_S = 20.0


def check_when_parsed(parser: LocustArgumentParser, check: Callable[[Namespace], None]) -> None:
    """Have the options checked as soon as they are read, unless they are a worker's.

    Args:
        parser: Locust's.
        check: raises ConfigurationError; its one line is printed, and Locust ends with status 2.

    """
    parse = parser.parse_args

    def parse_args(*args: Any, **kwargs: Any) -> Namespace:
        options: Namespace = parse(*args, **kwargs)
        try:
            if not options.worker:
                check(options)
        except ConfigurationError as error:
            refuse(error)
        return options

    parser.parse_args = parse_args


def let_processes_come(environment: Environment) -> None:
    """Wait for the processes of `--processes`: those that come later would wait for minutes."""
    runner, options = environment.runner, environment.parsed_options
    if isinstance(runner, MasterRunner) and options is not None and options.processes:
        with gevent.Timeout(_PROCESSES_WITHIN_S, False):
            while len(runner.clients) < options.processes:
                gevent.sleep(0.02)


def refuse(why: object) -> None:
    """Say why in one line, and end Locust with status 2."""
    sys.stderr.write(f"{why}\n")
    # Locust takes any other exception in a listener for a mistake in it, and prints where.
    sys.exit(REFUSED)
