"""The ground of a drill: what is under load, and what may be broken.

`ProjectGround` starts a project's targets, the bare application, and the servers of both.
`ForeignGround` finds an application that runs already.
"""

from __future__ import annotations

import threading
import urllib.request
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy.engine import make_url

from poolkit.compare.plan.checks import check_database_host, check_interpreters, check_migrations
from poolkit.compare.plan.options import Options
from poolkit.compare.plan.plan import make_plan
from poolkit.compare.plan.targets import Target
from poolkit.compare.run.machine import this_machine
from poolkit.compare.run.run import start_stack
from poolkit.drill import bare
from poolkit.drill.faults import Scene
from poolkit.drill.traffic import BARE, Traffic
from poolkit.errors import ConfigurationError
from poolkit.loadtest.host_safety import check_host
from poolkit.local.network import Network
from poolkit.local.ports import LOOPBACK
from poolkit.local.processes import Supervisor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from poolkit.compare.results.run_folder import Machine
    from poolkit.compare.run.hosts import LocalHost
    from poolkit.compare.run.progress import Progress
    from poolkit.drill.options import DrillOptions
    from poolkit.project import Project

BARE_NAME = "bare"
BARE_TARGET = Target(
    name=BARE_NAME,
    kind="web",
    preset=None,
    locustfile="",
    command=(
        *("{python}", "-m", "uvicorn", "--factory", "poolkit.drill.bare:application"),
        *("--host", LOOPBACK, "--port", "{port}", "--no-access-log", "--log-level", "warning"),
        *("--timeout-keep-alive", "75"),
    ),
    ready="/healthz",
    metrics="/metrics",
)
BREAK_OPTION = "--yes-break-this-database"
URL_NAME = "application"
"""The name of the application of `--url`."""
FUNCTION_INSTANCES = 8
"""Execution environments of a function: enough for its requests while they wait for a failed
database a moment, few enough for one machine that runs all targets."""
OTHER_CONNECTIONS = 20
"""The drill's own, and the server's reserve."""
_BARE_CONNECTIONS = 30


@dataclass(frozen=True, kw_only=True)
class DrilledTarget:
    """One target under load."""

    name: str
    url: str
    traffic: Traffic
    application: str = ""
    """How the names of its connections begin; empty if all of the role's are its own."""
    metrics: str = ""
    """The URL of its metrics; empty for none."""
    process: str = ""
    """The name of its process; empty if it runs elsewhere."""


class Ground(ABC):
    """What a drill needs to know about the targets and their database."""

    supervisor: Supervisor
    scene: Scene
    targets: list[DrilledTarget]

    @abstractmethod
    def start(self, parts: ExitStack, folder: Path, progress: Progress) -> None:
        """Start what is not there, and find what is.

        Args:
            parts: what is started is put here, to be ended with the drill.
            folder: of the logs.
            progress: shows what is awaited.

        Raises:
            PoolkitError: something did not start, or cannot be reached.
        """

    @abstractmethod
    def restart(self, name: str, progress: Progress) -> bool:
        """Restart a target that does not work again; return False if that is not possible."""

    @abstractmethod
    def machine(self) -> Machine:
        """Return the machine and the versions."""


class ProjectGround(Ground):
    """The targets of a project on a PostgreSQL of the drill's own, behind a network of its own.

    Args:
        project: the project.
        targets: the project's targets, and the bare one.
        traffic: the requests to the project's targets.
        options: of the command line.
    """

    def __init__(
        self, project: Project, targets: Sequence[Target], traffic: Traffic, options: DrillOptions
    ) -> None:
        for target in targets:
            where = project.section(f"targets.{target.name}")
            if target.kind == "worker":
                raise ConfigurationError(
                    f"{where} takes tasks and answers no requests, so it cannot be drilled"
                )
            if target.through == "pgbouncer":
                raise ConfigurationError(
                    f"{where} is connected through PgBouncer, which a drill has no faults for"
                )
        own = [target for target in targets if target is not BARE_TARGET]
        if own:
            check_migrations(project)
            check_interpreters(project, own)
        self._project, self._targets, self._traffic = project, targets, traffic
        self._options = options
        self._host: LocalHost

    def start(self, parts: ExitStack, folder: Path, progress: Progress) -> None:
        """Start PostgreSQL, the network before it, and every target."""
        own = [target for target in self._targets if target is not BARE_TARGET]
        options = Options(environment=self._options.environment, distance=self._options.distance)
        ceilings = {
            planned.name: planned.ceiling if planned.kind != "lambda" else FUNCTION_INSTANCES
            for planned in make_plan(own, options, may_be_empty=True).record.targets
        }
        needed = sum(ceiling or _BARE_CONNECTIONS for ceiling in ceilings.values())
        most = max(100, needed + _BARE_CONNECTIONS + OTHER_CONNECTIONS)
        plan = make_plan(own, replace(options, max_connections=most), may_be_empty=True)
        self._host = host = start_stack(parts, self._project, plan, folder, progress)
        self.supervisor = host.supervisor
        postgres = host.stack.postgres
        assert postgres is not None  # noqa: S101  (no URL of another database was given)
        network = host.stack.networks.get("database")
        if network is None:
            network = parts.enter_context(Network(postgres.host, postgres.port))
            near = make_url(host.stack.database_url).set(port=network.port)
            host.stack.database_url = near.render_as_string(hide_password=False)
        through = make_url(host.stack.database_url)
        tables = {self._traffic.table if own else ""}
        tables |= {bare.TABLE} if BARE_TARGET in self._targets else set()
        self.scene = Scene(
            seconds=self._options.seconds,
            admin_url=postgres.admin_url(driver=""),
            role=through.username or "",
            tables=sorted(tables - {""}),
            server=postgres,
            network=network,
            supervisor=host.supervisor,
            parts=parts,
        )
        if BARE_TARGET in self._targets:
            with self.scene.admin() as cursor:
                cursor.execute(bare.CREATE_TABLE)
                cursor.execute(f"ALTER TABLE {bare.TABLE} OWNER TO {self.scene.role}")
        self.targets = []
        for target in self._targets:
            progress.stage(f"starting {target.name}")
            self.targets.append(self._start(target))
        self.scene.processes = lambda: self.supervisor.pids(
            lambda name: name in [target.name for target in self._targets]
        )

    def _start(self, target: Target) -> DrilledTarget:
        running = self._host.start(target, FUNCTION_INSTANCES)
        if target.kind == "lambda":
            _warm_up(running.url, FUNCTION_INSTANCES)
        return DrilledTarget(
            name=target.name,
            url=running.url,
            traffic=BARE if target is BARE_TARGET else self._traffic,
            application=f"{target.preset or target.name}:",
            metrics=f"{running.url}{target.metrics}" if target.metrics else "",
            process=target.name,
        )

    def restart(self, name: str, progress: Progress) -> bool:
        """Stop a target, and start it again on another port."""
        progress.stage(f"restarting {name}")
        self.supervisor.stop(name)
        names = [target.name for target in self.targets]
        (target,) = (target for target in self._targets if target.name == name)
        self.targets[names.index(name)] = self._start(target)
        return True

    def machine(self) -> Machine:
        """Return this machine, the versions of the targets' software, and the distance."""
        machine = this_machine(_version(self.scene), self._project.root, self._targets)
        distance = self._options.distance
        return machine if distance.is_none else replace(machine, distance=str(distance))


class ForeignGround(Ground):
    """An application that runs already, and its database if it is named.

    Args:
        root: the folder from which Locust runs.
        traffic: the requests; none with a locustfile.
        options: of the command line.

    Raises:
        ConfigurationError: the host or the database is another machine, and the user has not
            agreed.
    """

    def __init__(self, root: Path, traffic: Traffic, options: DrillOptions) -> None:
        check_host(options.url, options.agreed, option="--url")
        if options.database_url:
            check_database_host(
                options.database_url, agreed=options.agreed_to_break, agreement=BREAK_OPTION
            )
        if options.locustfile is not None and not options.locustfile.is_file():
            raise ConfigurationError(f"--locustfile: there is no file {options.locustfile}")
        self._root, self._options, self._traffic = root, options, traffic

    def start(self, parts: ExitStack, folder: Path, progress: Progress) -> None:
        """Connect to the database, and start the proxy before it."""
        options = self._options
        tables = [options.table or self._traffic.table]
        self.supervisor = parts.enter_context(Supervisor(folder))
        self.scene = Scene(
            seconds=options.seconds,
            tables=[table for table in tables if table],
            supervisor=self.supervisor,
            parts=parts,
        )
        if options.database_url:
            database = make_url(options.database_url)
            admin = database.set(drivername="postgresql")
            self.scene.admin_url = admin.render_as_string(hide_password=False)
            self.scene.role = options.role or database.username or ""
            if options.proxy_port:
                host, port = database.host or LOOPBACK, database.port or 5432
                network = Network(host, port, listen_on=options.proxy_port)
                self.scene.network = parts.enter_context(network)
        self.targets = [
            DrilledTarget(
                name=URL_NAME,
                url=options.url.rstrip("/"),
                traffic=self._traffic,
            )
        ]

    def restart(self, name: str, progress: Progress) -> bool:
        """Return False: it was not started here."""
        return False

    def machine(self) -> Machine:
        """Return this machine, which sends the load."""
        return this_machine(_version(self.scene), self._root, ())


def _version(scene: Scene) -> str:
    if not scene.admin_url:
        return "unknown"
    with scene.admin() as cursor:
        cursor.execute("SHOW server_version")
        (version,) = cursor.fetchone()
    return str(version)


def _warm_up(url: str, instances: int) -> None:
    """Send so many requests at once that every execution environment starts.

    Otherwise they would start during the first fault, and take the machine from all targets.
    """

    def ask() -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with suppress(OSError), opener.open(url, timeout=60) as answer:
            answer.read()

    threads = [threading.Thread(target=ask) for _ in range(instances)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
