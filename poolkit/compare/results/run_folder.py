"""A run folder: the plain files between the steps of `poolkit compare`.

docs/results.md describes every file. Moments are Unix times in seconds. Reading is strict about
existing files and tolerant of missing ones: a run that was stopped half-way has fewer files and
an incomplete last line, and is still a run.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping  # noqa: TC003  (the files module reads these annotations)
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from poolkit.compare.results.files import (
    as_text,
    from_json,
    read_json,
    read_rows,
    to_json,
    write_json,
)
from poolkit.errors import RunFolderError
from poolkit.loadtest.open_loop.report import LoopReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SCHEMA = 1
"""The version of all these files; a reader of another version refuses them."""

Owner: TypeAlias = Literal["target", "load", "other"]
"""Whose connection it is."""
By: TypeAlias = Literal["preset", "name", "address", "rest", "user", ""]
"""What its owner is known by: the name of an engine made from the preset, another name, the
addresses of the owner's sockets, that the server of the run has no other client, or its role."""

# -- plan.json, machine.json, window.json ---------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlannedTarget:
    """One target as it was planned, with its limits at the highest level."""

    name: str
    kind: str
    preset: str
    """The preset that the application is told to use; the target's name if it has none."""
    locustfile: str
    preset_fields: Mapping[str, Any] = field(default_factory=dict)
    ceiling: int | None = None
    """The most connections that the target can hold; None if unknown."""
    ceiling_reason: str = ""
    instances_max: int | None = None
    """The most processes or execution environments that may hold connections."""
    url: str | None = None
    """The URL of a deployed target, without passwords; None if the run starts the target."""
    max_connections: int | None = None
    """Of its database; the plan's, unless it was deployed."""
    usable_connections: int | None = None
    """The same less the server's reserve: the part for the application's role."""
    marks: tuple[str, ...] = ()
    """What the connections of a deployed target are known by: `name:...`, `user:...`, `address:...`."""
    is_known_by_preset: bool = True
    """Whether connections that carry the preset's name are this target's: not if another deployed
    target has that preset too, or if there are marks."""
    through: str = "postgresql"
    """`pgbouncer` if its connections go through that pooler."""
    pool: str = ""
    """What `--pool` asked for: `now`, or the name of a preset."""
    swept_from: str = ""
    """The target whose pool sizes are compared, for one of `--pool-sizes`."""
    pool_size: int | None = None
    """The size that `--pool-sizes` asked for."""
    max_overflow: int | None = None


@dataclass(frozen=True, kw_only=True)
class Level:
    """One load. Rates are in tasks per second."""

    users: int
    """Closed loop: their number. Open loop: the number that is ready from the start."""
    rate_per_user: float | None = None
    """Closed loop: the tasks that each user starts."""
    arrival_rate: float | None = None
    """Open loop: the tasks that start, regardless of the target; then there is no rate of a user."""
    arrivals: str = "constant"
    """Open loop: `constant` or `poisson`."""
    max_users: int | None = None
    """Open loop: the most users."""

    @property
    def is_open(self) -> bool:
        """True if tasks arrive regardless of the target."""
        return self.arrival_rate is not None

    @property
    def offered_per_s(self) -> float:
        """Tasks that start each second."""
        if self.arrival_rate is not None:
            return self.arrival_rate
        return self.users * (self.rate_per_user or 0.0)

    @property
    def name(self) -> str:
        """Its name in reports, such as `20 users` or `200/s`."""
        if self.arrival_rate is not None:
            return f"{self.arrival_rate:g}/s"
        return "1 user" if self.users == 1 else f"{self.users} users"

    @property
    def slug(self) -> str:
        """The same as part of a path."""
        return self.name.replace("/", "-per-").replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One measurement: a target at one of the plan's levels, in one repetition."""

    target: str
    level: Level
    repeat: int
    """From 1."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Quotations from the logs of a measurement that failed; paths are relative to the run's folder."""

    load_exception: str = ""
    """The first exception of the load, or its first failed request."""
    load_log: str = ""
    target_errors: tuple[str, ...] = ()
    """The last lines of the target's log that speak of an error."""
    target_log: str = ""


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A target that was not run or failed, and the reason."""

    name: str
    reason: str
    evidence: Evidence | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run: targets, loads and limits."""

    schema: int = SCHEMA
    created: str
    command: str
    environment: str
    levels: tuple[Level, ...]
    """From the lowest to the highest load."""
    repeat: int = 1
    """The number of measurements per target and level."""
    duration_s: float
    warm_up_s: float
    max_connections: int
    usable_connections: int | None = None
    """The same less the server's reserve; not in plans of older versions."""
    interval_s: float
    targets: tuple[PlannedTarget, ...]
    absent: tuple[Absent, ...] = ()
    thresholds: tuple[str, ...] = ()
    """Their texts; `poolkit.thresholds` parses them."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every measurement, in the order of measuring.

        Targets alternate at each level, and levels in each round, so that a drift (a warmer
        processor, a fuller table) affects all of them equally.
        """
        return tuple(
            Step(target=target.name, level=level, repeat=repeat)
            for repeat in range(1, self.repeat + 1)
            for level in self.levels
            for target in self.targets
        )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine of a run, and the versions of the software."""

    cpu: str = "unknown"
    cores: int = 0
    memory_gib: float = 0.0
    os: str = "unknown"
    python: str = "unknown"
    versions: Mapping[str, str] = field(default_factory=dict)
    distance: str = ""
    """Between the targets and the embedded database, as text; empty for the loopback address."""
    proxy_added_ms: float | None = None
    """The median that the proxy which makes the distance adds to a round trip by itself."""
    connect_ms: float | None = None
    """The median of a connect over the distance, with psycopg2."""
    loopback_connect_ms: float | None = None
    """The same without distance and TLS."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """The moments of a measurement, and the counts around it.

    `from_` (in the file: `from`) and `to` bound the measured time; before it was the warm-up. A
    count is None if it is unknown or has no meaning for this kind of target.
    """

    started: float
    warm_from: float
    from_: float
    to: float
    stopped: float
    partial: bool = False
    left_over: int | None = None
    """Connections that stayed open after the target was stopped."""
    cold_starts: int | None = None
    warm_invokes: int | None = None
    throttled: int | None = None
    execution_environments: int | None = None
    instances: int | None = None
    ceiling: int | None = None
    """The most connections that the target could hold at this load."""
    ceiling_reason: str = ""
    pooler_ceiling: int | None = None
    """The most connections that a pooler in front of the server opens for it; None without one."""
    engine_ceiling: int | None = None
    """The most connections that its engines can hold, as read from its running processes."""
    engine_ceiling_reason: str = ""
    is_own_server: bool | None = None
    """True if the run started the server, so that it has no other clients; None in older runs."""
    sessions_before: int | None = None
    """The server's counter of sessions before the target was started."""
    sessions_from: int | None = None
    sessions_to: int | None = None
    sessions_after: int | None = None
    """The same after the last answer, when the load had ended."""
    pool_opened: int | None = None
    """Connections opened between `from_` and `to`, as the pools count them."""
    pool_closed: int | None = None
    warnings: tuple[str, ...] = ()
    aborted_by: str = ""
    """The verdict that ended the measurement early; the target's higher levels are left out."""
    failure: str = ""
    """Why the target could not be measured, or not to the end."""
    evidence: Evidence | None = None
    """Of a target that failed, or of which more than half of the requests did."""


# -- rows -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request of the load; `latency_ms` counts from its scheduled moment, `due`."""

    FILE: ClassVar[str] = "requests.csv"

    due: float
    started: float
    latency_ms: float
    service_ms: float
    method: str
    name: str
    status: int
    error: str
    """Empty if it succeeded."""

    @property
    def ended(self) -> float:
        """The moment of its answer, or of giving up."""
        return self.started + self.service_ms / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionRow:
    """One backend in one sample."""

    FILE: ClassVar[str] = "connections.csv"

    time: float
    target: str
    instance: str
    pid: int
    state: str
    age_s: float
    state_age_s: float
    wait_event: str
    owner: str = ""
    """An `Owner`; empty in runs of older versions, which knew owners by the preset's name."""
    by: str = ""
    """A `By`."""

    def is_of(self, preset: str) -> bool:
        """Return whether it is a connection of the target, which has this preset."""
        return self.owner == "target" if self.owner else self.target == preset


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRow:
    """One sample, even without a backend."""

    FILE: ClassVar[str] = "samples.csv"

    time: float
    backends: int
    sessions: int
    xacts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessRow:
    """The use of one role's tree of processes; `cpu_s` is cumulative."""

    FILE: ClassVar[str] = "processes.csv"

    time: float
    role: str
    processes: int
    cpu_s: float
    rss_mb: float


@dataclass(frozen=True, kw_only=True, slots=True)
class InvokeRow:
    """One invoke of the local Lambda fleet; a phase that was not reached is empty."""

    FILE: ClassVar[str] = "invokes.csv"

    request_id: str
    execution_environment: str
    arrived: float
    cold: bool
    init_ms: float | None
    queue_ms: float | None
    duration_ms: float | None
    status: str
    error_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldRow:
    """The checkouts of one line for one unit of work, in the measured time. Times are in seconds."""

    FILE: ClassVar[str] = "holds.csv"

    where: str
    unit: str
    count: int
    held_s: float
    busy_s: float
    """The part of it in which SQL ran."""
    unseen_s: float
    """The part of it with the driver's own connection, whose SQL is not seen."""
    longest_s: float
    nested: int
    after_response: int
    leaked: int
    out_s: float
    """The age of the oldest hold that was not over at the end; 0 without one."""
    spread: str
    """The holds by length: pairs of a bucket and a number, as `poolkit.config.holds` has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolRow:
    """The pool of one engine in one process: its settings, and its use in the measured time."""

    FILE: ClassVar[str] = "pools.csv"

    pid: int
    pool: str
    """Its class, such as `QueuePool`."""
    pool_size: int | None
    max_overflow: int | None
    timeout_s: float | None
    recycle_s: float | None
    pre_ping: bool | None
    driver: str
    threads: int
    """The threads of the process at the end."""
    checkouts: int
    timeouts: int
    out_max: int | None
    """The most connections of it that were checked out at once; None if the pool does not count."""
    waited_max_s: float
    waits: str
    """The waits for a connection by length, as `HoldRow.spread`."""


Row = TypeVar("Row", Request, ConnectionRow, SampleRow, ProcessRow, InvokeRow, HoldRow, PoolRow)


@dataclass(frozen=True)
class Rows(Generic[Row]):
    """The rows of one file, and warnings about them."""

    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()


# -- the folders ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TargetFolder:
    """The folder of one measurement."""

    path: Path

    @contextmanager
    def writer(self, kind: type[Row]) -> Iterator[Callable[[Row], None]]:
        """Return what appends one row to a new file; numbers are rounded to 1e-6."""
        names = [field.name for field in dataclasses.fields(kind)]
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / kind.FILE).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(names)
            yield lambda row: rows.writerow([as_text(getattr(row, name)) for name in names])

    def rows(self, kind: type[Row]) -> Rows[Row]:
        """Read one kind of rows; a missing file or an incomplete last line is a warning.

        Raises:
            RunFolderError: the file is broken; the message names the line.
        """
        rows, warnings = read_rows(self.path / kind.FILE, kind)
        return Rows(rows, warnings)

    def write_window(self, window: Window) -> None:
        """Write window.json."""
        write_json(self.path / "window.json", to_json(window))

    def load_report(self) -> LoopReport | None:
        """Read load.json; None if the load generator ended before it could write it.

        Raises:
            RunFolderError: it is broken.
        """
        file = self.path / "load.json"
        if not file.exists():
            return None
        try:
            report = LoopReport.from_json(read_json(file))
        except TypeError as error:
            raise RunFolderError(f"{file} is broken: {error}") from None
        # Once more, for the types of its values.
        return from_json(LoopReport, dataclasses.asdict(report), str(file))

    def window(self) -> Window | None:
        """Read window.json; None if the target was stopped before it was written.

        Raises:
            RunFolderError: it is broken.
        """
        file = self.path / "window.json"
        return from_json(Window, read_json(file), str(file)) if file.exists() else None


@dataclass(frozen=True)
class RunFolder:
    """One run of `poolkit compare`."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return the run in a folder.

        Raises:
            RunFolderError: the folder does not exist, or is not a run.
        """
        if not path.is_dir():
            raise RunFolderError(f"{path} is not a folder; wanted a run of `poolkit compare`")
        if not (path / "plan.json").is_file():
            raise RunFolderError(f"{path} is not a run of `poolkit compare`: no plan.json in it")
        return cls(path)

    def target(self, name: str) -> TargetFolder:
        """Return the folder of one target, which is that of its only measurement if it has one."""
        return TargetFolder(self.path / "targets" / name)

    def step(self, plan: Plan, step: Step) -> TargetFolder:
        """Return the folder of one measurement."""
        folder = self.target(step.target).path
        if len(plan.levels) > 1 or plan.repeat > 1:
            folder /= step.level.slug if plan.repeat == 1 else f"{step.level.slug}-{step.repeat}"
        return TargetFolder(folder)

    def write_plan(self, plan: Plan) -> None:
        """Write plan.json."""
        write_json(self.path / "plan.json", to_json(plan))

    def write_machine(self, machine: Machine) -> None:
        """Write machine.json."""
        write_json(self.path / "machine.json", to_json(machine))

    def plan(self) -> Plan:
        """Read plan.json.

        Raises:
            RunFolderError: it is broken, or of another schema.
        """
        file = self.path / "plan.json"
        found = read_json(file)
        if found.get("schema") != SCHEMA:
            raise RunFolderError(
                f"{file} has schema {found.get('schema')!r}, but this version of poolkit "
                f"reads schema {SCHEMA}; use the poolkit that made the run"
            )
        if "users" in found:
            # An older plan: it had one load, in the plan itself.
            load = {key: found[key] for key in ("users", "rate_per_user") if key in found}
            found.setdefault("levels", [load])
        plan = from_json(Plan, found, str(file))
        for target in plan.targets:
            # The name becomes a path, and the folder may come from another machine.
            if target.name in ("", ".", "..") or set(target.name) & set("/\\\0"):
                raise RunFolderError(
                    f"{file} names a target {target.name!r}, which is not a valid name"
                )
        return plan

    def machine(self) -> Machine:
        """Read machine.json; without it every value is unknown.

        Raises:
            RunFolderError: it is broken.
        """
        file = self.path / "machine.json"
        return from_json(Machine, read_json(file), str(file)) if file.exists() else Machine()
