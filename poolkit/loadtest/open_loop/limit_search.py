"""The plan of a search for the limit: which rate is next, and what was found.

The rate doubles until a step fails. Then each step is half way between the highest rate that held
and the lowest that failed, in proportion, until the two are at most 10 % apart. If the first step
fails, the rate halves until one holds. Nothing here imports Locust.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from poolkit.errors import ConfigurationError
from poolkit.loadtest.open_loop.arrivals import HIGHEST_PER_S

if TYPE_CHECKING:
    from collections.abc import Iterator

Outcome: TypeAlias = Literal["held", "failed", "saturated"]
"""held: every threshold. failed: one of them. saturated: the load generator was too slow to tell."""

FIRST_PER_S = 10.0
LOWEST_PER_S = 0.1
FACTOR = 2.0
PRECISION = 1.1
"""The search ends when the lowest rate that failed is at most this multiple of the limit."""
MOST_STEPS = 25
_DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rate that was tried. Rates are per second, latencies in ms."""

    per_s: float
    """The arrival rate."""
    outcome: Outcome
    reason: str = ""
    """The threshold that failed, with its figure, or why the load generator was too slow."""
    expression: str = ""
    """The threshold that failed, such as "http.p95 < 200 ms"."""
    requests_per_s: float = 0.0
    """Requests that ended, each second."""
    p95_ms: float | None = None
    error_share: float | None = None


@dataclass
class LimitSearch:
    """The steps of a search, and its result."""

    first_per_s: float = FIRST_PER_S
    highest_per_s: float = HIGHEST_PER_S
    steps: list[Step] = field(default_factory=list)
    ended_by: str = ""
    """Why the search ended before it had found the limit; empty if it has found it."""

    @property
    def held(self) -> Step | None:
        """The step with the highest rate that held, below the lowest that failed."""
        bad = self.failed
        held = [one for one in self.steps if one.outcome == "held"]
        below = [one for one in held if bad is None or one.per_s < bad.per_s]
        return max(below, key=lambda one: one.per_s, default=None)

    @property
    def failed(self) -> Step | None:
        """The step with the lowest rate that failed."""
        failed = [one for one in self.steps if one.outcome == "failed"]
        return min(failed, key=lambda one: one.per_s, default=None)

    @property
    def is_found(self) -> bool:
        """Whether the limit is known, or is above the highest rate that was asked for."""
        held = self.held
        if held is None or self.ended_by or self.next_per_s() is not None:
            return False
        return self.failed is not None or held.per_s >= self.highest_per_s

    def add(self, step: Step) -> None:
        """Add a step that was measured."""
        self.steps.append(step)
        same = [one.outcome for one in self.steps if one.per_s == step.per_s]
        # Once may be a moment in which the machine did something else.
        if same.count("saturated") > 1:
            self.ended_by = f"the load generator was saturated at {step.per_s:g}/s: {step.reason}"
        elif self.held is None and step.outcome == "failed" and step.per_s / FACTOR < LOWEST_PER_S:
            self.ended_by = "lower rates were not tried"
        elif len(self.steps) >= MOST_STEPS and self.next_per_s() is not None:
            self.ended_by = f"{MOST_STEPS} steps were tried"

    def next_per_s(self) -> float | None:
        """Return the rate of the next step; None when the search is over."""
        held, failed = self.held, self.failed
        wanted = min(self.first_per_s, self.highest_per_s)
        if self.steps and self.steps[-1].outcome == "saturated":
            wanted = self.steps[-1].per_s
        elif held is not None and failed is not None:
            close = failed.per_s / held.per_s <= PRECISION
            wanted = 0.0 if close else _rounded(math.sqrt(held.per_s * failed.per_s))
        elif held is not None:
            wanted = min(held.per_s * FACTOR, self.highest_per_s)
        elif failed is not None:
            wanted = _rounded(failed.per_s / FACTOR)
        is_known = any(one.per_s == wanted and one.outcome != "saturated" for one in self.steps)
        return None if self.ended_by or is_known or not wanted else wanted

    @property
    def result(self) -> str:
        """The limit in one line."""
        held, failed = self.held, self.failed
        if held is None:
            why = f"; {self.ended_by}" if self.ended_by else ""
            lowest = f"no rate held ({_failure(failed)})" if failed else "no step was measured"
            return f"limit: not found, {lowest}{why}"
        rate = f"{held.per_s:g} requests/s"
        # A task may send several requests, or none.
        if abs(held.requests_per_s / held.per_s - 1) > 0.1:
            rate = f"{held.per_s:g} tasks/s, {held.requests_per_s:.3g} requests/s"
        if self.next_per_s() is not None:
            return f"limit: at least {rate} so far"
        if failed is None:
            why = self.ended_by or f"{held.per_s:g}/s is the highest rate that was asked for"
            return f"limit: at least {rate} ({why})"
        unsure = f"; {self.ended_by}, so the limit may be higher" if self.ended_by else ""
        return f"limit: {rate} (next step {_failure(failed)}{unsure})"

    def lines(self) -> Iterator[str]:
        """Yield a table of the steps and the result, for a terminal."""
        yield f"{'Tasks/s':>9} |{'Reqs/s':>9} |{'p95 ms':>9} |{'Errors':>8} | Thresholds"
        yield f"{'-' * 10}|{'-' * 10}|{'-' * 10}|{'-' * 9}|{'-' * 41}"
        for step in self.steps:
            p95 = "-" if step.p95_ms is None else f"{step.p95_ms:,.4g}"
            errors = "-" if step.error_share is None else f"{step.error_share:.1%}"
            outcome = f"{step.outcome}: {step.reason}" if step.reason else step.outcome
            yield f"{step.per_s:>9,.4g} |{step.requests_per_s:>9,.4g} |{p95:>9} |{errors:>8} | {outcome}"
        yield self.result
        yield ""

    def to_json(self) -> dict[str, Any]:
        """Return the object for the document; null where something is not known."""
        held, failed = self.held, self.failed
        return {
            "per_s": held and held.per_s,
            "next_per_s": failed and failed.per_s,
            "failed": failed and failed.reason,
            "found": self.is_found,
            "ended_by": self.ended_by,
            "words": self.result,
            "steps": [asdict(step) for step in self.steps],
        }


def bounds(text: str | None) -> tuple[float, float]:
    """Return the first and the highest rate of `--arrival-rate` in a search, "10..2000" or "10".

    Raises:
        ConfigurationError: it is no rate, or has stages.
    """
    if text is None:
        return FIRST_PER_S, HIGHEST_PER_S
    first, dots, highest = text.partition("..")
    try:
        found = float(first), float(highest) if dots else HIGHEST_PER_S
    except ValueError:
        found = (0.0, 0.0)
    if not 0 < found[0] <= found[1] <= HIGHEST_PER_S:
        raise ConfigurationError(
            f"--arrival-rate is {text!r} with --find-limit; wanted the first rate, such as 10, or the "
            "first and the highest, such as 10..2000"
        )
    return found


def _failure(step: Step) -> str:
    return f"{step.per_s:g}/s failed {step.expression or step.reason}"


def _rounded(per_s: float) -> float:
    return float(f"{per_s:.{_DIGITS}g}")
