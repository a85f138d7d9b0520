"""Thresholds held against the figures of a run, at its end or while it goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from poolkit.thresholds.metrics import shown
from poolkit.thresholds.parse import COMPARE
from poolkit.thresholds.selector import doubt_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from poolkit.thresholds.threshold import Threshold

UNSEEN_S = 2.0
"""The seconds without samples after which a peak may have been missed."""

UNNAMED = "requests without an answer have no name, and may be of this one"

Status: TypeAlias = Literal["passed", "failed", "unknown", "not applicable"]
Figures: TypeAlias = "Mapping[str, float | None]"
"""Values by the names of metrics, in the units of `Metric`; a share is from 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The result of one threshold at one target and load."""

    threshold: Threshold
    target: str
    """Empty if the run has no target's name."""
    load: str = ""
    """Such as "50 users" or "200/s"; empty if there was one load only."""
    value: float | None
    """In the unit of the metric; None when it is not known."""
    status: Status
    reason: str = ""
    """Why it is not known or does not apply; empty if no reason is known."""

    @property
    def ok(self) -> bool:
        """Whether it passed or does not apply; an unknown value is not ok."""
        return self.status in ("passed", "not applicable")

    @property
    def subject(self) -> str:
        """Target and load as text; empty if there is neither."""
        return " at ".join(part for part in (self.target, self.load) if part)

    @property
    def message(self) -> str:
        """One line, such as "web at 50 users: http.p95 is 243 ms, wanted < 200 ms"."""
        # A reason may come from the server and have several lines.
        subject = f"{self.subject}: " if self.subject else ""
        return " ".join(f"{subject}{self.outcome}".split())

    @property
    def outcome(self) -> str:
        """The same without target and load: "http.p95 is 243 ms, wanted < 200 ms"."""
        found = f"is {self.figure}"
        if self.status == "not applicable":
            found = f"does not apply ({self.reason})" if self.reason else "does not apply"
        return f"{self.threshold.key} {found}, wanted {self.threshold.wanted}"

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
        threshold: where it is for other targets, it does not apply.
        target: its name, or "" in a run without one.
        figures: by the names of metrics, or `Threshold.key`; None, nan or absent is "not known".
        not_applicable: metrics that this target does not have, such as `lambda.cold_starts`.
        load: the name of the load, if there are several.
        reasons: by metric or `Threshold.key`, why it is not known or does not apply.

    """
    value = figures.get(threshold.key)
    if value is not None and math.isnan(value):
        value = None
    reason = (reasons or {}).get(threshold.key, "") if value is None else ""
    status: Status
    if threshold.metric in not_applicable or not threshold.applies_to(target):
        value, status = None, "not applicable"
    elif value is None:
        status = "unknown"
    else:
        status = "passed" if COMPARE[threshold.operator](value, threshold.limit) else "failed"
        selector = threshold.selector
        doubt = figures.get(doubt_key(threshold.metric, selector)) if selector else None
        if (
            status == "passed"
            and doubt is not None
            and not COMPARE[threshold.operator](doubt, threshold.limit)
        ):
            status, reason = "unknown", UNNAMED
    return Verdict(
        threshold=threshold,
        target=target,
        load=load,
        value=value,
        status=status,
        reason=reason,
    )


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
    """Return the verdicts with "unknown" for each that passed only for want of samples.

    A full server refuses the watching role too: the missing samples are the very ones that would
    have exceeded a limit. A value that has reached `>` or `>=` and cannot fall has passed all the same.

    Args:
        verdicts: of one run, or of one target at one load.
        unseen_s: seconds in which the server could not be asked.

    """
    if unseen_s <= UNSEEN_S:
        return tuple(verdicts)
    reason = f"the server could not be asked for {unseen_s:.0f} s"
    return tuple(
        replace(verdict, status="unknown", reason=reason)
        if verdict.status == "passed"
        and verdict.threshold.measure.sampled
        and not (verdict.threshold.measure.grows and verdict.threshold.operator in (">", ">="))
        else verdict
        for verdict in verdicts
    )


def should_abort(
    thresholds: Iterable[Threshold],
    target: str,
    figures_so_far: Figures,
    elapsed_s: float,
    *,
    load: str = "",
) -> Verdict | None:
    """Return the first verdict that ends a run early; None if it may go on.

    An unknown figure aborts nothing, nor does a growing count that may still reach the value it
    must equal.

    Args:
        thresholds: those without `abort` are skipped.
        target: its name, or "" in a run without one.
        figures_so_far: as of `check`, from the beginning of the load to this moment.
        elapsed_s: seconds since the load began.
        load: the name of the load, if there are several.

    """
    for threshold in thresholds:
        if not threshold.abort or elapsed_s < threshold.delay_s:
            continue
        verdict = check(threshold, target, figures_so_far, load=load)
        value, may_still_pass = verdict.value, False
        if threshold.measure.grows and threshold.operator == "==":
            may_still_pass = value is not None and value < threshold.limit
        if verdict.status == "failed" and not may_still_pass:
            return verdict
    return None


def unmet(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Return the verdicts that make a run fail: failed or not known."""
    return tuple(verdict for verdict in verdicts if not verdict.ok)
