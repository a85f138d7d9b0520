"""Thresholds held against the figures of a run, at its end or while it goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from poolkit.thresholds.metrics import shown
from poolkit.thresholds.parse import COMPARE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from poolkit.thresholds.threshold import Threshold

UNSEEN_S = 2.0
"""So long a server may not have been asked, and what its samples show is still believed."""

Status: TypeAlias = Literal["passed", "failed", "unknown", "not applicable"]
Figures: TypeAlias = "Mapping[str, float | None]"
"""Values by the names of metrics, in the units of `Metric`; a share is from 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of one threshold at one target and load."""

    threshold: Threshold
    target: str
    """Empty when a run has no target's name."""
    load: str = ""
    """Such as "50 users" or "200/s"; empty when there was one load only."""
    value: float | None
    """In the unit of the metric; None when it is not known."""
    status: Status
    reason: str = ""
    """Why it is not known or does not apply, if that can be said."""

    @property
    def ok(self) -> bool:
        """Whether it passed or does not apply; what is not known is not ok."""
        return self.status in ("passed", "not applicable")

    @property
    def place(self) -> str:
        """Target and load in words; empty if there is neither."""
        return " at ".join(part for part in (self.target, self.load) if part)

    @property
    def words(self) -> str:
        """One line, such as "web at 50 users: http.p95 is 243 ms, wanted < 200 ms"."""
        place = f"{self.place}: " if self.place else ""
        return " ".join(f"{place}{self.outcome}".split())

    @property
    def outcome(self) -> str:
        """The same without target and load: "http.p95 is 243 ms, wanted < 200 ms"."""
        return f"{self.threshold.metric} {self.found}, wanted {self.threshold.wanted}"

    @property
    def found(self) -> str:
        """What was found in words, such as "is 243 ms" or "is not known"."""
        if self.status == "not applicable":
            return f"does not apply ({self.reason})" if self.reason else "does not apply"
        return f"is {self.figure}"

    @property
    def figure(self) -> str:
        """The value with its unit, such as "243 ms", or "not known" with the reason if there is one."""
        # An unknown one may have the value that was seen so far.
        if self.value is not None and self.status != "unknown":
            return shown(self.value, self.threshold.measure, beside=self.threshold.limit)
        return f"not known ({self.reason})" if self.reason else "not known"


def check(
    threshold: Threshold,
    target: str,
    figures: Figures,
    not_applicable: Collection[str] = (),
    *,
    load: str = "",
    reasons: Mapping[str, str] | None = None,
) -> Verdict:
    """Hold one threshold against the figures of one target.

    Args:
        threshold: for a target that it is not for, it does not apply.
        target: its name, or "" in a run without one.
        figures: by the names of metrics; None, nan or absent is "not known".
        not_applicable: metrics that this target does not have, such as `lambda.cold_starts`.
        load: words for the load, if there are several.
        reasons: by metric, why it is not known or does not apply, where that can be said.

    """
    value = figures.get(threshold.metric)
    if value is not None and math.isnan(value):
        value = None
    status = _status(threshold, value)
    if threshold.metric in not_applicable or not threshold.applies_to(target):
        value, status = None, "not applicable"
    return Verdict(
        threshold=threshold,
        target=target,
        load=load,
        value=value,
        status=status,
        reason=(reasons or {}).get(threshold.metric, "") if value is None else "",
    )


def _status(threshold: Threshold, value: float | None) -> Status:
    if value is None:
        return "unknown"
    return "passed" if COMPARE[threshold.operator](value, threshold.limit) else "failed"


def check_all(
    thresholds: Iterable[Threshold],
    target: str,
    figures: Figures,
    not_applicable: Collection[str] = (),
    *,
    load: str = "",
    reasons: Mapping[str, str] | None = None,
) -> tuple[Verdict, ...]:
    """Hold all thresholds that are for a target against its figures; see `check`."""
    return tuple(
        check(threshold, target, figures, not_applicable, load=load, reasons=reasons)
        for threshold in thresholds
        if threshold.applies_to(target)
    )


def with_unseen(verdicts: Iterable[Verdict], unseen_s: float) -> tuple[Verdict, ...]:
    """Return the verdicts without those that passed only because nobody could look.

    A server that is full refuses whoever watches it, too: the samples that are missing are the
    very ones that would have broken a limit.

    Args:
        verdicts: of one run, or of one target at one load.
        unseen_s: seconds in which the server could not be asked.

    """
    if unseen_s <= UNSEEN_S:
        return tuple(verdicts)
    reason = f"the server could not be asked for {unseen_s:.0f} s"
    return tuple(
        replace(verdict, status="unknown", reason=reason) if _may_still_fail(verdict) else verdict
        for verdict in verdicts
    )


def _may_still_fail(verdict: Verdict) -> bool:
    threshold = verdict.threshold
    has_come_up_to_it = threshold.measure.grows and threshold.operator in (">", ">=")
    return verdict.status == "passed" and threshold.measure.sampled and not has_come_up_to_it


def should_abort(
    thresholds: Iterable[Threshold],
    target: str,
    figures_so_far: Figures,
    elapsed_s: float,
    *,
    load: str = "",
) -> Verdict | None:
    """Return the first verdict that ends a run before its time; None when it may go on.

    What is not known yet aborts nothing, nor does a count that may still come up to what it is
    to equal.

    Args:
        thresholds: those without `abort` are passed over.
        target: its name, or "" in a run without one.
        figures_so_far: as of `check`, from the beginning of the load to this moment.
        elapsed_s: seconds since the load began.
        load: words for the load, if there are several.

    """
    for threshold in thresholds:
        if not threshold.abort or elapsed_s < threshold.delay_s:
            continue
        verdict = check(threshold, target, figures_so_far, load=load)
        if verdict.status == "failed" and not _may_still_pass(verdict):
            return verdict
    return None


def _may_still_pass(verdict: Verdict) -> bool:
    threshold = verdict.threshold
    below = verdict.value is not None and verdict.value < threshold.limit
    return threshold.measure.grows and threshold.operator == "==" and below


def unmet(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Return the verdicts that make a run fail: failed or not known."""
    return tuple(verdict for verdict in verdicts if not verdict.ok)
