"""What the command line of `poolkit compare` says, checked."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolkit.compare.results.run_folder import Level
from poolkit.compare.results.wording import without_passwords
from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MAX_USERS = 2_000
"""Open loop: the most users, if nothing else is said."""
BUSY_S = 0.25
"""Open loop: users that stand ready are as many as are busy when a task takes so long
(Little's law: busy = rate x time)."""
LEAST_READY = 10
# Fewer users at the same load: half the cold starts to wait for.
QUICK: Mapping[str, Any] = {
    "duration_s": 6.0,
    "warm_up_s": 3.0,
    "users": (10,),
    "rate_per_user": 4.0,
}
ARRIVALS = ("constant", "poisson")
DEFAULT_RESERVE = 3
"""superuser_reserved_connections, unless set (PostgreSQL, 19.3.1); the embedded server sets none."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says. Times are in seconds, rates are in tasks per second."""

    targets: tuple[str, ...] = ()
    deployed: tuple[str, ...] = ()
    """Each `NAME[@LABEL]=URL`."""
    users: tuple[int, ...] = (20,)
    """Closed loop: a level each."""
    rate_per_user: float = 2.0
    rates: tuple[float, ...] = ()
    """Open loop, a level each; then `users` counts for nothing."""
    arrivals: str = "constant"
    max_users: int = MAX_USERS
    repeat: int = 1
    duration_s: float = 20.0
    warm_up_s: float = 4.0
    interval_s: float = 0.1
    environment: str = "prod"
    database_url: str | None = None
    max_connections: int = 100
    reserve: int = DEFAULT_RESERVE
    """Those of max_connections that the application's role cannot have."""
    thresholds: tuple[str, ...] = ()
    junit: Path | None = None
    github: bool = False
    agreed: bool = False
    """Hosts that are not this machine may be put under load."""
    out: Path | None = None
    command: str = "poolkit compare"

    def __post_init__(self) -> None:
        """Refuse what no run can be made of."""
        for users in self.users:
            _within("--users", users, 1, 10_000)
        for rate in self.rates:
            _within("--rates", rate, 0.01, 100_000)
        _within("--rate", self.rate_per_user, 0.01, 1_000)
        _within("--max-users", self.max_users, 1, 100_000)
        _within("--repeat", self.repeat, 1, 100)
        _within("--duration", self.duration_s, 1, 86_400)
        _within("--warm-up", self.warm_up_s, 1, 3_600)
        _within("--max-connections", self.max_connections, 10, 10_000)
        if self.arrivals not in ARRIVALS:
            raise ConfigurationError(
                f"--arrivals must be one of {', '.join(ARRIVALS)}, not {self.arrivals!r}"
            )
        _each_once("--rates" if self.rates else "--users", (level.name for level in self.levels))

    @property
    def usable_connections(self) -> int:
        """What max_connections leaves the application's role."""
        return self.max_connections - self.reserve

    @property
    def levels(self) -> tuple[Level, ...]:
        """The loads to measure at, from the lowest."""
        if self.rates:
            return tuple(self._open(rate) for rate in sorted(self.rates))
        return tuple(
            Level(users=users, rate_per_user=self.rate_per_user) for users in sorted(self.users)
        )

    @property
    def local_database_url(self) -> str | None:
        """The given database if targets that are started here use it, not if it is only watched."""
        return None if self.deployed else self.database_url

    def _open(self, rate: float) -> Level:
        ready = min(self.max_users, max(LEAST_READY, math.ceil(rate * BUSY_S)))
        return Level(
            users=ready, arrival_rate=rate, arrivals=self.arrivals, max_users=self.max_users
        )


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"{name} must be from {low:g} to {high:g}, not {value:g}")


def _each_once(option: str, names: Iterable[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigurationError(
                f"{option} has {name} twice; --repeat measures a level more than once"
            )


# -- from texts -----------------------------------------------------------------------------

_RENAMED = {
    "duration": "duration_s",
    "warm_up": "warm_up_s",
    "rate": "rate_per_user",
    "yes_load_this_host": "agreed",
    "target": "deployed",
    "threshold": "thresholds",
}
_OF_ONE_LOOP = {
    "users": "--users says how many wait for their answers",
    "rate": "--rate is that of a user who waits for its answers",
}
_OF_THE_OTHER = ("arrivals", "max_users")


def options_of(given: Mapping[str, Any], *, command: str, quick: bool = False) -> Options:
    """Return the options that were given; None and empty stand for the default.

    Raises:
        ConfigurationError: one is out of range, or does not go with another.
    """
    said = {name: value for name, value in given.items() if value not in (None, (), "")}
    _check_loops(said)
    values = {_RENAMED.get(name, name): value for name, value in said.items()}
    for name, read in (("users", _users), ("rates", _rates), ("targets", names)):
        if name in values:
            values[name] = read(values[name])
    return Options(**{**(QUICK if quick else {}), **values}, command=without_passwords(command))


def _check_loops(said: Mapping[str, Any]) -> None:
    for name, what in _OF_ONE_LOOP.items():
        if "rates" in said and name in said:
            raise ConfigurationError(
                f"{what}, with --rates nobody is waited for: give one of the two"
            )
    for name in _OF_THE_OTHER:
        if name in said and "rates" not in said:
            raise ConfigurationError(f"--{name.replace('_', '-')} goes with --rates only")


def names(text: str) -> tuple[str, ...]:
    """Return the names in a text, which has commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _users(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(
            f"--users must be a whole number, or several with commas as in 1,5,20, not {text!r}"
        ) from None


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(
            f"--rates must be a number, or several with commas as in 50,100,200, not {text!r}"
        ) from None
