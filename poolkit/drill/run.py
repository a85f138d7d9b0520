"""A drill: servers, targets and load up, one fault after the other, everything down again."""

from __future__ import annotations

import difflib
import http.client
import json
import secrets
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2 import sql
from sqlalchemy.engine import make_url

from poolkit.compare.plan.options import Options
from poolkit.compare.plan.plan import make_plan
from poolkit.compare.plan.targets import Target
from poolkit.compare.results.run_folder import Level, Machine
from poolkit.compare.run.attribution import pgappname
from poolkit.compare.run.hosts import inherited_variables
from poolkit.compare.run.load import Load
from poolkit.compare.run.machine import this_machine
from poolkit.compare.run.run import new_folder, start_stack, state_folder
from poolkit.drill import bare
from poolkit.drill.faults import FAULTS, Scene
from poolkit.drill.figures import AnswerRows, FaultTimes, outcome_of, writes_of
from poolkit.drill.network import Network
from poolkit.drill.traffic import BARE, Traffic
from poolkit.errors import ConfigurationError, DrillError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from poolkit.compare.run.hosts import LocalHost, Running
    from poolkit.compare.run.progress import Progress
    from poolkit.drill.faults import Fault
    from poolkit.drill.figures import Outcome
    from poolkit.local.processes import Supervisor
    from poolkit.project import Project

BARE_NAME = "bare"
BARE_TARGET = Target(
    name=BARE_NAME,
    kind="web",
    preset=None,
    locustfile="",
    command=(
        *("{python}", "-m", "uvicorn", "--factory", "poolkit.drill.bare:application"),
        *("--host", "127.0.0.1", "--port", "{port}", "--no-access-log", "--log-level", "warning"),
        *("--timeout-keep-alive", "75"),
    ),
    ready="/healthz",
    metrics="/metrics",
)
FUNCTION_INSTANCES = 10
"""Execution environments of a function: each start costs a second of a core, which a drill of
many targets on one machine does not have."""
BARE_CONNECTIONS = 30
OTHER_CONNECTIONS = 20
"""The drill's own, Locust's, and the server's reserve."""
BEFORE_S = 2.0
"""The level before a fault is measured for this long."""
STEADY_S = 2.5
"""A target has recovered if all requests of this long were answered without a failure."""
ANSWERED_S = 1.0
"""A request this old should have its answer."""
LONGEST_RECOVERY_S = 10.0
"""A target that is not back after this long is not waited for, and is restarted."""
LEAK_S = 3.0
"""Connections that are in use this long after the last answer count as leaked."""
WARM_UP_S = 3.0
LOOK_EVERY_S = 0.1
_LOAD_USERS = Path(__file__).with_name("load_users.py")
_LONGEST_S = 3600.0
_MAX_USERS = 2_000


@dataclass(frozen=True, kw_only=True)
class DrilledTarget:
    """One target under load."""

    name: str
    url: str
    traffic: Traffic
    application: str = ""
    """How the names of its connections begin."""
    metrics: str = ""
    """The URL of its metrics; empty for none."""


@dataclass(frozen=True, kw_only=True)
class DrillOptions:
    """The options of a drill. Times are in seconds."""

    faults: tuple[Fault, ...]
    targets: tuple[str, ...] = ()
    seconds: float = 4.0
    rate: float = 20.0
    """Requests per second and target."""
    timeout_s: float = 8.0
    """A request without an answer for so long has failed."""
    recovery_limit_s: float = 1.0
    environment: str = "prod"
    out: Path | None = None
    as_json: bool = False
    command: str = "poolkit drill"


def drill_options(
    given: Mapping[str, Any], *, every: bool, faults: Sequence[str], command: str
) -> DrillOptions:
    """Return the options of a command line.

    Args:
        given: values by the names of `DrillOptions`; None and empty stand for the default.
        every: whether every fault is wanted.
        faults: the names of the wanted faults.
        command: the command line as it was typed.

    Raises:
        ConfigurationError: a fault is unknown, or none is named.
    """
    by_name = {fault.name: fault for fault in FAULTS}
    for name in faults:
        if name not in by_name:
            close = difflib.get_close_matches(name, by_name, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(by_name)}"
            raise ConfigurationError(f"--fault {name} is unknown; {hint}")
    if not faults and not every:
        raise ConfigurationError("name a fault with --fault, or take --all; --list prints them")
    chosen = FAULTS if every else tuple(by_name[name] for name in dict.fromkeys(faults))
    values = {name: value for name, value in given.items() if value not in (None, ())}
    return DrillOptions(faults=chosen, command=command, **values)


@dataclass(frozen=True, kw_only=True)
class FaultResult:
    """A fault and its figures by target."""

    times: FaultTimes
    outcomes: tuple[Outcome, ...]


@dataclass(kw_only=True)
class Results:
    """Everything that a drill has measured."""

    options: DrillOptions
    targets: list[str]
    faults: list[FaultResult]
    not_run: dict[str, str]
    """The reason by the name of the fault or target."""
    seconds: float = 0.0
    """How long the drill took."""
    machine: Machine = field(default_factory=Machine)


class Drill:
    """One drill of a project's targets on servers of its own.

    Args:
        project: the project.
        options: of the command line.
        targets: the project's targets, and the bare one.
        traffic: the requests to the project's targets.
        progress: shows the state.
    """

    def __init__(
        self,
        project: Project,
        options: DrillOptions,
        targets: Sequence[Target],
        traffic: Traffic,
        progress: Progress,
    ) -> None:
        self._project, self._options = project, options
        self._targets, self._traffic = targets, traffic
        self._progress = progress
        self.folder = new_folder(state_folder(project) / "drill")
        self.results = Results(
            options=options, targets=[target.name for target in targets], faults=[], not_run={}
        )
        self._run = secrets.token_hex(3)
        self._times: list[FaultTimes] = []
        self._leaked: list[dict[str, int | None]] = []
        self._restarted: list[set[str]] = []
        self._rows = AnswerRows(self.folder / "requests.csv", [target.name for target in targets])
        self._supervisor: Supervisor
        self._scene: Scene

    def run(self) -> Results:
        """Make every fault, and return the figures; those until then if Ctrl-C ends it early.

        Raises:
            PoolkitError: a server, a target or the load failed.
        """
        began = time.monotonic()
        with ExitStack() as parts:
            host = self._start_servers(parts)
            self._supervisor = host.supervisor
            drilled = [self._start(host, target) for target in self._targets]
            self._start_load(host, drilled)
            with self._scene.admin() as cursor:
                cursor.execute("SHOW server_version")
                (version,) = cursor.fetchone()
            self.results.machine = this_machine(version, self._project.root, self._targets)
            has = self._scene.has
            self._wait(WARM_UP_S)
            try:
                for number, fault in enumerate(self._options.faults, start=1):
                    if missing := fault.missing(has):
                        self.results.not_run[fault.name] = missing
                        continue
                    of = len(self._options.faults)
                    self._progress.target(fault.name, number, of, fault.name)
                    self._one(host, fault, drilled)
            finally:
                self._progress.stage("looking up the writes")
                self._conclude(drilled)
                self.results.seconds = time.monotonic() - began
        return self.results

    # -- before the faults -------------------------------------------------------------------

    def _start_servers(self, parts: ExitStack) -> LocalHost:
        """Start PostgreSQL and the network before it, and return the host that starts targets."""
        options = Options(environment=self._options.environment)
        own = [target for target in self._targets if target is not BARE_TARGET]
        planned = make_plan(own, options, may_be_empty=True)
        ceilings = {one.name: one.ceiling for one in planned.record.targets}
        for target in own:
            if target.kind == "lambda":
                ceilings[target.name] = FUNCTION_INSTANCES
        needed = sum(ceiling or BARE_CONNECTIONS for ceiling in ceilings.values())
        most = max(100, needed + BARE_CONNECTIONS + OTHER_CONNECTIONS)
        plan = make_plan(own, replace(options, max_connections=most), may_be_empty=True)
        host = start_stack(parts, self._project, plan, self.folder, self._progress)
        postgres = host.stack.postgres
        assert postgres is not None  # noqa: S101  (no URL of a database was given)
        network = parts.enter_context(Network(postgres.host, postgres.port))
        through = make_url(host.stack.database_url).set(port=network.port)
        host.stack.database_url = through.render_as_string(hide_password=False)
        tables = {self._traffic.table, bare.TABLE if BARE_TARGET in self._targets else ""}
        self._scene = Scene(
            seconds=self._options.seconds,
            admin_url=postgres.admin_url(driver=""),
            role=through.username or "",
            tables=sorted(tables - {""}),
            server=postgres,
            network=network,
            wait=self._wait,
        )
        if BARE_TARGET in self._targets:
            with self._scene.admin() as cursor:
                cursor.execute(bare.CREATE_TABLE)
                cursor.execute(f"ALTER TABLE {bare.TABLE} OWNER TO {self._scene.role}")
        return host

    def _start(self, host: LocalHost, target: Target) -> DrilledTarget:
        self._progress.stage(f"starting {target.name}")
        running: Running = host.start(target, FUNCTION_INSTANCES)
        return DrilledTarget(
            name=target.name,
            url=running.url,
            traffic=BARE if target is BARE_TARGET else self._traffic,
            application=f"{target.preset or target.name}:",
            metrics=f"{running.url}{target.metrics}" if target.metrics else "",
        )

    def _start_load(self, host: LocalHost, drilled: Sequence[DrilledTarget]) -> None:
        """Start Locust, and wait for the first answers of every target.

        Raises:
            DrillError: a target does not answer a request of the drill.
        """
        self._progress.stage("starting the load")
        file = self._write_assignment(drilled)
        rate = self._options.rate * len(drilled)
        load = Load(
            locustfile=_LOAD_USERS,
            level=Level(
                users=4 * len(drilled),
                arrival_rate=rate,
                max_users=_MAX_USERS,
            ),
            warm_up_s=0,
            duration_s=_LONGEST_S,
            requests=self.folder / "requests.csv",
        )
        environ = {name: text for name, text in load.environ.items() if name != "POOLKIT_LOAD_HOST"}
        host.supervisor.start(
            "locust",
            load.command,
            environ={
                **environ,
                "POOLKIT_DRILL_LOAD": str(file),
                "PGAPPNAME": pgappname("loadtest"),
            },
            inherited=inherited_variables(),
            cwd=self._project.root,
        )
        deadline = time.monotonic() + 60
        while not all(
            any(not answer.failure for answer in answers)
            for answers in self._rows.by_target.values()
        ):
            self._wait(LOOK_EVERY_S)
            if time.monotonic() > deadline:
                for name, answers in self._rows.by_target.items():
                    if all(answer.failure for answer in answers):
                        seen = answers[-1].failure if answers else "no answer"
                        raise DrillError(f"{name} answers no request of the drill: {seen}")

    def _write_assignment(self, drilled: Sequence[DrilledTarget]) -> Path:
        """Write the file by which Locust's users know the targets."""
        assignment = {
            "run": self._run,
            "timeout_s": self._options.timeout_s,
            "targets": [
                {"name": one.name, "url": one.url, "traffic": asdict(one.traffic)}
                for one in drilled
            ],
        }
        file = self.folder / "load.json"
        file.write_text(json.dumps(assignment, indent=1) + "\n", encoding="utf-8")
        return file

    # -- one fault ---------------------------------------------------------------------------

    def _one(self, host: LocalHost, fault: Fault, drilled: list[DrilledTarget]) -> None:
        """Make one fault under load, wait for the recovery, and look for leaked connections."""
        before = time.time()
        self._progress.stage("before")
        self._wait(BEFORE_S)
        self._progress.stage("fault")
        began, error = time.time(), ""
        try:
            fault.run(self._scene)
        except DrillError as failure:
            error = str(failure)
        ended = time.time()
        self._progress.stage("recovering")
        least, most = ended + STEADY_S + ANSWERED_S, ended + LONGEST_RECOVERY_S
        while time.time() < least or (time.time() < most and not self._is_steady()):
            self._wait(LOOK_EVERY_S)
        times = FaultTimes(
            fault=fault.name,
            before=before,
            began=began,
            ended=ended,
            until=time.time(),
            error=error,
        )
        self._times.append(times)
        self._leaked.append(dict.fromkeys(self.results.targets))
        self._restarted.append(set())
        with self._paused():
            self._leaked[-1] = leaked = self._count_leaked(drilled)
            outcomes = [
                outcome_of(name, answers, times) for name, answers in self._rows.by_target.items()
            ]
            for one in outcomes:
                if one.back_s is None or leaked[one.target]:
                    # The next fault must find it as the first one did.
                    self._restart(host, one.target, drilled)
                    self._restarted[-1].add(one.target)
        shown = [
            f"{one.target} {'not' if one.back_s is None else f'{one.back_s:.1f} s'}"
            for one in outcomes
        ]
        self._progress.finished(fault.name, f"back after: {', '.join(shown)}")

    def _restart(self, host: LocalHost, name: str, drilled: list[DrilledTarget]) -> None:
        self._progress.stage(f"restarting {name}")
        host.supervisor.stop(name)
        (target,) = (one for one in self._targets if one.name == name)
        drilled[self.results.targets.index(name)] = self._start(host, target)
        self._write_assignment(drilled)

    def _is_steady(self) -> bool:
        """Return whether every target has answered all requests of the last seconds."""
        until = time.time() - ANSWERED_S
        since = until - (STEADY_S - ANSWERED_S)
        wanted = 0.8 * self._options.rate * (until - since)
        for answers in self._rows.by_target.values():
            recent = [one for one in answers[-500:] if since <= one.scheduled < until]
            if len(recent) < wanted or any(one.failure for one in recent):
                return False
        return True

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Let no request begin, and wait until none is in flight."""
        pause, paused = self.folder / "pause", self.folder / "paused"
        pause.touch()
        try:
            deadline = time.monotonic() + self._options.timeout_s + LEAK_S
            while not paused.exists() and time.monotonic() < deadline:
                self._wait(LOOK_EVERY_S)
            yield
        finally:
            pause.unlink()
            paused.unlink(missing_ok=True)

    def _count_leaked(self, drilled: Sequence[DrilledTarget]) -> dict[str, int | None]:
        """Return the connections in use by target, once they are zero or have had the time."""
        deadline = time.monotonic() + LEAK_S
        while True:
            found = {one.name: self._in_use(one) for one in drilled}
            if not any(found.values()) or time.monotonic() > deadline:
                return found
            self._wait(LOOK_EVERY_S)

    def _in_use(self, target: DrilledTarget) -> int | None:
        """Return the connections that a target uses: the larger of its own count and the server's."""
        with self._scene.admin() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, %s) "
                "AND state <> 'idle'",
                (target.application,),
            )
            (sessions,) = cursor.fetchone()
        if not target.metrics:
            return int(sessions)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(target.metrics, timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except (OSError, http.client.HTTPException):
            return None
        name = "poolkit_pool_checked_out{"
        used = sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))
        return max(int(sessions), int(used))

    def _wait(self, seconds: float) -> None:
        """Wait, read the rows, and check that targets and load still run.

        Raises:
            ProcessEndedError: one has ended.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(LOOK_EVERY_S, left))
            self._rows.update()
            self._supervisor.check()

    # -- after the faults --------------------------------------------------------------------

    def _conclude(self, drilled: Sequence[DrilledTarget]) -> None:
        """Look up every write, and compute the figures of all faults."""
        self._rows.update()
        found: dict[str, int] = {}
        checked = {one.name: one.traffic for one in drilled if one.traffic.is_checked}
        for table, column in {(one.table, one.column) for one in checked.values()}:
            found |= self._written(table, column)
        writes = list(writes_of(self.folder / "writes.csv"))
        recorded = zip(self._times, self._leaked, self._restarted, strict=True)
        for times, leaked, restarted in recorded:
            outcomes = tuple(
                outcome_of(
                    name,
                    answers,
                    times,
                    writes=writes,
                    found=found if name in checked else None,
                    leaked=leaked[name],
                    restarted=name in restarted,
                )
                for name, answers in self._rows.by_target.items()
            )
            self.results.faults.append(FaultResult(times=times, outcomes=outcomes))

    def _written(self, table: str, column: str) -> dict[str, int]:
        """Return the number of rows by key."""
        query = sql.SQL(
            "SELECT substring({column}::text FROM %s) AS key, count(*) FROM {table} "
            "WHERE {column}::text LIKE %s GROUP BY key"
        ).format(column=sql.Identifier(*column.split(".")), table=sql.Identifier(*table.split(".")))
        with self._scene.admin() as cursor:
            pattern = f"drill-{self._run}-"
            cursor.execute(query, (f"{pattern}[A-Za-z0-9_.@-]+-[0-9]+", f"%{pattern}%"))
            return dict(cursor.fetchall())
