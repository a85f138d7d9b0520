"""A measured run compared with the ceilings: the peak of open connections against the limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolkit.compare.results.files import read_json
from poolkit.compare.results.run_folder import RunFolder
from poolkit.errors import RunFolderError

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.budget.verdict import Budget


@dataclass(frozen=True, kw_only=True)
class PeakCheck:
    """One target of a run compared with a service that has its preset."""

    target: str
    peak: int
    service: str = ""
    instances: int | None = None
    allowed: int | None = None
    """The limit for as many processes as the run had; None: unknown."""
    note: str = ""
    """Why there is nothing to compare."""

    @property
    def is_within(self) -> bool:
        """False if the peak is above the limit; an unknown limit cannot be exceeded."""
        return self.allowed is None or self.peak <= self.allowed

    def __str__(self) -> str:
        if self.note:
            return f"{self.target}: {self.note}"
        processes = "" if self.instances is None else f" with {self.instances} process(es)"
        peak = f"{self.target}: at most {self.peak:,} open{processes}"
        if self.allowed is None:
            return f"{peak}; the ceiling of {self.service} is unknown"
        verdict = "within" if self.is_within else "ABOVE"
        return f"{peak}, {verdict} the {self.allowed:,} that {self.service} allows"


def check_run(budget: Budget, path: Path) -> tuple[PeakCheck, ...]:
    """Compare a run's peaks with the ceilings of the services with the same preset.

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
            f"{path / 'results.json'} has no targets; write it with: poolkit report {path}"
        )
    every = {name: [at_reference] for name, at_reference in results.items()}
    # A run of an older poolkit has one load and no levels.
    for name, of_target in (found.get("levels") or {}).items():
        every.setdefault(name, []).extend(each for level in of_target for each in level["repeats"])
    fullest = {name: max(of, key=lambda each: _peak(each) or 0) for name, of in every.items() if of}
    checks: list[PeakCheck] = []
    for name, measured in fullest.items():
        peak = _peak(measured)
        services = [each for each in budget.services if each.target == presets.get(name, name)]
        if peak is None:
            checks.append(PeakCheck(target=name, peak=0, note="no peak was measured"))
            continue
        if not services:
            note = "no service in the templates has its preset"
            checks.append(PeakCheck(target=name, peak=peak, note=note))
        for service in services:
            instances = measured.get("instances") or measured.get("execution_environments")
            allowed = service.ceiling
            if isinstance(instances, int) and service.per_process is not None:
                # The run may have had fewer instances than the service can have.
                own = instances * service.per_process
                allowed = own if allowed is None else min(own, allowed)
            checks.append(
                PeakCheck(
                    target=name,
                    service=service.name,
                    peak=peak,
                    instances=instances,
                    allowed=allowed,
                )
            )
    if not any(each.service for each in checks):
        names = ", ".join(sorted({service.target for service in budget.services} - {""})) or "none"
        raise RunFolderError(
            f"{path}: no target of the run has the preset of a service in the templates ({names})"
        )
    return tuple(checks)


def _peak(found: Any) -> int | None:
    peak = found.get("connections", {}).get("peak") if isinstance(found, dict) else None
    return peak if isinstance(peak, int) else None
