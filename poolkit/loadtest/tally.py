"""Peaks, means and connections opened, over every sample of a run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolkit.activity.by_target import Connected
    from poolkit.activity.server import Sample


class Tally:
    """Adds up samples: a chart shows one a second, these figures are about all of them.

    Args:
        sessions: the server's counter when the run began; None to count from the first sample on.

    """

    def __init__(self, sessions: int | None = None) -> None:
        self.samples = 0
        self.peak = 0
        """The most connections at once, all targets together."""
        self.server_peak = 0
        """The most connections at once to all databases of the server."""
        self.elsewhere_peak = 0
        """The most connections at once to its other databases."""
        self.peaks: Counter[str] = Counter()
        """The most connections at once, by target."""
        self.idle_in_transaction_peak = 0
        """The most connections at once that were idle in a transaction, all targets together."""
        self.idle_in_transaction_peaks: Counter[str] = Counter()
        """The same by target."""
        self.opened = 0
        """Connections opened since the run began, by the server's own counter."""
        self.sessions = sessions
        """That counter, when last seen."""
        self._sum = 0
        self._sums: Counter[str] = Counter()

    def add(self, sample: Sample, targets: Sequence[Connected]) -> int:
        """Add a sample, and return how many connections were opened since the one before."""
        self.samples += 1
        count = len(sample.backends)
        self.peak = max(self.peak, count)
        self.server_peak = max(self.server_peak, sample.on_server)
        self.elsewhere_peak = max(self.elsewhere_peak, sample.elsewhere)
        self._sum += count
        for one in targets:
            self.peaks[one.target] = max(self.peaks[one.target], one.total)
            self._sums[one.target] += one.total
        self._add_idle_in_transaction(targets)
        return self._add_opened(sample.sessions)

    def _add_idle_in_transaction(self, targets: Sequence[Connected]) -> None:
        idle = {one.target: one.idle_in_transaction for one in targets}
        self.idle_in_transaction_peak = max(self.idle_in_transaction_peak, sum(idle.values()))
        self.idle_in_transaction_peaks |= Counter(idle)

    def _add_opened(self, sessions: int) -> int:
        # The counter goes back to zero when the server crashed or its statistics were reset.
        opened = max(0, sessions - self.sessions) if self.sessions is not None else 0
        self.sessions = sessions
        self.opened += opened
        return opened

    @property
    def mean(self) -> float | None:
        """Connections at once, on average; None without a sample."""
        return self._sum / self.samples if self.samples else None

    def mean_of(self, target: str) -> float:
        """Return one target's connections at once, on average."""
        return self._sums[target] / self.samples if self.samples else 0.0
