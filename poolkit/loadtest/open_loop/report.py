"""The outcome of a run's arrivals, and whether the load generator kept its schedule."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_JSON_KEYS = {"timed_out": "unanswered", "dropped": "unsent"}
"""By field, the keys of load.json and of the other documents, which tools of users read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopReport:
    """The load of a run. The counts are those of an open loop, and 0 in a closed one.

    Every arrival is finished, timed out or dropped: arrivals = finished + timed_out + dropped, where
    finished = in_time + answered_late + failed.
    """

    loop: Literal["open", "closed"] = "closed"
    """open: tasks begin when they are scheduled. closed: when the one before has its answer."""
    rate: float | None = None
    """Arrivals a second, those in force when the report is made; None in a closed loop."""
    kind: str = ""
    """constant or poisson."""
    stages: str = ""
    """The whole rate, such as "10..200/5m", if it changes; empty otherwise."""
    arrivals: int = 0
    """Tasks that were scheduled before the end of the load."""
    late: int = 0
    """Arrivals that began more than 50 ms after their scheduled moment, or never."""
    latest_ms: float = 0.0
    in_time: int = 0
    """Arrivals that began at most 50 ms late, and whose task ended without a failure within
    `answer_within_s` of the scheduled moment."""
    answered_late: int = 0
    """The other arrivals whose task ended without a failure."""
    failed: int = 0
    """Arrivals whose task ended, and had a failed request or raised an exception."""
    answer_within_s: float | None = None
    dropped: int = 0
    """Scheduled, and not begun by the end."""
    timed_out: int = 0
    """Begun, and without an answer at the end; arrivals lost with a worker count here too."""
    users_max: int = 0
    """The highest number of users at once."""
    saturated_by: str = ""
    """Why the schedule was not kept; empty when it was."""
    began: float | None = None
    """When the first arrival was scheduled, Unix time; None in a closed loop, or if none was."""
    listeners_s: float | None = None
    """From the start of the test to the first user: the `test_start` listeners."""
    users_s: float | None = None
    """From the first user to the end of the last on_start, when the arrivals began."""
    waited_for: str = ""
    """What the start was waiting for when the test ended; empty if the arrivals had begun."""

    @property
    def finished(self) -> int:
        """Arrivals that ran to their end, answered or failed."""
        return self.arrivals - self.dropped - self.timed_out

    @property
    def never(self) -> int:
        """Arrivals that had no answer by the end: dropped, or timed out."""
        return self.dropped + self.timed_out

    def outcomes(self) -> str:
        """Return how many arrivals were answered in time, late and never, as one sentence."""
        parts = (
            (self.in_time, "answered in time"),
            (self.answered_late, "late"),
            (self.failed, "failed"),
            (self.never, "never answered"),
        )
        shares = (f"{number:,} {name} ({number / self.arrivals:.1%})" for number, name in parts)
        within = f"{self.answer_within_s:g} s" if self.answer_within_s else "the time limit"
        return (
            f"Of {self.arrivals:,} arrivals: {', '.join(shares)}; in time is begun at most 50 ms late "
            f"and answered within {within} of the scheduled moment"
        )

    @property
    def rate_text(self) -> str:
        """The rate and its kind, such as "200/s constant" or "10..200/5m poisson"."""
        return f"{self.stages or f'{self.rate:g}/s'} {self.kind}"

    def without_load(self) -> str:
        """Return why an open loop had not one request; call it if that is so."""
        if self.loop == "closed":
            return ""
        if self.began is None:
            return (
                "no request was sent: the run ended before the first arrival, when "
                f"{self.waited_for}; a longer --run-time covers the start too"
            )
        counts = (
            f"{self.arrivals:,} arrivals, {self.dropped:,} dropped, {self.timed_out:,} timed out"
        )
        return f"no request was answered or failed: {counts}"

    def to_json(self) -> dict[str, Any]:
        """Return the object for JSON; `dropped` is called unsent there, `timed_out` unanswered."""
        return {_JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> LoopReport:
        """Return the report that `to_json` was called on."""
        fields = {key: field for field, key in _JSON_KEYS.items()}
        return cls(**{fields.get(key, key): value for key, value in found.items()})

    def lines(self) -> list[str]:
        """Return the lines about the load for the end of a run."""
        if self.loop == "closed":
            return ["Closed loop: latencies count from the sending of a request"]
        counts = [f"{self.arrivals:,} arrivals", f"{self.finished:,} finished"]
        exceptions = {"late": self.late, "timed out": self.timed_out, "dropped": self.dropped}
        counts += [f"{number:,} {name}" for name, number in exceptions.items() if number]
        line = (
            f"Open loop, {self.rate_text}: {', '.join(counts)}; up to "
            f"{self.users_max:,} users; latencies count from the scheduled moment of a task"
        )
        lines = [line, self.outcomes()] if self.arrivals else [line]
        if self.listeners_s is not None and self.users_s is not None:
            start_s = self.listeners_s + self.users_s
            lines.append(
                f"The arrivals began {start_s:.1f} s after the start of the test, when the users were "
                f"ready: test_start listeners {self.listeners_s:.1f} s, spawning and on_start "
                f"{self.users_s:.1f} s"
            )
        return [*lines, f"SATURATED: {self.saturated_by}"] if self.saturated_by else lines


def merged(reports: Iterable[LoopReport]) -> LoopReport:
    """Return the one report of several processes that shared one rate; of at least one."""
    every = list(reports)
    reasons = dict.fromkeys(one.saturated_by for one in every if one.saturated_by)
    began = (one.began for one in every if one.began is not None)
    return replace(
        every[0],
        arrivals=sum(one.arrivals for one in every),
        late=sum(one.late for one in every),
        latest_ms=max(one.latest_ms for one in every),
        in_time=sum(one.in_time for one in every),
        answered_late=sum(one.answered_late for one in every),
        failed=sum(one.failed for one in every),
        answer_within_s=_longest(one.answer_within_s for one in every),
        dropped=sum(one.dropped for one in every),
        timed_out=sum(one.timed_out for one in every),
        users_max=sum(one.users_max for one in every),
        saturated_by="; ".join(reasons),
        began=min(began, default=None),
        listeners_s=_longest(one.listeners_s for one in every),
        users_s=_longest(one.users_s for one in every),
        waited_for="; ".join(dict.fromkeys(one.waited_for for one in every if one.waited_for)),
    )


def _longest(seconds: Iterable[float | None]) -> float | None:
    return max((one for one in seconds if one is not None), default=None)
