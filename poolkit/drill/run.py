"""A drill: servers, targets and load up, one fault after the other, everything down again."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from psycopg2 import sql

from poolkit.compare.results.run_folder import Level, Machine
from poolkit.compare.results.target_result import LOAD
from poolkit.compare.run.attribution import pgappname
from poolkit.compare.run.hosts import inherited_variables
from poolkit.compare.run.load import Load
from poolkit.drill.figures import AnswerRows, FaultTimes, outcome_of, writes_of
from poolkit.errors import DrillError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.compare.run.progress import Progress
    from poolkit.drill.faults import Fault
    from poolkit.drill.figures import Outcome
    from poolkit.drill.ground import DrilledTarget, Ground
    from poolkit.drill.options import DrillOptions
    from poolkit.local.processes import Supervised

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
_BEGIN_S = 40.0
"""Seconds for the first steady answers of all targets."""
LOOK_EVERY_S = 0.1
_LOAD_USERS = Path(__file__).with_name("load_users.py")
_LONGEST_S = 3600.0
_MAX_USERS = 2_000


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


class _Recorded(NamedTuple):
    """What is known of a fault before its writes are looked up."""

    times: FaultTimes
    leaked: dict[str, int | None]
    restarted: set[str]


class Drill:
    """One drill: the load on every target of a ground, and one fault after the other.

    Args:
        ground: what is under load, and what may be broken.
        options: of the command line.
        root: the folder from which Locust runs.
        folder: of the logs and rows.
        progress: shows the state.
    """

    def __init__(
        self,
        ground: Ground,
        options: DrillOptions,
        *,
        root: Path,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._ground, self._options = ground, options
        self._root, self.folder, self._progress = root, folder, progress
        self.results = Results(options=options, targets=[], faults=[], not_run={})
        self._run = secrets.token_hex(3)
        self._recorded: list[_Recorded] = []
        self._rows: AnswerRows

    def run(self) -> None:
        """Make every fault. The results are complete at the end, however it comes.

        Raises:
            PoolkitError: a server, a target or the load failed.
        """
        began = time.monotonic()
        ground = self._ground
        with ExitStack() as parts:
            ground.start(parts, self.folder, self._progress)
            ground.scene.wait = self._wait
            self.results.targets = [target.name for target in ground.targets]
            self.results.machine = ground.machine()
            self._rows = AnswerRows(self.folder / "requests.csv", self.results.targets)
            locust = self._start_load()
            has = ground.scene.has
            if (network := ground.scene.network) is not None and not network.connections:
                # The application is connected past the proxy.
                has.discard("network")
            try:
                for number, fault in enumerate(self._options.faults, start=1):
                    self._progress.target(fault.name, number, len(self._options.faults), fault.name)
                    if reason := fault.missing(has) or self._around(fault):
                        self.results.not_run[fault.name] = reason
                        self._progress.finished(fault.name, f"not run: {reason}")
            finally:
                # Not stopped: it would wait for its requests in flight, of which none is wanted.
                with suppress(ProcessLookupError):
                    os.kill(locust.pid, signal.SIGKILL)
                self._progress.stage("looking up the writes")
                self._conclude()
                self.results.seconds = time.monotonic() - began

    # -- the load ----------------------------------------------------------------------------

    def _start_load(self) -> Supervised:
        """Start Locust, and wait until every target answers all its requests.

        Raises:
            DrillError: a target answers none.
        """
        self._progress.stage("starting the load")
        targets = self._ground.targets
        load = Load(
            locustfile=_LOAD_USERS,
            level=Level(
                users=4 * len(targets),
                arrival_rate=self._options.rate * len(targets),
                max_users=_MAX_USERS,
            ),
            warm_up_s=0,
            duration_s=_LONGEST_S,
            requests=self.folder / "requests.csv",
        )
        command, environ = load.command, dict(load.environ)
        if self._options.locustfile is not None:
            where = command.index("-f") + 1
            command[where] += f",{self._options.locustfile.resolve()}"
            load.begin(targets[0].url)
        else:
            # Each class of users has a host of its own.
            del environ["POOLKIT_LOAD_HOST"]
        environ |= {
            "POOLKIT_DRILL_LOAD": str(self._write_assignment()),
            "PGAPPNAME": pgappname(LOAD),
        }
        locust = self._ground.supervisor.start(
            "locust", command, environ=environ, inherited=inherited_variables(), cwd=self._root
        )
        deadline = time.monotonic() + _BEGIN_S
        while not self._is_steady():
            self._wait(LOOK_EVERY_S)
            if time.monotonic() < deadline:
                continue
            for name, answers in self._rows.by_target.items():
                if all(answer.failure for answer in answers):
                    seen = answers[-1].failure if answers else "there is no answer"
                    raise DrillError(
                        f"{name} answers no request of the drill: {seen}; the logs are in "
                        f"{self.folder}"
                    )
            break
        return locust

    def _write_assignment(self) -> Path:
        """Write the file by which Locust's users know the targets."""
        assignment = {
            "run": self._run,
            "timeout_s": self._options.timeout_s,
            "targets": [
                {"name": one.name, "url": one.url, "traffic": asdict(one.traffic)}
                # With a locustfile these users would send nothing.
                for one in self._ground.targets
                if self._options.locustfile is None
            ],
        }
        file = self.folder / "load.json"
        file.write_text(json.dumps(assignment, indent=1) + "\n", encoding="utf-8")
        return file

    # -- one fault ---------------------------------------------------------------------------

    def _around(self, fault: Fault) -> str:
        """Prepare a fault, make it, and clean up; return why it cannot be made here, if so."""
        with ExitStack() as prepared:
            try:
                prepared.enter_context(fault.around(self._ground.scene))
            except DrillError as error:
                return str(error)
            self._one(fault)
        return ""

    def _one(self, fault: Fault) -> None:
        """Make one fault under load, wait for the recovery, and look for leaked connections."""
        before = time.time()
        self._progress.stage("before")
        self._wait(BEFORE_S)
        self._progress.stage("fault")
        began, error = time.time(), ""
        try:
            fault.run(self._ground.scene)
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
        recorded = _Recorded(times, {}, set())
        self._recorded.append(recorded)
        with self._paused():
            recorded.leaked.update(self._count_leaked())
            outcomes = [
                outcome_of(name, answers, times) for name, answers in self._rows.by_target.items()
            ]
            # The next fault must find every target as the first one did.
            for one in outcomes:
                if (one.back_s is None or recorded.leaked[one.target]) and self._ground.restart(
                    one.target, self._progress
                ):
                    recorded.restarted.add(one.target)
            self._write_assignment()
        shown = [
            f"{one.target} {'not' if one.back_s is None else f'{one.back_s:.1f} s'}"
            for one in outcomes
        ]
        self._progress.finished(fault.name, f"back after: {', '.join(shown)}")

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

    def _count_leaked(self) -> dict[str, int | None]:
        """Return the connections in use by target, once they are zero or have had the time."""
        deadline = time.monotonic() + LEAK_S
        while True:
            found = {one.name: self._in_use(one) for one in self._ground.targets}
            if not any(found.values()) or time.monotonic() > deadline:
                return found
            self._wait(LOOK_EVERY_S)

    def _in_use(self, target: DrilledTarget) -> int | None:
        """Return the connections that a target uses: the larger of its own count and the server's."""
        scene = self._ground.scene
        if not scene.admin_url:
            return None
        with scene.admin() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND state <> 'idle' "
                "AND datname = current_database() AND starts_with(application_name, %s) "
                "AND pid <> pg_backend_pid()",
                (scene.role, target.application),
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
            self._ground.supervisor.check()

    # -- after the faults --------------------------------------------------------------------

    def _conclude(self) -> None:
        """Look up every write, and compute the figures of all faults."""
        self._rows.update()
        found: dict[str, int] = {}
        checked = {one.name: one.traffic for one in self._ground.targets if one.traffic.is_checked}
        if not self._ground.scene.admin_url:
            checked.clear()
        for table, column in {(one.table, one.column) for one in checked.values()}:
            found |= self._written(table, column)
        file = self.folder / "writes.csv"
        writes = list(writes_of(file)) if file.exists() else []
        for times, leaked, restarted in self._recorded:
            outcomes = tuple(
                outcome_of(
                    name,
                    answers,
                    times,
                    writes=writes,
                    found=found if name in checked else None,
                    leaked=leaked.get(name),
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
        with self._ground.scene.admin() as cursor:
            pattern = f"drill-{self._run}-"
            cursor.execute(query, (f"{pattern}[A-Za-z0-9_.@-]+-[0-9]+", f"%{pattern}%"))
            return dict(cursor.fetchall())
