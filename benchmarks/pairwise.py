"""Arms of a benchmark measured in turns: one round runs each arm once, in a changing order.

A machine slows down and speeds up over minutes. That affects all arms of a round, so their ratio
within the round stays right.

    result = compare({"bare": timed(bare, calls=200), "kit": timed(kit, calls=200)}, rounds=20)
    print(result.table(baseline="bare"))
"""

from __future__ import annotations

import os
import platform
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

Arm = Callable[[], float]
"""Does its work once and returns a figure: seconds for one call, requests per second, bytes."""


def timed(work: Callable[[], object], *, calls: int = 1) -> Arm:
    """Return an arm that runs `work` `calls` times; its figure is the seconds of one call."""

    def arm() -> float:
        began = perf_counter()
        for _ in range(calls):
            work()
        return (perf_counter() - began) / calls

    return arm


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The figures of each arm, one a round, in the order of the rounds."""

    figures: Mapping[str, Sequence[float]]

    def median(self, arm: str) -> float:
        """Return an arm's median figure."""
        return statistics.median(self.figures[arm])

    def ratio(self, arm: str, *, to: str) -> float:
        """Return the median of the rounds' own ratios, which drift does not change."""
        pairs = zip(self.figures[arm], self.figures[to], strict=True)
        return statistics.median(figure / base for figure, base in pairs)

    def spread(self, arm: str) -> tuple[float, float]:
        """Return an arm's 10th and 90th percentile."""
        deciles = statistics.quantiles(self.figures[arm], n=10, method="inclusive")
        return deciles[0], deciles[-1]

    def table(self, *, baseline: str, unit: str = "µs", scale: float = 1e6) -> str:
        """Return a plain table: median, 10th and 90th percentile, ratio to the baseline.

        Args:
            baseline: the arm that the others are divided by.
            unit: what the figures are shown in.
            scale: what a figure is multiplied by to be in that unit.
        """
        width = max(map(len, self.figures))
        lines = [f"{'':{width}}  {'median ' + unit:>12}  {'p10':>10}  {'p90':>10}  {'ratio':>6}"]
        for arm in self.figures:
            low, high = (value * scale for value in self.spread(arm))
            lines.append(
                f"{arm:{width}}  {self.median(arm) * scale:12.1f}  {low:10.1f}  {high:10.1f}"
                f"  {self.ratio(arm, to=baseline):6.3f}"
            )
        return "\n".join(lines)


def compare(arms: Mapping[str, Arm], *, rounds: int = 20, warmup: int = 2) -> Comparison:
    """Run every arm once a round, each round in another order, and return the figures.

    Args:
        arms: by name; at least two.
        rounds: the number of figures of each arm; at least two.
        warmup: rounds whose figures are thrown away.
    """
    figures: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for number in range(warmup + rounds):
        random.shuffle(order)
        for name in order:
            figure = arms[name]()
            if number >= warmup:
                figures[name].append(figure)
    return Comparison(figures=figures)


def machine(*distributions: str) -> str:
    """Return one line: processor, cores, kernel, Python and the versions that matter."""
    versions = ", ".join(f"{name} {version(name)}" for name in distributions)
    python = f"Python {platform.python_version()}"
    parts = [f"{_processor()} x {os.cpu_count()}", platform.platform(terse=True), python]
    return "; ".join(parts + ([versions] if versions else []))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
