"""A measured run held against the ceilings: what was open at most, and what may be open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolkit.compare.results.files import read_json
from poolkit.compare.results.run_folder import RunFolder
from poolkit.errors import RunFolderError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from poolkit.budget.model import Service
    from poolkit.budget.verdict import Budget


@dataclass(frozen=True, kw_only=True)
class Held:
    """One target of a run against the service with its preset; None where nothing is known."""

    target: str
    peak: int
    service: str = ""
    instances: int | None = None
    allowed: int | None = None
    """What the service's numbers allow the processes that the run had."""
    note: str = ""

    @property
    def is_within(self) -> bool:
        """False if more was open than the ceiling says; an unknown ceiling is not broken."""
        return self.allowed is None or self.peak <= self.allowed

    def __str__(self) -> str:
        if self.note:
            return f"{self.target}: {self.note}"
        of = "?" if self.allowed is None else f"{self.allowed:,}"
        verdict = "within" if self.is_within else "ABOVE"
        unknown = "" if self.allowed is not None else ", and the ceiling is not known"
        processes = "" if self.instances is None else f" with {self.instances} process(es)"
        return (
            f"{self.target}: {self.peak:,} open at most{processes}, {verdict} the {of} that "
            f"{self.service} allows{unknown}"
        )


def check_run(budget: Budget, path: Path) -> tuple[Held, ...]:
    """Hold a run's peaks against the ceilings of the services with the same preset.

    With several loads, a target's peak is its highest at any of them.

    Raises:
        RunFolderError: it is no run, it has no results, or no target of it is in the budget.
    """
    run = RunFolder.open(path)
    presets = {target.name: target.preset for target in run.plan().targets}
    found = read_json(path / "results.json")
    results = found.get("targets")
    if not isinstance(results, dict):
        raise RunFolderError(
            f"{path / 'results.json'} has no targets; make it with: poolkit report {path}"
        )
    held = tuple(_held(budget, _fullest(results, found.get("levels")), presets))
    if not any(each.service for each in held):
        names = ", ".join(sorted({service.target for service in budget.services} - {""})) or "none"
        raise RunFolderError(
            f"{path}: no target of the run has the preset of a service in the templates ({names})"
        )
    return held


def _fullest(results: Mapping[str, Any], levels: Any) -> dict[str, Any]:
    """Return of each target the measurement with the highest peak, at whatever load."""
    every = {name: [at_reference] for name, at_reference in results.items()}
    # A run of an older poolkit has one load and no such key.
    for name, of_target in (levels or {}).items():
        every.setdefault(name, []).extend(r for level in of_target for r in level["repeats"])
    return {name: max(of, key=lambda each: _peak(each) or 0) for name, of in every.items() if of}


def _peak(found: Any) -> int | None:
    peak = found.get("connections", {}).get("peak") if isinstance(found, dict) else None
    return peak if isinstance(peak, int) else None


def _held(budget: Budget, results: Mapping[str, Any], presets: Mapping[str, str]) -> Iterator[Held]:
    for name, found in results.items():
        peak = _peak(found)
        services = [each for each in budget.services if each.target == presets.get(name, name)]
        if peak is None:
            yield Held(target=name, peak=0, note="no peak was measured")
            continue
        if not services:
            yield Held(target=name, peak=peak, note="no service in the templates has its preset")
        for service in services:
            instances = found.get("instances") or found.get("execution_environments")
            allowed = _allowed(service, instances)
            yield Held(
                target=name, service=service.name, peak=peak, instances=instances, allowed=allowed
            )


def _allowed(service: Service, instances: Any) -> int | None:
    """Return what so many processes may hold, and never more than all of the service may."""
    ceiling, each = service.ceiling, service.per_process
    if not isinstance(instances, int) or each is None:
        return ceiling
    own = instances * each
    return own if ceiling is None else min(own, ceiling)
