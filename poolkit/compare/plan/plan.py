"""The plan of a run: which targets, at which loads, how often, on which database."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from poolkit.compare.results import run_folder
from poolkit.compare.results.run_folder import Absent
from poolkit.compare.results.wording import without_passwords
from poolkit.config.presets import preset
from poolkit.config.settings import preset_from_environ
from poolkit.errors import ConfigurationError
from poolkit.local.pgbouncer import DEFAULT_POOL_SIZE, find_pgbouncer
from poolkit.thresholds import Threshold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolkit.compare.plan.deployed import Deployed
    from poolkit.compare.plan.options import Options
    from poolkit.compare.plan.targets import Target
    from poolkit.compare.results.run_folder import Level
    from poolkit.config.presets import EnginePreset

# Kept free for the sampler, an operator, and whoever asks whether the server is there.
SPARE_CONNECTIONS = 3
STEP_S = 5.0
"""What starting and stopping a target takes on top of its load, about."""
START_S = 10.0
"""The same for the servers, and for the report."""


def pool_size_within(usable_connections: int) -> int:
    """Return how many connections PgBouncer may open to a server that leaves it so many."""
    return max(1, min(DEFAULT_POOL_SIZE, usable_connections - SPARE_CONNECTIONS))


@dataclass(frozen=True, kw_only=True)
class PlannedTarget:
    """A target, its preset, how many instances it may have, and its connection ceiling.

    The limits are those at the highest level; `at` gives those of another.
    """

    target: Target
    preset: EnginePreset
    max_connections: int
    """Of the database that it uses."""
    usable_connections: int
    """The same less the server's reserve: what the application's role can have."""
    url: str | None = None
    """Where it was deployed before the run; none where the run starts it."""
    instances_max: int | None = None
    ceiling: int | None = None
    ceiling_reason: str = ""

    def at(self, level: Level) -> PlannedTarget:
        """Return it with its limits at a level; of a deployed one none are known."""
        if self.url is not None:
            return self
        is_function = self.target.kind == "lambda"
        limited = self._function_at(level) if is_function else self._with_processes()
        return _behind_pooler(limited) if self.target.through == "pgbouncer" else limited

    def _with_processes(self) -> PlannedTarget:
        # A prefork child runs one task at a time: a pool of 1+0.
        each = 1 if self.target.kind == "worker" else self.preset.max_connections_per_process
        processes = self.target.processes
        return replace(
            self,
            instances_max=processes,
            ceiling=processes * each,
            ceiling_reason=f"{_count(processes, 'process', 'processes')} x {each}",
        )

    def _function_at(self, level: Level) -> PlannedTarget:
        each = self.preset.max_connections_per_process
        reserved = self.target.reserved_concurrency
        if reserved == "fit":
            room = (self.usable_connections - SPARE_CONNECTIONS) // each
            reserved = max(1, min(level.users, room))
        elif reserved is None:
            reserved = level.users
        return replace(
            self,
            instances_max=reserved,
            ceiling=reserved * each,
            ceiling_reason=f"concurrency {reserved} x {each}",
        )

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
            url=None if self.url is None else without_passwords(self.url),
            max_connections=self.max_connections,
            usable_connections=self.usable_connections,
        )


def _behind_pooler(planned: PlannedTarget) -> PlannedTarget:
    """Return it with a ceiling of what the server sees: the pooler's connections."""
    pool_size = pool_size_within(planned.usable_connections)
    if planned.ceiling is None or planned.ceiling <= pool_size:
        reason = f"{planned.ceiling_reason}, within PgBouncer's pool of {pool_size}"
        return replace(planned, ceiling_reason=reason)
    reason = f"PgBouncer's pool, which {planned.ceiling_reason} share"
    return replace(planned, ceiling=pool_size, ceiling_reason=reason)


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One measurement: a target with its limits at a level, for the first, second ... time."""

    planned: PlannedTarget
    level: Level
    repeat: int
    label: str
    """What its logs are called."""
    words: str
    """What a person is told."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do, as plan.json keeps it."""

    options: Options
    targets: tuple[PlannedTarget, ...]
    absent: tuple[tuple[str, str], ...] = ()
    """Targets that cannot run here, each with its reason."""
    thresholds: tuple[Threshold, ...] = ()

    @property
    def local(self) -> tuple[PlannedTarget, ...]:
        """The targets that the run starts itself."""
        return tuple(planned for planned in self.targets if planned.url is None)

    @property
    def deployed(self) -> tuple[PlannedTarget, ...]:
        """The others."""
        return tuple(planned for planned in self.targets if planned.url is not None)

    @property
    def seconds(self) -> float:
        """How long it will take in all, about."""
        options = self.options
        steps = len(self.targets) * len(options.levels) * options.repeat
        return START_S + steps * (options.warm_up_s + options.duration_s + STEP_S)

    def steps(self, record: run_folder.Plan) -> list[PlannedStep]:
        """Return the measurements in their order, which is that of the plan's record."""
        by_name = {planned.target.name: planned for planned in self.targets}
        return [self._step(by_name[step.target], step) for step in record.steps]

    def _step(self, planned: PlannedTarget, step: run_folder.Step) -> PlannedStep:
        label = words = step.target
        if len(self.options.levels) > 1:
            label, words = f"{label}-{step.level.slug}", f"{words}, {step.level.name}"
        if self.options.repeat > 1:
            label, words = f"{label}-{step.repeat}", f"{words}, round {step.repeat}"
        return PlannedStep(
            planned=planned.at(step.level),
            level=step.level,
            repeat=step.repeat,
            label=label,
            words=words,
        )

    def record(self) -> run_folder.Plan:
        """Return it as plan.json has it."""
        options = self.options
        return run_folder.Plan(
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            command=options.command,
            environment=options.environment,
            levels=options.levels,
            repeat=options.repeat,
            duration_s=options.duration_s,
            warm_up_s=options.warm_up_s,
            max_connections=options.max_connections,
            usable_connections=options.usable_connections,
            interval_s=options.interval_s,
            targets=tuple(planned.record() for planned in self.targets),
            absent=tuple(Absent(name=name, reason=reason) for name, reason in self.absent),
            thresholds=tuple(self._text(t) for t in self.thresholds if self._concerns(t)),
        )

    def _concerns(self, threshold: Threshold) -> bool:
        return any(threshold.applies_to(planned.target.name) for planned in self.targets)

    def _text(self, threshold: Threshold) -> str:
        """Return a text that stands for a threshold alone, without those that go before it."""
        if threshold.except_for:
            names = (planned.target.name for planned in self.targets)
            targets = tuple(name for name in names if threshold.applies_to(name))
            return str(replace(threshold, targets=targets))
        same = Threshold.parse(threshold.text) == threshold
        return threshold.text if same else str(threshold)


def make_plan(
    targets: Sequence[Target],
    options: Options,
    *,
    deployed: Sequence[Deployed] = (),
    thresholds: tuple[Threshold, ...] = (),
) -> Plan:
    """Return the plan for these targets.

    Args:
        targets: those to start.
        options: what the command line says; its max_connections are those of their database.
        deployed: those that are there already.
        thresholds: what is to hold.

    Raises:
        ConfigurationError: a target that was asked for by name cannot run here, or no
            target can.
        ValueError: there is no such environment.
    """
    absent = {target.name: reason for target in targets if (reason := _why_absent(target, options))}
    for name in options.targets:
        if name in absent:
            raise ConfigurationError(f"target {name} cannot run: {absent[name]}")
    planned = [_planned(target, options) for target in targets if target.name not in absent]
    planned += [_planned_deployed(each, options) for each in deployed]
    if not planned:
        raise ConfigurationError("none of the targets can run here")
    return Plan(
        options=options,
        targets=tuple(planned),
        absent=tuple(absent.items()),
        thresholds=thresholds,
    )


def _why_absent(target: Target, options: Options) -> str | None:
    if target.through != "pgbouncer":
        return None
    if options.local_database_url is not None:
        return "PgBouncer is put before the embedded PostgreSQL only, not before --database-url"
    if find_pgbouncer() is None:
        return "pgbouncer is not on PATH (Debian, Ubuntu: apt-get install pgbouncer)"
    return None


def _planned(target: Target, options: Options) -> PlannedTarget:
    planned = PlannedTarget(
        target=target,
        preset=_preset_of(target, options.environment),
        max_connections=options.max_connections,
        usable_connections=options.usable_connections,
    )
    return planned.at(options.levels[-1])


def _planned_deployed(deployed: Deployed, options: Options) -> PlannedTarget:
    return PlannedTarget(
        target=deployed.target,
        preset=_preset_of(deployed.target, options.environment),
        max_connections=deployed.max_connections,
        usable_connections=deployed.usable_connections,
        url=deployed.url,
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
        **changes,
    }
    try:
        return preset_from_environ(variables)
    except ConfigurationError as error:
        raise ConfigurationError(f"[tool.poolkit.targets.{target.name}] env: {error}") from None


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
