"""The plan of a run: its targets, levels, database and limits."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from poolkit.activity.server import ActivityConnection
from poolkit.compare.plan.checks import (
    check_answers,
    check_database_host,
    check_interpreters,
    check_locustfiles,
    check_migrations,
    missing_runtime,
)
from poolkit.compare.plan.targets import (
    check_pool_sizes,
    choose,
    deployed_of,
    targets_of,
    with_pool_sizes,
    with_pools,
)
from poolkit.compare.results.run_folder import Absent, Plan, PlannedTarget
from poolkit.compare.results.wording import count, join
from poolkit.config.presets import preset
from poolkit.config.settings import preset_from_environ
from poolkit.errors import ConfigurationError, PoolkitError
from poolkit.local.pgbouncer import DEFAULT_POOL_SIZE, INSTALL_PGBOUNCER, find_pgbouncer
from poolkit.masking import masked
from poolkit.output_file import check_output_file
from poolkit.shim.records import NOW
from poolkit.thresholds import Threshold, check_targets, check_without_tags, thresholds_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.compare.plan.options import Options
    from poolkit.compare.plan.targets import Deployed, Target
    from poolkit.compare.results.run_folder import Level
    from poolkit.config.presets import EnginePreset
    from poolkit.project import Project

SPARE_CONNECTIONS = 3
"""Kept free for the sampler, an operator, and health checks."""
STEP_S = 5.0
"""About the time to start and stop a target, in addition to its load."""
START_S = 10.0
"""The same for the servers, and for the report."""


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One measurement: a target with its limits at a level, in one repetition."""

    target: Target
    planned: PlannedTarget
    """The target's record, with the limits at this level."""
    level: Level
    label: str
    """The name of its logs."""
    title: str
    """Its name for people."""
    brief: str
    """The same, short enough for one line of a terminal."""


@dataclass(frozen=True, kw_only=True)
class CheckedPlan:
    """The plan as plan.json records it, and what a record leaves out.

    The record has neither passwords nor the commands that start a target.
    """

    record: Plan
    options: Options
    local: tuple[Target, ...]
    """The targets that the run starts itself."""
    deployed: tuple[Deployed, ...] = ()
    thresholds: tuple[Threshold, ...] = ()

    @property
    def seconds(self) -> float:
        """About the time that the run will take."""
        record = self.record
        return START_S + len(record.steps) * (record.warm_up_s + record.duration_s + STEP_S)

    def steps(self) -> list[PlannedStep]:
        """Return the measurements in the order of the record."""
        local = {target.name: target for target in self.local}
        targets = {**local, **{one.target.name: one.target for one in self.deployed}}
        records = {planned.name: planned for planned in self.record.targets}
        found = []
        for step in self.record.steps:
            label = title = brief = step.target
            if len(self.record.levels) > 1:
                label = f"{label}-{step.level.slug}"
                title = brief = f"{title}, {step.level.name}"
            if self.record.repeat > 1:
                label = f"{label}-{step.repeat}"
                title, brief = f"{title}, round {step.repeat}", f"{brief} #{step.repeat}"
            planned = records[step.target]
            if step.target in local:
                limits = limits_of(local[step.target], step.level, self.options)
                planned = replace(planned, **limits._asdict())
            found.append(
                PlannedStep(
                    target=targets[step.target],
                    planned=planned,
                    level=step.level,
                    label=label,
                    title=title,
                    brief=brief,
                )
            )
        return found


class Limits(NamedTuple):
    """The most instances and connections of a target at one level."""

    instances_max: int
    ceiling: int | None
    """None for a target without a preset: its engine's limits are its own."""
    ceiling_reason: str


def limits_of(target: Target, level: Level, options: Options) -> Limits:
    """Return the limits of a target that the run starts."""
    chosen = _preset_of(target, options.environment)
    each = 1 if chosen is None else chosen.max_connections_per_process
    usable = options.usable_connections
    if target.kind == "lambda":
        instances = target.reserved_concurrency
        if instances == "fit":
            instances = max(1, min(level.users, (usable - SPARE_CONNECTIONS) // each))
        elif instances is None:
            instances = level.users
        reason = f"concurrency {instances} x {each}"
    else:
        instances = target.processes
        # A prefork child runs one task at a time: a pool of 1+0.
        each = 1 if target.kind == "worker" else each
        reason = f"{instances} {'process' if instances == 1 else 'processes'} x {each}"
    if chosen is None:
        return Limits(instances, None, "the target has no preset")
    ceiling = instances * each
    if target.through == "pgbouncer":
        # The server sees the pooler's connections.
        pool_size = pool_size_within(usable)
        if ceiling <= pool_size:
            reason = f"{reason}, within PgBouncer's pool of {pool_size}"
        else:
            ceiling, reason = pool_size, f"PgBouncer's pool, which {reason} share"
    return Limits(instances, ceiling, reason)


def pool_size_within(usable_connections: int) -> int:
    """Return the number of connections that PgBouncer may open to a server with this many."""
    return max(1, min(DEFAULT_POOL_SIZE, usable_connections - SPARE_CONNECTIONS))


def _preset_of(target: Target, environment: str) -> EnginePreset | None:
    """Return the preset with the overrides of the target's own table, or None if it has none.

    Raises:
        ConfigurationError: a variable in `env` is wrong.
        ValueError: there is no such environment.
    """
    if target.preset is None:
        return None
    overrides = {name: text for name, text in target.env.items() if name.startswith("POOLKIT_")}
    if not overrides:
        return preset(target.preset, environment)
    variables = {"POOLKIT_TARGET": target.preset, "POOLKIT_ENVIRONMENT": environment, **overrides}
    try:
        return preset_from_environ(variables)
    except ConfigurationError as error:
        raise ConfigurationError(f"[tool.poolkit.targets.{target.name}] env: {error}") from None


def plan_run(project: Project, options: Options) -> CheckedPlan:
    """Return the plan, after every check that is possible before anything starts.

    Raises:
        ConfigurationError: an unknown target, a wrong table, a locustfile that does not
            import, a wrong threshold, a deployed target that does not answer.
        DatabaseUnavailable, MonitoringNotAllowed: the server of --database-url cannot be
            reached, or may not be sampled.
        ValueError: there is no such environment.
    """
    tables = targets_of(project, options.locustfile)
    deployed = deployed_of(options.deployed, tables, options.marks)
    # With --target alone, no local target is wanted.
    local = choose(tables, options.targets) if options.targets or not deployed else []
    local = _with_other_pools(local, options)
    for name in {target.name for target in local} & {one.target.name for one in deployed}:
        raise ConfigurationError(
            f"{name} is in --targets and in --target; give the deployed one a label: "
            f"--target {name}@LABEL=URL"
        )
    thresholds = thresholds_of(project.table, options.thresholds)
    names = [target.name for target in (*local, *(each.target for each in deployed))]
    check_targets(thresholds, [*tables, *names])
    check_without_tags(thresholds)
    if deployed and options.database_url is None:
        raise ConfigurationError(
            "--target needs --database-url: that is where the connections of deployed targets "
            "are counted; a role with pg_monitor is enough"
        )
    if options.junit is not None:
        check_output_file("--junit", options.junit, makes_folders=False)
    for each in deployed:
        check_answers(each, agreed=options.agreed)
    options, deployed = with_server_limits(options, deployed, local)
    check_pool_sizes(local, options.usable_connections - SPARE_CONNECTIONS)
    if options.local_database_url is not None:
        check_database_host(options.local_database_url, agreed=options.agreed)
    plan = make_plan(local, options, deployed=deployed, thresholds=thresholds)
    if local:
        check_migrations(project)
        check_interpreters(project, plan.local)
    check_locustfiles(
        [project.root / planned.locustfile for planned in plan.record.targets], project.root
    )
    return plan


def _with_other_pools(local: list[Target], options: Options) -> list[Target]:
    """Return the targets that the run starts, once with each pool of --pool or --pool-sizes."""
    for option, values in (("--pool", options.pools), ("--pool-sizes", options.pool_sizes)):
        if values and not local:
            raise ConfigurationError(f"{option} is for targets that this run starts; add --targets")
    if options.pools and options.pool_sizes:
        raise ConfigurationError(
            "--pool and --pool-sizes both change the pool: give one of the two"
        )
    if options.pools:
        return with_pools(local, options.pools)
    if options.app:
        local = [replace(target, preset=None, pool=NOW) for target in local]
    return with_pool_sizes(local, options.pool_sizes) if options.pool_sizes else local


def with_server_limits(
    options: Options, deployed: tuple[Deployed, ...], local: Sequence[Target]
) -> tuple[Options, tuple[Deployed, ...]]:
    """Return options and deployed targets with the limits of the server of --database-url."""
    if options.database_url is None:
        return options, deployed
    try:
        with ActivityConnection(options.database_url) as activity:
            limits = activity.connect()
    except PoolkitError as error:
        raise type(error)(f"--database-url: {error}") from None
    most, usable = limits.max_connections, limits.usable
    if not (deployed and local):
        options = replace(options, max_connections=most, reserve=most - usable)
    return options, tuple(
        replace(each, max_connections=most, usable_connections=usable) for each in deployed
    )


def make_plan(
    targets: Sequence[Target],
    options: Options,
    *,
    deployed: Sequence[Deployed] = (),
    thresholds: tuple[Threshold, ...] = (),
    may_be_empty: bool = False,
) -> CheckedPlan:
    """Return the plan for these targets.

    Args:
        targets: the targets to start.
        options: the command line's; max_connections is the limit of the targets' database.
        deployed: the targets that are deployed already.
        thresholds: what must hold.
        may_be_empty: a plan without any target is of use, as for `poolkit up`.

    Raises:
        ConfigurationError: a target that was named cannot run here, or no target can.
        ValueError: there is no such environment.
    """
    absent, local, planned = [], [], []
    for target in targets:
        reason = ""
        if target.through == "pgbouncer" and options.local_database_url is not None:
            reason = "PgBouncer runs before the embedded PostgreSQL only, not before --database-url"
        elif target.through == "pgbouncer" and find_pgbouncer() is None:
            reason = f"pgbouncer is not on PATH; {INSTALL_PGBOUNCER}"
        elif target.kind == "lambda":
            reason = missing_runtime(target)
        if reason and target.name in options.targets:
            raise ConfigurationError(f"target {target.name} cannot run: {reason}")
        if reason:
            absent.append(Absent(name=target.name, reason=reason))
            continue
        local.append(target)
        limits = limits_of(target, options.levels[-1], options)
        planned.append(replace(_record_of(target, options), **limits._asdict()))
    # Two labels of one table have connections of one name, also if one of them has marks.
    sharing = Counter(_record_of(each.target, options).preset for each in deployed)
    planned += [
        replace(
            _record_of(each.target, options),
            marks=tuple(f"{mark.kind}:{mark.value}" for mark in each.marks),
            is_known_by_preset=(
                not each.marks and sharing[_record_of(each.target, options).preset] == 1
            ),
            max_connections=each.max_connections,
            usable_connections=each.usable_connections,
            url=masked(each.url),
        )
        for each in deployed
    ]
    if not planned and not may_be_empty:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in absent)
        raise ConfigurationError(f"none of the targets can run here: {reasons}")
    names = [target.name for target in planned]
    record = Plan(
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
        targets=tuple(planned),
        absent=tuple(absent),
        thresholds=tuple(_alone(thresholds, names)),
    )
    return CheckedPlan(
        record=record,
        options=options,
        local=tuple(local),
        deployed=tuple(deployed),
        thresholds=thresholds,
    )


def _record_of(target: Target, options: Options) -> PlannedTarget:
    """Return the record of a target without its limits."""
    chosen = _preset_of(target, options.environment)
    return PlannedTarget(
        name=target.name,
        kind=target.kind,
        # Without a preset its connections carry its own name.
        preset=target.name if chosen is None else chosen.target,
        locustfile=target.locustfile,
        preset_fields={} if chosen is None else asdict(chosen),
        max_connections=options.max_connections,
        usable_connections=options.usable_connections,
        through=target.through,
        pool=target.pool,
        swept_from=target.swept_from,
        pool_size=None if target.pool_size is None else target.pool_size.pool_size,
        max_overflow=None if target.pool_size is None else target.pool_size.max_overflow,
    )


def _alone(thresholds: Sequence[Threshold], names: Sequence[str]) -> Iterator[str]:
    """Yield texts that hold without the thresholds that take precedence over one of them."""
    for threshold in thresholds:
        targets = tuple(name for name in names if threshold.applies_to(name))
        if targets and threshold.except_for:
            yield str(replace(threshold, targets=targets))
        elif targets:
            same = Threshold.parse(threshold.text) == threshold
            yield threshold.text if same else str(threshold)


def announcement(plan: CheckedPlan) -> str:
    """Return the load, the targets and the time that the run will take, a line each."""
    record, options = plan.record, plan.options
    if options.rates:
        rates = join([f"{level.arrival_rate:g}" for level in record.levels])
        load = f"open loop, {rates} {options.arrivals} arrivals/s"
    else:
        users = join([f"{level.users:,}" for level in record.levels])
        noun = "user" if users == "1" else "users"
        load = f"{users} {noun}, {options.rate_per_user:g} tasks/s each"
    names = ", ".join(target.name for target in record.targets)
    limit = f"max_connections {record.max_connections}"
    lines = [f"{load}, preset numbers of {record.environment}, {limit}: {names}"]
    if not options.distance.is_none:
        lines.append(f"distance to the database: {options.distance} (--rtt, --no-tls)")
    lines += [
        f"{target.name} is deployed at {target.url}, its database accepts "
        f"{target.max_connections} connections and is only sampled"
        for target in record.targets
        if target.url is not None
    ]
    lines += [
        f"{target.name} has connections of the same name as another target: their number is not known "
        f"without --connections {target.name}=user:ROLE"
        for target in record.targets
        if not target.is_known_by_preset and not target.marks
    ]
    lines += absences(plan)
    measurements = count(len(record.steps), "measurement")
    rounds = f", in {record.repeat} rounds" if record.repeat > 1 else ""
    minutes = ceil(plan.seconds / 60)
    duration = f"{ceil(plan.seconds)} s" if plan.seconds < 120 else f"{minutes} min"
    each_s = record.warm_up_s + record.duration_s
    lines.append(f"{measurements} of {each_s:g} s{rounds}: about {duration} in all")
    return "\n".join(lines)


def absences(plan: CheckedPlan) -> list[str]:
    """Return a line for each target that cannot run here."""
    return [f"{one.name} is left out: {one.reason}" for one in plan.record.absent]
