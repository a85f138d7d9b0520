"""Where Locust is kept from loading a machine that nobody agreed to: at the start, and each test's."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import gevent

from poolkit.errors import ConfigurationError
from poolkit.loadtest.host_safety import OPTION, check_host
from poolkit.loadtest.option_checks import (
    REFUSED,
    check_when_parsed,
    let_processes_come,
    refuse,
)

if TYPE_CHECKING:
    from argparse import Namespace

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

logger = logging.getLogger("poolkit.loadtest")


def add_host_option(parser: LocustArgumentParser) -> None:
    """Add `--yes-load-this-host`."""
    # What is in a group is not in the web UI's form: who opens the page is not always who may agree.
    group = parser.add_argument_group("Host (poolkit)")
    group.add_argument(
        OPTION, action="store_true", help="Load the --host though it is not this machine"
    )


def check_host_when_parsed(parser: LocustArgumentParser) -> None:
    """Have a wrong `--host` end Locust with status 2 and one line before anything starts."""

    def check(options: Namespace) -> None:
        # Not a worker's options: its --processes get these, and are workers without having said so.
        options.master_is_here = True
        if options.host:
            check_host(options.host, options.yes_load_this_host)

    check_when_parsed(parser, check)


class HostGuard:
    """Checks the host that a test is about to load, whoever named it: option, class or web page.

    Args:
        environment: Locust's.
        agreed: what the command line says; a web page cannot change it.

    """

    def __init__(self, environment: Environment, *, agreed: bool) -> None:
        self._environment, self._agreed = environment, agreed

    def check_each_test(self) -> None:
        """Refuse a host when a test starts, too: the web page can name another one."""
        self._environment.events.test_start.add_listener(self._on_start)  # type: ignore[no-untyped-call]

    def refusal(self, host: str | None = None) -> str:
        """Return why a host may not be loaded, empty if it may be; of none: the test's own."""
        named = host or self._environment.host
        hosts = [named] if named else [one.host for one in self._environment.user_classes]
        try:
            for url in dict.fromkeys(filter(None, hosts)):
                check_host(url, self._agreed)
        except ConfigurationError as error:
            return str(error)
        return ""

    def exit_if_refused(self) -> None:
        """End Locust with status 2 and one line if the host of a user class is refused."""
        why = self.refusal()
        if why:
            let_processes_come(self._environment)
            refuse(why)

    def exit_quietly_if_refused(self) -> None:
        """End a process of `--processes`, whose master says why.

        A status above 1 would make Locust say more.
        """
        if self.refusal():
            sys.exit(1)

    def _on_start(self, **_: Any) -> None:
        why = self.refusal()
        if why:
            self._stop(why)

    def _stop(self, why: str) -> None:
        logger.error(why)
        environment = self._environment
        environment.process_exit_code = REFUSED
        if environment.web_ui is None and environment.runner is not None:
            gevent.spawn(environment.runner.quit)
        # The one exception that gets out of a listener and is nobody's mistake: users would start.
        raise gevent.GreenletExit(why)
