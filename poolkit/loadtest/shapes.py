"""Load shapes that return an arrival rate instead of a number of users."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from locust import LoadTestShape

from poolkit.errors import ConfigurationError
from poolkit.loadtest.open_loop.arrivals import HIGHEST_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust import User

MOST_SPAWNED_PER_S = 100.0
"""The highest spawn rate that Locust accepts without a warning."""


class ArrivalRateShape(LoadTestShape):
    """A shape for an open loop: it returns how many tasks begin each second.

    Locust asks it once a second, for as long as the test runs:

        class Day(ArrivalRateShape):
            def arrival_rate(self):
                seconds = self.get_run_time()
                if seconds > 600:
                    return None
                return 100 + 50 * math.sin(seconds / 60)

    `--users` are ready at the start, and more are made when all are busy, up to `--max-users`. An
    ordinary `LoadTestShape` sets the number of users, and makes a closed loop.
    """

    abstract: ClassVar[bool] = True
    use_common_options: ClassVar[bool] = True
    change_rate: Callable[[float], None] | None = None
    """Set by poolkit: begins the arrivals of a rate."""

    @abstractmethod
    def arrival_rate(self) -> float | None:
        """Return the tasks per second from now on; None ends the test, 0 is a pause."""

    def tick(self) -> tuple[int, float] | tuple[int, float, list[type[User]] | None] | None:
        """Return the users that are ready at the start; Locust calls this once a second.

        Raises:
            ConfigurationError: the rate is no rate, or poolkit is not registered.
        """
        name = type(self).__name__
        if self.change_rate is None:
            raise ConfigurationError(
                f"the shape {name} needs poolkit; call poolkit.loadtest.register() in the locustfile"
            )
        per_s = self.arrival_rate()
        if per_s is None:
            return None
        if not 0 <= per_s <= HIGHEST_PER_S:
            raise ConfigurationError(
                f"{name}.arrival_rate() returned {per_s!r}; wanted tasks per second, from 0 to "
                f"{HIGHEST_PER_S:,.0f}, or None to end the test"
            )
        self.change_rate(per_s)
        assert self.runner is not None  # noqa: S101  (Locust sets it before the first call)
        options = self.runner.environment.parsed_options
        users = getattr(options, "num_users", None) or 1
        return users, getattr(options, "spawn_rate", None) or 1.0
