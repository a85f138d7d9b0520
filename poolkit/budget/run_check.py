"""A measured run compared with the ceilings: the peak of open connections against the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.budget.verdict import Check
from poolkit.compare.results.files import read_json
from poolkit.compare.results.run_folder import RunFolder
from poolkit.errors import RunFolderError

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.budget.model import Service
    from poolkit.budget.verdict import Budgets


def check_run(budgets: Budgets, path: Path) -> list[Check]:
    """Compare a run's peaks with the ceilings of the services with the same preset.

    With several loads, a target's peak is its highest at any of them.

    Raises:
        RunFolderError: it is no run, it has no results, or no target of it is in the budget.
    """
    presets = {target.name: target.preset for target in RunFolder.open(path).plan().targets}
    found = read_json(path / "results.json")
    if not isinstance(found.get("targets"), dict):
        raise RunFolderError(
            f"{path / 'results.json'} has no targets; write it with: poolkit report {path}"
        )
    measured = {name: [at_reference] for name, at_reference in found["targets"].items()}
    # A run of an older poolkit has one load and no levels.
    for name, levels in (found.get("levels") or {}).items():
        measured.setdefault(name, []).extend(each for one in levels for each in one["repeats"])
    every = {service.name: service for budget in budgets.each for service in budget.services}
    targets = {service.target for service in every.values()} - {""}
    if not targets & {presets.get(name, name) for name in measured}:
        raise RunFolderError(
            f"{path}: no target of the run has the preset of a service in the templates "
            f"({', '.join(sorted(targets)) or 'none'})"
        )
    checks: list[Check] = []
    for name, repeats in measured.items():
        fullest = max(repeats, key=lambda each: _peak(each) or 0, default=None)
        peak, preset = _peak(fullest), presets.get(name, name)
        if peak is None:
            checks.append(Check(f"{name}: no peak was measured"))
        elif preset not in targets:
            checks.append(Check(f"{name}: no service in the templates has its preset"))
        else:
            services = [each for each in every.values() if each.target == preset]
            checks += [_check(name, peak, fullest, service) for service in services]
    return checks


def _check(target: str, peak: int, measured: Any, service: Service) -> Check:
    """Return the comparison with one service, for as many processes as the run had."""
    instances = measured.get("instances") or measured.get("execution_environments")
    allowed, processes = service.ceiling, ""
    if isinstance(instances, int):
        processes = f" with {instances} process(es)"
        # The run may have had fewer instances than the service can have.
        own = None if service.per_process is None else instances * service.per_process
        allowed = min((each for each in (own, allowed) if each is not None), default=None)
    text = f"{target}: at most {peak:,} open{processes}"
    if allowed is None:
        return Check(f"{text}; the ceiling of {service.name} is unknown")
    is_within = peak <= allowed
    verdict = "within" if is_within else "ABOVE"
    return Check(f"{text}, {verdict} the {allowed:,} that {service.name} allows", is_within)


def _peak(found: Any) -> int | None:
    peak = found.get("connections", {}).get("peak") if isinstance(found, dict) else None
    return peak if isinstance(peak, int) else None
