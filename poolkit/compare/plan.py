"""The plan of a run: which targets, how much load, for how long, on which database."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from poolkit.compare import run_folder
from poolkit.compare.run_folder import Absent, Level
from poolkit.config.presets import preset
from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError
from poolkit.local.pgbouncer import find_pgbouncer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from poolkit.compare.targets import Target
    from poolkit.config.presets import EnginePreset

# Kept free for the sampler, an operator, and whoever asks whether the server is there.
SPARE_CONNECTIONS = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says. Times are in seconds, the rate is in tasks per second."""

    targets: tuple[str, ...] = ()
    users: int = 20
    rate_per_user: float = 2.0
    duration_s: float = 20.0
    warm_up_s: float = 4.0
    interval_s: float = 0.1
    environment: str = "prod"
    database_url: str | None = None
    max_connections: int = 100
    out: Path | None = None
    command: str = "poolkit compare"

    def __post_init__(self) -> None:
        """Refuse what no run can be made of."""
        _within("--users", self.users, 1, 10_000)
        _within("--rate", self.rate_per_user, 0.01, 1_000)
        _within("--duration", self.duration_s, 1, 86_400)
        _within("--warm-up", self.warm_up_s, 1, 3_600)
        _within("--max-connections", self.max_connections, 10, 10_000)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The loads to measure at, from the lowest."""
        return (Level(users=self.users, rate_per_user=self.rate_per_user),)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"{name} must be from {low:g} to {high:g}, not {value:g}")


@dataclass(frozen=True, kw_only=True)
class PlannedTarget:
    """A target, its preset, how many instances it may have, and its connection ceiling."""

    target: Target
    preset: EnginePreset
    instances_max: int
    ceiling: int
    ceiling_reason: str

    def record(self) -> run_folder.PlannedTarget:
        """Return it as plan.json has it."""
        return run_folder.PlannedTarget(
            name=self.target.name,
            kind=self.target.kind,
            preset=self.preset.target,
            locustfile=self.target.locustfile,
            preset_fields=asdict(self.preset),
            ceiling=self.ceiling,
            ceiling_reason=self.ceiling_reason,
            instances_max=self.instances_max,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do, as plan.json keeps it."""

    options: Options
    targets: tuple[PlannedTarget, ...]
    absent: tuple[tuple[str, str], ...] = ()
    """Targets that cannot run here, each with its reason."""

    @property
    def seconds(self) -> float:
        """How long the load will run in all; starts, stops and the report come on top."""
        return len(self.targets) * (self.options.warm_up_s + self.options.duration_s)

    def record(self) -> run_folder.Plan:
        """Return it as plan.json has it."""
        options = self.options
        return run_folder.Plan(
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            command=options.command,
            environment=options.environment,
            levels=options.levels,
            duration_s=options.duration_s,
            warm_up_s=options.warm_up_s,
            max_connections=options.max_connections,
            interval_s=options.interval_s,
            targets=tuple(planned.record() for planned in self.targets),
            absent=tuple(Absent(name=name, reason=reason) for name, reason in self.absent),
        )


def make_plan(targets: Sequence[Target], options: Options) -> Plan:
    """Return the plan for these targets.

    Raises:
        ConfigurationError: a target that was asked for by name cannot run here, or no
            target can.
        ValueError: there is no such environment.
    """
    absent = {target.name: reason for target in targets if (reason := _why_absent(target, options))}
    for name in options.targets:
        if name in absent:
            raise ConfigurationError(f"target {name} cannot run: {absent[name]}")
    present = [target for target in targets if target.name not in absent]
    if not present:
        raise ConfigurationError("none of the targets can run here")
    return Plan(
        options=options,
        targets=tuple(_planned(target, options) for target in present),
        absent=tuple(absent.items()),
    )


def _why_absent(target: Target, options: Options) -> str | None:
    if target.through != "pgbouncer":
        return None
    if options.database_url is not None:
        return "PgBouncer is put before the embedded PostgreSQL only, not before --database-url"
    if find_pgbouncer() is None:
        return "pgbouncer is not on PATH (Debian, Ubuntu: apt-get install pgbouncer)"
    return None


def _planned(target: Target, options: Options) -> PlannedTarget:
    chosen = _preset_of(target, options.environment)
    if target.kind == "lambda":
        return _planned_lambda(target, chosen, options)
    # A prefork child runs one task at a time: a pool of 1+0.
    each = 1 if target.kind == "worker" else chosen.max_connections_per_process
    return PlannedTarget(
        target=target,
        preset=chosen,
        instances_max=target.processes,
        ceiling=target.processes * each,
        ceiling_reason=f"{_count(target.processes, 'process', 'processes')} x {each}",
    )


def _preset_of(target: Target, environment: str) -> EnginePreset:
    """Return the preset with what the target's own table changes of it.

    Raises:
        ConfigurationError: a variable in `env` is wrong.
        ValueError: there is no such environment.
    """
    chosen = preset(target.preset, environment)
    changes = {name: text for name, text in target.env.items() if name.startswith("POOLKIT_")}
    if not changes:
        return chosen
    variables = {
        "POOLKIT_TARGET": target.preset,
        "POOLKIT_ENVIRONMENT": environment,
        # Where the database is has no say in it.
        "DATABASE_URL": "postgresql://127.0.0.1/any",
        **changes,
    }
    try:
        return Settings.from_environ(variables).preset
    except ConfigurationError as error:
        raise ConfigurationError(f"[tool.poolkit.targets.{target.name}] env: {error}") from None


def _planned_lambda(target: Target, chosen: EnginePreset, options: Options) -> PlannedTarget:
    each = chosen.max_connections_per_process
    reserved = target.reserved_concurrency
    if reserved == "fit":
        # 3 is PostgreSQL's own reserve (superuser_reserved_connections).
        room = (options.max_connections - 3 - SPARE_CONNECTIONS) // each
        reserved = max(1, min(options.users, room))
    elif reserved is None:
        reserved = options.users
    return PlannedTarget(
        target=target,
        preset=chosen,
        instances_max=reserved,
        ceiling=reserved * each,
        ceiling_reason=f"concurrency {reserved} x {each}",
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
