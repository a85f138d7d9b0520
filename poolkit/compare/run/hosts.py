"""The hosts of targets: this machine, where a run starts them, or remote ones, deployed before."""

from __future__ import annotations

import dataclasses
import os
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import psutil

from poolkit import placeholders
from poolkit.compare.run.attribution import pgappname
from poolkit.config import hold_records
from poolkit.config.presets import EnginePreset
from poolkit.errors import LocalStackError
from poolkit.local.ports import LOOPBACK, free_port, is_free
from poolkit.local.readiness import AnswersHttp, HasLogged, ServesHttp, TakesTasks
from poolkit.project import with_interpreter
from poolkit.shim import records

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from poolkit.compare.plan.targets import Target
    from poolkit.local.network import NetworkFigures
    from poolkit.local.processes import Supervised, Supervisor
    from poolkit.local.readiness import Readiness
    from poolkit.local.stack import EmbeddedStack

START_TIMEOUT_S = 60.0
PORT_ATTEMPTS = 3
"""A free port is found before a target binds it, so another process may be quicker."""
_LIBPQ_VARIABLES = {
    f"PG{name}"
    for name in ("HOST", "HOSTADDR", "PORT", "DATABASE", "USER", "PASSWORD", "SERVICE", "APPNAME")
}


@dataclass(frozen=True, kw_only=True)
class Running:
    """A target that runs: its URL, and its process if it was started here."""

    target: Target
    url: str
    process: Supervised | None = None
    engines: Path | None = None
    """The folder of the records of its engines, if they are read."""
    holds: Path | None = None
    """The folder of its tables of who holds connections; None where it was not started here."""


class EngineReading(NamedTuple):
    """The ceiling of a target's engines, as read from its processes."""

    connections: int | None
    reason: str
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Host(ABC):
    """The host of a target, as a measurement uses it.

    Args:
        root: the project's folder.
        environment: the preset numbers, such as `prod`.
        supervisor: starts and ends the processes on this machine.
        logs: the folder of the logs.
        monitor_url: the database to sample, with a role that may.
        note: shows what is awaited.
    """

    root: Path
    environment: str
    supervisor: Supervisor
    logs: Path
    monitor_url: str
    note: Callable[[str], None] = field(default=lambda _: None)

    @property
    def pids(self) -> dict[str, int]:
        """The servers on this machine, by role."""
        return {}

    @property
    def database_urls(self) -> list[str]:
        """The URLs of the database, and of the pooler in front of it."""
        return [self.monitor_url]

    @property
    def ports(self) -> set[int]:
        """The ports of the database, and of the pooler in front of it."""
        return {urlsplit(url).port or 5432 for url in self.database_urls}

    @property
    def is_own_server(self) -> bool:
        """Whether the run started the database server, so that it has no other clients."""
        return False

    def check_servers(self) -> None:
        """Check that the servers on this machine still run.

        Raises:
            ProcessEndedError: one has ended by itself; the message names it.
        """
        return

    @abstractmethod
    def environ(self, target: Target, port: int = 0) -> dict[str, str]:
        """Return the variables of the target, which the load generator has too."""

    def _variables(
        self, target: Target, database_url: str, broker_url: str, port: int
    ) -> dict[str, str]:
        values = placeholders.values_for(
            database_url,
            python=str(target.python),
            broker_url=broker_url,
            port=str(port),
            processes=str(target.processes),
        )
        return {
            **({} if target.preset is None else {"POOLKIT_TARGET": target.preset}),
            "POOLKIT_ENVIRONMENT": self.environment,
            "DATABASE_URL": database_url,
            "PGAPPNAME": pgappname(target.preset or target.name),
            # A deployable of the project's own is imported from its folder.
            "PYTHONPATH": str(self.directory(target)),
            **placeholders.filled(target.env, values),
        }

    def directory(self, target: Target) -> Path:
        """Return the working directory of a target."""
        return target.directory or self.root

    @abstractmethod
    def start(self, target: Target, instances_max: int = 1, label: str = "") -> Running:
        """Start the target if it does not run yet, and wait until it is ready.

        Args:
            target: the target.
            instances_max: the most execution environments of a Lambda function.
            label: the name of its process and its log; by default the target's.

        Raises:
            LocalStackError: it did not become ready; the message quotes its log's last line.
        """

    def engine_ceiling(self, running: Running, instances_max: int | None) -> EngineReading | None:
        """Return the ceiling of a target as its engines have it; None if they are not read."""
        return None

    def names_database(self, running: Running) -> bool:
        """Return whether an engine of the target is known to name the database of the run."""
        return False

    def network_figures(self, target: Target) -> NetworkFigures | None:
        """Return what the network between a target and its database has counted; None without one."""
        return None

    def release(self, target: Target) -> None:
        """Close the connections that a stopped target would leave in a pooler."""
        return

    def check(self) -> None:
        """Check that the servers and every started process still run.

        Raises:
            ProcessEndedError: one has ended; the message names it.
        """
        self.check_servers()
        self.supervisor.check()


@dataclass(frozen=True, kw_only=True)
class LocalHost(Host):
    """This machine: it starts the targets of one project on one stack."""

    stack: EmbeddedStack

    @property
    def pids(self) -> dict[str, int]:
        """The servers of the stack, by role."""
        return self.stack.pids

    def environ(self, target: Target, port: int = 0) -> dict[str, str]:
        """Return the variables of the target's deployable."""
        stack = self.stack
        database_url = stack.database_url
        if target.through == "pgbouncer" and stack.pgbouncer is not None:
            database_url = stack.pooler_url
        broker_url = stack.broker.url if stack.broker is not None else ""
        variables = self._variables(target, database_url, broker_url, port)
        if not stack.environ:
            return variables
        # Not "require": an application that connects to another server, without TLS, would get errors
        # of TLS, and `DatabaseGuard` could not name that server. Drivers that prefer TLS use it here.
        return {**stack.environ, "PGSSLMODE": "prefer", **variables}

    def start(self, target: Target, instances_max: int = 1, label: str = "") -> Running:
        """Start a target, on another port if the first is taken meanwhile."""
        label = label or target.name
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port = free_port()
            environ = self.environ(target, port)
            holds = self.logs / f"{label}-holds"
            holds.mkdir(parents=True, exist_ok=True)
            environ[hold_records.FOLDER] = str(holds)
            engines = self.logs / f"{label}-engines"
            engines.mkdir(exist_ok=True)
            # With these the target's processes describe their engines.
            environ |= records.environ(
                engines,
                target.pool or records.NOW,
                self.environment,
                per_task=target.kind == "worker",
                size="" if target.pool_size is None else str(target.pool_size),
            )
            python_path = [str(records.FOLDER), environ["PYTHONPATH"]]
            environ["PYTHONPATH"] = os.pathsep.join(python_path)
            command, ready = self._command(target, port, instances_max, label, list(environ))
            self.note(f"waiting for {ready.awaited}")
            try:
                process = self.supervisor.start(
                    label,
                    command,
                    environ=environ,
                    inherited=with_interpreter(inherited_variables(), target.python),
                    cwd=self.directory(target),
                    ready=ready,
                    timeout_s=START_TIMEOUT_S,
                )
            except LocalStackError:
                # A target also fails without its database: then that is the error to report.
                self.stack.check()
                if is_free(port) or attempt == PORT_ATTEMPTS:
                    raise
            else:
                url = f"http://{LOOPBACK}:{port}"
                return Running(
                    target=target, url=url, process=process, engines=engines, holds=holds
                )
        raise AssertionError("unreachable: the last attempt returns or raises")

    def network_figures(self, target: Target) -> NetworkFigures | None:
        """Return what the network between a target and its database has counted; None without one."""
        role = "pooler" if target.through == "pgbouncer" else "database"
        network = self.stack.networks.get(role)
        return None if network is None else network.figures()

    def engine_ceiling(self, running: Running, instances_max: int | None) -> EngineReading | None:
        """Return the ceiling of a target as its engines have it now; None if they are not read."""
        if running.engines is None:
            return None
        found = records.read_records(running.engines)
        ceiling = records.ceiling_of(
            found,
            alive={record.pid for record in found if psutil.pid_exists(record.pid)},
            ports=self.ports,
            execution_environments=instances_max if running.target.kind == "lambda" else None,
        )
        pool = running.target.pool or records.NOW
        notes = records.notes_on(found, pool=pool, ports=self.ports)
        return EngineReading(*ceiling, notes)

    def names_database(self, running: Running) -> bool:
        """Return whether an engine of the target names the database; False if it is not known."""
        if running.engines is None:
            return False
        found = records.read_records(running.engines)
        return any(engine.port in self.ports for record in found for engine in record.engines)

    def _command(
        self, target: Target, port: int, instances_max: int, label: str, variables: list[str]
    ) -> tuple[list[str], Readiness]:
        """Return the command of a target, and the probe of its readiness."""
        values = {"python": target.python, "port": port, "processes": target.processes}
        own = [word.format(**values) for word in target.command]
        if target.kind == "worker":
            if target.ready:
                return own, HasLogged(target.ready)
            broker = self.stack.broker
            return own, TakesTasks(None if broker is None else broker.waiting_clients)
        if target.kind == "web":
            uvicorn = [
                *(str(target.python), "-m", "uvicorn", str(target.app)),
                *("--host", LOOPBACK, "--port", str(port), "--workers", str(target.processes)),
                *("--no-access-log", "--log-level", "warning"),
                # As the web service's own and, in effect, the function's: users who think for
                # longer than uvicorn's 5 s would reconnect to some targets and not to others.
                *("--timeout-keep-alive", "75"),
            ]
            url = f"http://{LOOPBACK}:{port}"
            if target.ready:
                return own or uvicorn, AnswersHttp(url + target.ready, self.note)
            return own or uvicorn, ServesHttp(url, self.note)
        fleet = [
            *(sys.executable, "-m", "poolkit.lambda_fleet"),
            *("--handler", str(target.handler), "--task-root", str(self.directory(target))),
            *("--python", str(target.python), "--event", target.event),
            *("--memory", str(target.memory), "--timeout", str(target.timeout)),
            *("--function-name", target.name, "--port", str(port)),
            *("--reserved-concurrency", str(instances_max)),
            # A handler that does not import is found here, before any request.
            *("--prewarm", "1"),
            *("--log-dir", str(self.logs / f"{label}-execution-environments")),
        ]
        # Names only: the list of processes would show values.
        for name in variables:
            fleet += ["--env", name]
        # The fleet logs its URL when the first execution environment is ready.
        ready = HasLogged(r'^\{"url": ')
        ready.awaited = "the first execution environment to import the handler"
        return fleet, ready

    def release(self, target: Target) -> None:
        """Make the pooler close its connections: they must not count as the next target's."""
        if self.stack.pgbouncer is not None and target.through == "pgbouncer":
            self.stack.pgbouncer.restart()

    @property
    def database_urls(self) -> list[str]:
        """The URLs of the database, and of PgBouncer if it runs."""
        stack = self.stack
        urls = [self.monitor_url, stack.database_url, stack.pooler_url]
        return list(dict.fromkeys(filter(None, urls)))

    @property
    def is_own_server(self) -> bool:
        """Whether PostgreSQL is the embedded one."""
        return self.stack.postgres is not None

    def check_servers(self) -> None:
        """Check that the servers of the stack still run."""
        self.stack.check()


@dataclass(frozen=True, kw_only=True)
class RemoteHost(Host):
    """The host of a deployed target, never started or stopped from here; its database is sampled."""

    url: str
    """The target's; a worker's broker."""

    def environ(self, target: Target, port: int = 0) -> dict[str, str]:
        """Return the variables of the target: a worker's broker is its URL."""
        broker_url = self.url if target.kind == "worker" else ""
        port = port or urlsplit(self.url).port or 0
        return self._variables(target, self.monitor_url, broker_url, port)

    def start(self, target: Target, instances_max: int = 1, label: str = "") -> Running:
        """Return the target: it runs already."""
        return Running(target=target, url=self.url)


def inherited_variables() -> dict[str, str]:
    """Return this process's variables without those that configure a deployable.

    With a `POOLKIT_POOL_SIZE` from the user's shell, web and worker would run with other settings
    than the plan and the report name. The target's own table is the place for it.
    """
    fields = {f"POOLKIT_{field.name.upper()}" for field in dataclasses.fields(EnginePreset)}
    own = fields | {"POOLKIT_TARGET", "POOLKIT_ENVIRONMENT", "POOLKIT_INSTANCE"}
    # libpq reads these for whatever a URL leaves open, so they could name another database.
    own |= _LIBPQ_VARIABLES
    return {
        name: value
        for name, value in os.environ.items()
        if name not in own and not name.startswith("DATABASE_")
    }
