"""The options of `poolkit compare` as one value, and the levels that they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolkit.compare.results.run_folder import Level
from poolkit.errors import ConfigurationError
from poolkit.local.distance import Distance
from poolkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from poolkit.compare.plan.option_types import OwnerMark, PoolSize, TargetUrl

MAX_USERS = 2_000
"""Open loop: the most users, unless `--max-users` is given."""
BUSY_S = 0.25
"""Open loop: enough users are ready for tasks of this length (Little's law: busy = rate x time)."""
LEAST_READY = 10
# Fewer users at the same load: half the cold starts to wait for.
QUICK: Mapping[str, Any] = {
    "duration_s": 6.0,
    "warm_up_s": 3.0,
    "users": (10,),
    "rate_per_user": 4.0,
}
DEFAULT_RESERVE = 3
"""superuser_reserved_connections, unless set (PostgreSQL, 19.3.1); the embedded server sets none."""
_CLOSED_LOOP_ONLY = {"users": "--users", "rate_per_user": "--rate"}
_OPEN_LOOP_ONLY = {"arrivals": "--arrivals", "max_users": "--max-users"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a run. Times are in seconds, rates are in tasks per second."""

    targets: tuple[str, ...] = ()
    app: str = ""
    """`module:application` in place of tables."""
    python: Path | None = None
    """The interpreter of `app`; by default that of its environment."""
    locustfile: Path | None = None
    """In place of the targets' own."""
    pools: tuple[str, ...] = ()
    """Each target once with each of these pools: `now`, or the name of a preset."""
    pool_sizes: tuple[PoolSize, ...] = ()
    """Each target once with each of these sizes of its pool, from the smallest."""
    deployed: tuple[TargetUrl, ...] = ()
    marks: tuple[OwnerMark, ...] = ()
    """What the connections of deployed targets are known by."""
    users: tuple[int, ...] = (20,)
    """Closed loop: a level each, from the lowest."""
    rate_per_user: float = 2.0
    rates: tuple[float, ...] = ()
    """Open loop: a level each, from the lowest; `users` then has no effect."""
    arrivals: str = "constant"
    max_users: int = MAX_USERS
    repeat: int = 1
    """The number of measurements per target and level."""
    duration_s: float = 20.0
    warm_up_s: float = 4.0
    interval_s: float = 0.1
    environment: str = "prod"
    distance: Distance = field(default_factory=Distance)
    """From the local targets to the embedded database."""
    database_url: str | None = None
    prepare_database: bool = False
    """The database of `database_url` may be changed: extensions, migrations, schema and seed."""
    max_connections: int = 100
    reserve: int = DEFAULT_RESERVE
    """The part of max_connections that the application's role cannot have."""
    thresholds: tuple[str, ...] = ()
    junit: Path | None = None
    github: bool = False
    agreed: bool = False
    """Hosts that are not this machine may be put under load."""
    out: Path | None = None
    command: str = "poolkit compare"

    @property
    def usable_connections(self) -> int:
        """The part of max_connections that the application's role can have."""
        return self.max_connections - self.reserve

    @property
    def levels(self) -> tuple[Level, ...]:
        """The loads to measure at, from the lowest."""
        if not self.rates:
            return tuple(
                Level(users=users, rate_per_user=self.rate_per_user) for users in self.users
            )
        return tuple(
            Level(
                users=min(self.max_users, max(LEAST_READY, math.ceil(rate * BUSY_S))),
                arrival_rate=rate,
                arrivals=self.arrivals,
                max_users=self.max_users,
            )
            for rate in self.rates
        )

    @property
    def local_database_url(self) -> str | None:
        """The given database if local targets use it; with deployed targets it is only sampled."""
        return None if self.deployed else self.database_url


def options_of(given: Mapping[str, Any], *, command: str, quick: bool = False) -> Options:
    """Return the options of a command line.

    Args:
        given: values by the names of `Options`, as click has converted them; None and empty
            stand for the default.
        command: the command line as it was typed.
        quick: defaults of a short run.

    Raises:
        ConfigurationError: options of the closed and of the open loop together, or --python
            without --app.
    """
    values = {name: value for name, value in given.items() if value not in (None, (), "")}
    if "python" in values and "app" not in values:
        raise ConfigurationError(
            "--python is for --app; a target of the tables has its own key python"
        )
    if "rates" in values:
        for name in _CLOSED_LOOP_ONLY.keys() & values.keys():
            raise ConfigurationError(
                f"{_CLOSED_LOOP_ONLY[name]} is for users who wait for their answers, but with "
                "--rates tasks start without waiting: give one of the two"
            )
    else:
        for name in _OPEN_LOOP_ONLY.keys() & values.keys():
            raise ConfigurationError(f"{_OPEN_LOOP_ONLY[name]} is an option of --rates only")
    return Options(**{**(QUICK if quick else {}), **values}, command=masked(command))
