"""What became of the arrivals of a run, and whether the load generator kept its schedule."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopReport:
    """How a run was loaded. The counts are those of an open loop, and 0 in a closed one.

    Every arrival is finished, unanswered or unsent: arrivals = finished + unanswered + unsent.
    """

    loop: Literal["open", "closed"] = "closed"
    """open: tasks begin when they are due. closed: when a user has its answer to the last."""
    rate: float | None = None
    """Arrivals a second; None in a closed loop."""
    kind: str = ""
    """constant or poisson."""
    arrivals: int = 0
    """How many tasks were due by the end of the load."""
    late: int = 0
    """How many of them began more than 50 ms after they were due, or never."""
    latest_ms: float = 0.0
    unsent: int = 0
    """Due, and not begun by the end."""
    unanswered: int = 0
    """Begun, and without an answer at the end; those lost with a worker count here too."""
    users_max: int = 0
    """How many users there were at once, at most."""
    saturated_by: str = ""
    """Why the schedule was not kept; empty when it was."""

    @property
    def finished(self) -> int:
        """How many arrivals ran to their end, answered or failed."""
        return self.arrivals - self.unsent - self.unanswered

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> LoopReport:
        """Return what `plain` gave."""
        return cls(**plain)

    def lines(self) -> list[str]:
        """Return what a person is told at the end of a run."""
        if self.loop == "closed":
            return ["Closed loop: latencies count from the sending of a request"]
        counts = [f"{self.arrivals:,} arrivals", f"{self.finished:,} finished"]
        counts += [f"{n:,} {what}" for n, what in self._open_ends() if n]
        said = (
            f"Open loop, {self.rate:g}/s {self.kind}: {', '.join(counts)}; up to "
            f"{self.users_max:,} users; latencies count from the moment a task was due"
        )
        return [said, f"SATURATED: {self.saturated_by}"] if self.saturated_by else [said]

    def _open_ends(self) -> list[tuple[int, str]]:
        return [(self.late, "late"), (self.unanswered, "unanswered"), (self.unsent, "unsent")]


def merged(reports: Iterable[LoopReport]) -> LoopReport:
    """Return the one report of several processes that shared one rate; not of none."""
    all_of_them = list(reports)
    reasons = dict.fromkeys(one.saturated_by for one in all_of_them if one.saturated_by)
    return replace(
        all_of_them[0],
        arrivals=sum(one.arrivals for one in all_of_them),
        late=sum(one.late for one in all_of_them),
        latest_ms=max(one.latest_ms for one in all_of_them),
        unsent=sum(one.unsent for one in all_of_them),
        unanswered=sum(one.unanswered for one in all_of_them),
        users_max=sum(one.users_max for one in all_of_them),
        saturated_by="; ".join(reasons),
    )
