"""The connections of a PostgreSQL server: their number, owner, state and age.

    with ActivitySampler(url, interval_s=0.1, sink=print) as sampler:
        sampler.wait_until_no_backends("web:")

`server` queries `pg_stat_activity` once or regularly, `by_target` groups a sample by the targets that
`application_name` names, and `watch` and `holders` are the commands of these names. `holding` computes who
holds connections, `statements` shows other programs' statements without their literals, `call_sites`
reads an application's metrics. A name is imported when it is first used, since `by_target` works without psycopg2.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolkit.activity.server import (
        ActivityConnection,
        ActivitySampler,
        Backend,
        Gap,
        IdleTransaction,
        Sample,
        ServerLimits,
        snapshot,
    )

__all__ = [
    "ActivityConnection",
    "ActivitySampler",
    "Backend",
    "Gap",
    "IdleTransaction",
    "Sample",
    "ServerLimits",
    "snapshot",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("poolkit.activity.server"), name)
