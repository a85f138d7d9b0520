"""A logarithmic axis of durations in ms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

AS_DURATION = "datum.value >= 1000 ? format(datum.value / 1000, '~g') + ' s' : format(datum.value, '~g') + ' ms'"
"""How Vega writes a tick: ms, from a second on s."""


def log_domain(values: Sequence[float]) -> list[float]:
    """Return the ends of an axis that holds the values, with room on either side."""
    low, high = min(values, default=1.0), max(values, default=10.0)
    return [max(low, 0.001) / 1.3, max(high * 1.3, low * 2)]


def decades(domain: Sequence[float]) -> list[float]:
    """Return 1, 2 and 5 of each decade, or fewer of them where that would be many."""
    first, last = math.floor(math.log10(domain[0])), math.ceil(math.log10(domain[1]))
    span = math.log10(domain[1] / domain[0])
    steps = (1, 2, 5) if span <= 1.5 else (1, 3) if span <= 3.5 else (1,)
    ticks = [round(m * 10**e, 9) for e in range(first, last + 1) for m in steps]
    return [tick for tick in ticks if domain[0] <= tick <= domain[1]]
