"""Refusing options in one line, before Locust starts anything.

Locust has no event between reading its options and starting the processes of `--processes`,
which would wait for minutes for a master that has ended meanwhile.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from locust.argument_parser import LocustArgumentParser

REFUSED = 2
"""The exit status, as of argparse."""


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


def refuse(why: object) -> None:
    """Say why in one line, and end Locust with status 2."""
    sys.stderr.write(f"{why}\n")
    # Locust takes any other exception in a listener for a mistake in it, and prints where.
    sys.exit(REFUSED)
