"""Where Locust is kept from loading a machine that nobody agreed to: at the start, and each test's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from locust.exception import StopTest

from poolkit.errors import ConfigurationError
from poolkit.loadtest.host_safety import OPTION, check_host

if TYPE_CHECKING:
    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

_REFUSED = 2


def add_host_option(parser: LocustArgumentParser) -> None:
    """Add `--yes-load-this-host`."""
    # What is in a group is not in the web UI's form: who opens the page is not always who may agree.
    group = parser.add_argument_group("Host (poolkit)")
    group.add_argument(
        OPTION, action="store_true", help="Load the --host though it is not this machine"
    )


class HostGuard:
    """Checks the host that a test is about to load, whoever named it: option, class or web page.

    Args:
        environment: Locust's.
        agreed: what the command line says; a web page cannot change it.

    """

    def __init__(self, environment: Environment, *, agreed: bool) -> None:
        self._environment, self._agreed = environment, agreed
        environment.events.test_start.add_listener(self._on_start)  # type: ignore[no-untyped-call]

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

    def exit_if_refused(self, *, quiet: bool) -> None:
        """End Locust with status 2 and one line; quietly where another process says it.

        A status above 1 of a quiet one would make Locust say a second line.
        """
        why = self.refusal()
        if why:
            sys.stderr.write("" if quiet else f"{why}\n")
            # Locust takes any other exception for a mistake in a listener, and prints where.
            sys.exit(1 if quiet else _REFUSED)

    def _on_start(self, **_: Any) -> None:
        why = self.refusal()
        if why:
            raise StopTest(why)
