"""A whole run in figures: every measurement, and the load at which targets are compared.

docs/results.md defines every figure.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolkit.compare.results.advice import Advice, advise, facts_of
from poolkit.compare.results.files import to_json
from poolkit.compare.results.levels import (
    HIGHEST,
    Knee,
    LevelResult,
    knee_of,
    level_result,
    reference_level,
    spread_of,
)
from poolkit.compare.results.run_folder import SCHEMA, Absent, Step
from poolkit.compare.results.sweep import Sweep, sweeps_of
from poolkit.compare.results.target_result import TargetResult, target_result
from poolkit.compare.results.wording import origin
from poolkit.errors import ConfigurationError, RunFolderError
from poolkit.loadtest.figures import OF_HOLDS, why_not_selected
from poolkit.masking import masked
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
    """The highest level that every target sustains, or the lowest if there is none."""
    levels: Mapping[str, tuple[LevelResult, ...]]
    """By target, from the lowest to the highest load."""
    knees: Mapping[str, Knee | None] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    """The pool sizes of each target that `--pool-sizes` compared."""
    thresholds: tuple[Threshold, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    """Of every threshold, for each target and load it applies to."""
    headline: str = ""
    folder: str = ""
    """The run's folder."""

    @property
    def has_failures(self) -> bool:
        """True if a measured target ended by itself, or answered nothing, in any measurement."""
        levels = [each for of in self.levels.values() for each in of]
        return any(repeat.has_failed for level in levels for repeat in level.repeats)

    @property
    def has_levels(self) -> bool:
        """True if there was more than one load."""
        return len(self.plan.levels) > 1

    @property
    def has_repeats(self) -> bool:
        """True if targets were measured more than once at a load."""
        return self.plan.repeat > 1

    @property
    def advice(self) -> Mapping[str, Advice]:
        """The recommended settings, by target; those of a sweep by the target that was swept."""
        cores = self.machine.cores
        swept = {
            planned.name: planned.swept_from for planned in self.plan.targets if planned.swept_from
        }
        found = {
            target.name: advise(facts_of(target, cores))
            for target in self.targets
            if target.name not in swept
        }
        for sweep in self.sweeps:
            chosen = sweep.knee or sweep.points[-1]
            at = next(
                (each for each in self.levels.get(chosen.name, ()) if each.level == sweep.level),
                None,
            )
            if at is not None and at.middle is not None:
                spread = at.spread if len(at.repeats) > 1 else {}
                target = dataclasses.replace(at.middle, spread=spread)
                found[sweep.target] = advise(facts_of(target, cores), sweep)
        return found

    def at(self, level: Level) -> Results:
        """Return the run at another level: each target's median repeat there, with the spread."""
        found = []
        for of_target in self.levels.values():
            at = next((each for each in of_target if each.level == level), None)
            if at is not None and at.middle is not None:
                spread = at.spread if len(at.repeats) > 1 else {}
                found.append(dataclasses.replace(at.middle, spread=spread))
        return dataclasses.replace(self, targets=tuple(found), reference=level)


def compute(run: RunFolder) -> Results:
    """Return the figures of every measurement in a run folder.

    One measurement's rows are in memory at a time.

    Raises:
        RunFolderError: a file is broken, or no target was measured at all.
    """
    plan = run.plan()
    plan = dataclasses.replace(plan, command=masked(plan.command))
    try:
        source = f"{run.path / 'plan.json'}: thresholds"
        thresholds = thresholds_of({"thresholds": list(plan.thresholds)}, source=source)
    except ConfigurationError as error:
        raise RunFolderError(str(error)) from None
    levels: dict[str, tuple[LevelResult, ...]] = {}
    verdicts: list[Verdict] = []
    for planned in plan.targets:
        levels[planned.name], judged = _levels_of(run, plan, planned, thresholds)
        verdicts += judged
    measured = {name: of for name, of in levels.items() if any(each.repeats for each in of)}
    reference = reference_level(plan.levels, measured)
    if reference is None:
        raise RunFolderError(f"{run.path}: the run was stopped before any target was measured")
    absent = [
        Absent(name=name, reason=each.why_not, evidence=each.evidence)
        for name, of in levels.items()
        for each in of
        if each.level == reference and not each.repeats
    ]
    results = Results(
        plan=plan,
        machine=run.machine(),
        targets=(),
        absent=(*plan.absent, *absent),
        reference=reference,
        levels=measured,
        knees={name: knee_of(of) for name, of in measured.items()},
        sweeps=sweeps_of(plan, levels),
        thresholds=thresholds,
        verdicts=tuple(verdicts),
        folder=str(run.path),
    )
    return results.at(reference)


def _levels_of(
    run: RunFolder, plan: Plan, planned: PlannedTarget, thresholds: Sequence[Threshold]
) -> tuple[tuple[LevelResult, ...], list[Verdict]]:
    """Return the results of one target at every load, and the thresholds' verdicts on them."""
    levels: list[LevelResult] = []
    verdicts: list[Verdict] = []
    last_ended: Level | None = None
    selectors = [each.selector for each in thresholds if each.selector is not None]
    for level in plan.levels:
        repeats: list[TargetResult] = []
        # The threshold that ended a repeat here, measured or still in its warm-up.
        aborted_by, failed = "", None
        for number in range(1, plan.repeat + 1):
            step = Step(target=planned.name, level=level, repeat=number)
            folder = run.step(plan, step)
            window = folder.window()
            if window is not None:
                aborted_by = aborted_by or window.aborted_by
                failed = failed or (window if window.failure else None)
                if window.to > window.from_:
                    repeats.append(
                        target_result(plan, planned, step, folder, window, selectors=selectors)
                    )
        judged: tuple[Verdict, ...] = ()
        if repeats or aborted_by:
            load = level.name if len(plan.levels) > 1 else ""
            judged = _verdicts(planned, load, repeats, thresholds, has_aborted=bool(aborted_by))
            verdicts += judged
        if repeats:
            levels.append(level_result(level, repeats, judged))
        else:
            why = STOPPED
            if failed:
                why = f"it failed: {failed.failure}"
            elif aborted_by:
                why = f"ended in the warm-up: {aborted_by}"
            elif last_ended:
                why = f"skipped, because {last_ended.name} ended early"
            evidence = failed.evidence if failed else None
            levels.append(
                LevelResult(level=level, repeats=(), spread={}, why_not=why, evidence=evidence)
            )
        last_ended = level if aborted_by else last_ended
    return tuple(levels), verdicts


def _verdicts(
    planned: PlannedTarget,
    load: str,
    repeats: Sequence[TargetResult],
    thresholds: Sequence[Threshold],
    *,
    has_aborted: bool,
) -> tuple[Verdict, ...]:
    """Return the verdicts on one target at one load."""
    figures = {
        # The metric of a figure stands before the requests that it is about.
        name: of.high if name.partition("{")[0] in HIGHEST else of.median
        for name, of in spread_of(repeats).items()
    }
    unseen_s = max((repeat.connections.unseen_s for repeat in repeats), default=0.0)
    # A deployed target is never stopped, so it cannot leave connections behind.
    missing = {"db.left_over"} if planned.url is not None else set()
    missing |= set() if planned.kind == "lambda" else {"lambda.cold_starts"}
    reasons = {}
    unreported = "its processes reported no checkout of SQLAlchemy's pool"
    if planned.url is not None:
        unreported = "only a target that the run has started reports it"
    if any(repeat.connections.peak is None for repeat in repeats):
        unknown = "no connection was recognised as the target's"
        reasons = {t.key: unknown for t in thresholds if t.metric.startswith("db.")}
    if any(repeat.latency_ms is None for repeat in repeats):
        unanswered = "no request was answered without an error"
        reasons |= {t.key: unanswered for t in thresholds if t.metric.startswith("http.")}
    else:
        known = {name for repeat in repeats for name in repeat.names}
        reasons |= why_not_selected(thresholds, sorted(known))
    reasons |= dict.fromkeys(OF_HOLDS, unreported)
    verdicts = with_unseen(
        check_all(
            thresholds,
            planned.name,
            figures,
            frozenset(missing),
            load=load,
            reasons=reasons,
        ),
        unseen_s,
    )
    if not has_aborted or any(not verdict.ok for verdict in verdicts):
        return verdicts
    # A measurement that a threshold ended does not pass: its figures at the planned end are
    # unknown.
    return tuple(
        dataclasses.replace(v, value=None, status="unknown", reason="it ended the measurement")
        if v.threshold.abort and v.status == "passed"
        else v
        for v in verdicts
    )


# -- results.json ---------------------------------------------------------------------------

_NOT_IN_REPEATS = ("kind", "preset", "url", "spread", "finding", "load_finding", "level")
"""Keys of the target, which its repeats leave out."""


def results_json(results: Results) -> dict[str, Any]:
    """Return what results.json holds; docs/results.md describes it."""
    plan = {k: v for k, v in to_json(results.plan).items() if k not in ("absent", "schema")}
    for target in plan["targets"]:
        target["url"] = origin(target["url"]) if target["url"] else None
    levels: dict[str, list[dict[str, Any]]] = {}
    for name, of in results.levels.items():
        levels[name] = []
        for each in of:
            repeats = [_target_json(repeat) for repeat in each.repeats]
            levels[name].append(
                {
                    "name": each.level.name,
                    **to_json(each.level),
                    "offered_per_s": each.level.offered_per_s,
                    "held": each.sustained,
                    "why_not": each.why_not,
                    "spread": _rounded(each.spread),
                    "repeats": [
                        {k: v for k, v in repeat.items() if k not in _NOT_IN_REPEATS}
                        for repeat in repeats
                    ],
                }
            )
    knees = {
        name: knee
        and {
            "level": knee.level.name,
            "answered_per_s": round(knee.answered_per_s, 3),
            "latency_ms": round(knee.latency_ms, 3),
        }
        for name, knee in results.knees.items()
    }
    thresholds = [
        {
            "threshold": verdict.threshold.expression,
            "target": verdict.target,
            "load": verdict.load,
            "value": _rounded(verdict.value),
            "status": verdict.status,
            "words": verdict.message,
        }
        for verdict in results.verdicts
    ]
    return {
        "schema": SCHEMA,
        "created": results.plan.created,
        "command": results.plan.command,
        "headline": results.headline,
        "plan": plan,
        "machine": to_json(results.machine),
        "absent": [to_json(absent) for absent in results.absent],
        "reference": results.reference.name,
        "targets": {target.name: _target_json(target) for target in results.targets},
        "levels": levels,
        "knees": knees,
        "advice": {name: _rounded(to_json(one)) for name, one in results.advice.items()},
        "sweeps": [_rounded(_sweep_json(sweep)) for sweep in results.sweeps],
        "thresholds": thresholds,
    }


def _sweep_json(sweep: Sweep) -> dict[str, Any]:
    return {
        **to_json(sweep),
        "level": sweep.level.name,
        "points": [to_json(point) for point in sweep.points],
        "knee": sweep.knee and sweep.knee.name,
    }


def _target_json(target: TargetResult) -> dict[str, Any]:
    values: dict[str, Any] = _rounded(dataclasses.asdict(target))
    del values["name"], values["step"], values["figures"], values["names"]
    values["in_time"] = target.in_time
    if target.load is not None:
        values["load"] = _rounded(target.load.to_json())
    return {**values, "level": target.step.level.name, "repeat": target.step.repeat}


def _rounded(value: Any) -> Any:
    """Return a value cut to what was measured: a microsecond, a thousandth of a core."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
