"""The moments and counts of a measurement, as far as they are known."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolkit.compare.results.run_folder import Window

if TYPE_CHECKING:
    from poolkit.compare.plan.plan import PlannedTarget

END_MARGIN_S = 0.4
"""What was in flight so short a time ago may never have had the chance of an answer."""


@dataclass(kw_only=True)
class Marks:
    """What of a Window is known so far; nothing of it is guessed when a run is cut short."""

    started: float = 0.0
    warm_from: float = 0.0
    from_: float = 0.0
    to: float = 0.0
    aborted_by: str = ""
    counts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def is_measured(self) -> bool:
        """True if there is a measured time, be it cut short."""
        return self.to > self.from_ > 0

    def cut_short(self, sessions: int | None) -> None:
        """End the measured time now, with the server's count of sessions as of now."""
        self.to = max(self.from_, min(self.to, time.time() - END_MARGIN_S))
        self.counts.setdefault("sessions_to", sessions)

    def window(self, *, partial: bool, planned: PlannedTarget) -> Window:
        """Return the window as of now, with the limits that the target had."""
        now = time.time()
        return Window(
            started=self.started or now,
            warm_from=self.warm_from or now,
            from_=min(self.from_ or now, now),
            to=min(self.to or now, now),
            stopped=now,
            partial=partial or bool(self.aborted_by),
            instances=planned.instances_max,
            ceiling=planned.ceiling,
            ceiling_reason=planned.ceiling_reason,
            warnings=tuple(self.warnings),
            aborted_by=self.aborted_by,
            **self.counts,
        )
