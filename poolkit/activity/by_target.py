"""The backends of one sample, counted by target and by state."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit.activity.server import Backend, Sample

UNNAMED = "(unnamed)"
"""The target of connections without an application_name."""

STATES = ("active", "idle_in_transaction", "other", "idle")
"""The order in which states are shown: working connections first, idle ones last."""

IDLE = "idle"
IDLE_IN_TRANSACTION = ("idle in transaction", "idle in transaction (aborted)")
"""The server's states of a backend that holds a transaction open and does nothing."""

_STATE_OF = {
    "active": "active",
    IDLE: "idle",
    **dict.fromkeys(IDLE_IN_TRANSACTION, "idle_in_transaction"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Connected:
    """The connections of one target at one moment.

    `other` counts all other states, such as a fast-path function call.
    """

    target: str
    instances: int
    active: int = 0
    idle_in_transaction: int = 0
    other: int = 0
    idle: int = 0
    longest_idle_in_transaction_s: float | None = None
    """The longest time that one of them has been idle in a transaction now; None without any."""

    @property
    def total(self) -> int:
        """All connections of the target, in any state."""
        return self.active + self.idle_in_transaction + self.other + self.idle


def by_target(sample: Sample) -> tuple[Connected, ...]:
    """Count a sample's backends by target; targets in the order of their names."""
    grouped: dict[str, list[Backend]] = defaultdict(list)
    for backend in sample.backends:
        grouped[backend.target or UNNAMED].append(backend)
    found = []
    for name, backends in sorted(grouped.items()):
        states = Counter(_STATE_OF.get(backend.state, "other") for backend in backends)
        instances = len({backend.instance for backend in backends})
        held = [b.state_age_s for b in backends if b.state in IDLE_IN_TRANSACTION]
        longest = round(max(held), 3) if held else None
        found.append(
            Connected(
                target=name,
                instances=instances,
                longest_idle_in_transaction_s=longest,
                **states,
            )
        )
    return tuple(found)


def total(targets: Iterable[Connected]) -> Connected:
    """Return the sum of the targets, whose name is empty."""
    targets = tuple(targets)
    held = [one.longest_idle_in_transaction_s for one in targets]
    return Connected(
        target="",
        longest_idle_in_transaction_s=max((s for s in held if s is not None), default=None),
        instances=sum(one.instances for one in targets),
        **{state: sum(getattr(one, state) for one in targets) for state in STATES},
    )
