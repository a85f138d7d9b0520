"""A whole run in figures: every measurement, and the load at which targets are compared.

docs/results.md defines every figure.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolkit.compare.results.files import to_json
from poolkit.compare.results.levels import (
    Knee,
    LevelResult,
    knee_of,
    left_out,
    level_result,
    reference_level,
    spread_of,
    typical,
    without_meaning,
)
from poolkit.compare.results.run_folder import SCHEMA, Absent, Step
from poolkit.compare.results.target_result import TargetResult, target_result
from poolkit.compare.results.wording import origin, without_passwords
from poolkit.errors import ConfigurationError, RunFolderError
from poolkit.thresholds import check_all, thresholds_of, with_unseen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.compare.results.run_folder import Level, Machine, Plan, PlannedTarget, RunFolder
    from poolkit.thresholds import Threshold, Verdict

STOPPED = "the run was stopped before its end"


@dataclass(frozen=True, kw_only=True)
class Results:
    """One run: `targets` in the order of the plan, each at the `reference` level."""

    plan: Plan
    machine: Machine
    targets: tuple[TargetResult, ...]
    absent: tuple[Absent, ...]
    reference: Level
    """The highest level that every target holds, or the lowest if there is none."""
    levels: Mapping[str, tuple[LevelResult, ...]]
    """By target, from the lowest to the highest load."""
    knees: Mapping[str, Knee | None] = field(default_factory=dict)
    thresholds: tuple[Threshold, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    """Every threshold at every target and load that it is for."""
    headline: str = ""

    @property
    def has_levels(self) -> bool:
        """True if there was more than one load."""
        return len(self.plan.levels) > 1

    @property
    def has_repeats(self) -> bool:
        """True if targets were measured more than once at a load."""
        return self.plan.repeat > 1

    def at(self, level: Level) -> Results:
        """Return the same run with its targets compared at another level."""
        targets = _targets_at(level, self.levels)
        return dataclasses.replace(self, targets=targets, reference=level)

    def as_json(self) -> dict[str, Any]:
        """Return what results.json holds."""
        return {
            "schema": SCHEMA,
            "created": self.plan.created,
            "command": self.plan.command,
            "headline": self.headline,
            "plan": _plan_json(self.plan),
            "machine": to_json(self.machine),
            "absent": [to_json(absent) for absent in self.absent],
            "reference": self.reference.name,
            "targets": {target.name: _target_json(target) for target in self.targets},
            "levels": {
                name: [_level_json(each) for each in of] for name, of in self.levels.items()
            },
            "knees": {name: _knee_json(knee) for name, knee in self.knees.items()},
            "thresholds": [_verdict_json(verdict) for verdict in self.verdicts],
        }


# -- from raw files to results --------------------------------------------------------------


def compute(run: RunFolder) -> Results:
    """Compute the figures of every measurement that there is.

    One measurement's rows are in memory at a time.

    Raises:
        RunFolderError: a file is broken, or no target was measured at all.
    """
    plan = run.plan()
    plan = dataclasses.replace(plan, command=without_passwords(plan.command))
    thresholds = _thresholds(run, plan)
    levels: dict[str, tuple[LevelResult, ...]] = {}
    verdicts: list[Verdict] = []
    for planned in plan.targets:
        judged = [_judged(at, plan, thresholds) for at in _measured(run, plan, planned)]
        levels[planned.name] = tuple(level for level, _ in judged)
        verdicts += [verdict for _, of_level in judged for verdict in of_level]
    reference = reference_level(plan.levels, _those_measured(levels))
    if reference is None:
        raise RunFolderError(f"{run.path}: the run was stopped before any target was measured")
    return Results(
        plan=plan,
        machine=run.machine(),
        targets=_targets_at(reference, levels),
        absent=(*plan.absent, *_absent(levels, reference)),
        reference=reference,
        levels=_those_measured(levels),
        knees={name: knee_of(found) for name, found in _those_measured(levels).items()},
        thresholds=thresholds,
        verdicts=tuple(verdicts),
    )


def _thresholds(run: RunFolder, plan: Plan) -> tuple[Threshold, ...]:
    try:
        source = f"{run.path / 'plan.json'}: thresholds"
        return thresholds_of({"thresholds": list(plan.thresholds)}, source=source)
    except ConfigurationError as error:
        raise RunFolderError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class _At:
    """What there is of one target at one level."""

    planned: PlannedTarget
    level: Level
    repeats: tuple[TargetResult, ...]
    aborted_by: str
    """The threshold that ended a repeat here, measured or still warming up."""
    left_out: str
    """Why there is no repeat."""


def _measured(run: RunFolder, plan: Plan, planned: PlannedTarget) -> list[_At]:
    found: list[_At] = []
    for level in plan.levels:
        repeats, aborted_by = _repeats(run, plan, planned, level)
        found.append(
            _At(
                planned=planned,
                level=level,
                repeats=repeats,
                aborted_by=aborted_by,
                left_out="" if repeats else _why_left_out(aborted_by, found),
            )
        )
    return found


def _repeats(
    run: RunFolder, plan: Plan, planned: PlannedTarget, level: Level
) -> tuple[tuple[TargetResult, ...], str]:
    repeats, aborted_by = [], ""
    for number in range(1, plan.repeat + 1):
        step = Step(target=planned.name, level=level, repeat=number)
        folder = run.step(plan, step)
        window = folder.window()
        if window is None:
            continue
        aborted_by = aborted_by or window.aborted_by
        if window.to > window.from_:
            repeats.append(target_result(plan, planned, step, folder, window))
    return tuple(repeats), aborted_by


def _why_left_out(aborted_by: str, lower: Sequence[_At]) -> str:
    if aborted_by:
        return f"ended while it warmed up: {aborted_by}"
    aborted = next((at for at in reversed(lower) if at.aborted_by), None)
    return f"left out, since {aborted.level.name} was ended early" if aborted else STOPPED


def _judged(
    at: _At, plan: Plan, thresholds: Sequence[Threshold]
) -> tuple[LevelResult, tuple[Verdict, ...]]:
    if not at.repeats and not at.aborted_by:
        return left_out(at.level, at.left_out), ()
    figures = typical(spread_of(at.repeats))
    verdicts = check_all(
        thresholds,
        at.planned.name,
        figures,
        without_meaning(at.planned),
        load=at.level.name if len(plan.levels) > 1 else "",
    )
    verdicts = with_unseen(
        verdicts, max((repeat.connections.unseen_s for repeat in at.repeats), default=0.0)
    )
    if any(repeat.latency_ms is None for repeat in at.repeats):
        verdicts = _of_unanswered(verdicts)
    if at.aborted_by:
        verdicts = _of_aborted(verdicts)
    if not at.repeats:
        return left_out(at.level, at.left_out), verdicts
    return level_result(at.level, at.repeats, verdicts), verdicts


def _of_unanswered(verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    """Say why a latency is not known."""
    return tuple(
        dataclasses.replace(v, reason="no request was answered without an error")
        if v.status == "unknown" and v.threshold.metric.startswith("http.") and not v.reason
        else v
        for v in verdicts
    )


def _of_aborted(verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    """Let no measurement pass that a threshold ended: what it would have come to is unknown."""
    if any(not verdict.ok for verdict in verdicts):
        return verdicts
    return tuple(
        dataclasses.replace(v, value=None, status="unknown", reason="it ended the measurement")
        if v.threshold.abort and v.status == "passed"
        else v
        for v in verdicts
    )


def _those_measured(
    levels: Mapping[str, tuple[LevelResult, ...]],
) -> dict[str, tuple[LevelResult, ...]]:
    return {name: found for name, found in levels.items() if any(each.repeats for each in found)}


def _absent(levels: Mapping[str, tuple[LevelResult, ...]], reference: Level) -> list[Absent]:
    found = []
    for name, of_target in levels.items():
        at = next(each for each in of_target if each.level == reference)
        if not at.repeats:
            found.append(Absent(name=name, reason=at.why_not))
    return found


def _targets_at(
    level: Level, levels: Mapping[str, tuple[LevelResult, ...]]
) -> tuple[TargetResult, ...]:
    """Return each target's median repeat at a level, with the spread of its repeats."""
    found = []
    for of_target in levels.values():
        at = next((each for each in of_target if each.level == level), None)
        if at is not None and at.middle is not None:
            spread = at.spread if len(at.repeats) > 1 else {}
            found.append(dataclasses.replace(at.middle, spread=spread))
    return tuple(found)


# -- results.json ---------------------------------------------------------------------------


def _plan_json(plan: Plan) -> dict[str, Any]:
    values = {k: v for k, v in to_json(plan).items() if k not in ("absent", "schema")}
    for target in values["targets"]:
        target["url"] = origin(target["url"]) if target["url"] else None
    return values


def _target_json(target: TargetResult) -> dict[str, Any]:
    values: dict[str, Any] = _rounded(dataclasses.asdict(target))
    del values["name"], values["step"], values["figures"]
    return {**values, "level": target.step.level.name, "repeat": target.step.repeat}


_ONCE = ("kind", "preset", "url", "spread", "finding", "load_finding", "level")
"""What a repeat does not say again."""


def _level_json(each: LevelResult) -> dict[str, Any]:
    repeats = [_target_json(repeat) for repeat in each.repeats]
    return {
        "name": each.level.name,
        **to_json(each.level),
        "offered_per_s": each.level.offered_per_s,
        "held": each.held,
        "why_not": each.why_not,
        "spread": _rounded(each.spread),
        "repeats": [{k: v for k, v in repeat.items() if k not in _ONCE} for repeat in repeats],
    }


def _knee_json(knee: Knee | None) -> dict[str, Any] | None:
    if knee is None:
        return None
    return {
        "level": knee.level.name,
        "answered_per_s": round(knee.answered_per_s, 3),
        "latency_ms": round(knee.latency_ms, 3),
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "threshold": verdict.threshold.expression,
        "target": verdict.target,
        "load": verdict.load,
        "value": _rounded(verdict.value),
        "status": verdict.status,
        "words": verdict.words,
    }


def _rounded(value: Any) -> Any:
    """Cut to what was measured: a microsecond, a thousandth of a core."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
