"""Starting a target: its command, its variables, and how to see that it is ready."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.config.presets import EnginePreset
from poolkit.errors import LocalStackError
from poolkit.local.ports import LOOPBACK, free_port, is_free
from poolkit.local.readiness import Probe, answers_http, has_logged

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from poolkit.compare.plan.plan import PlannedTarget
    from poolkit.compare.plan.targets import Target
    from poolkit.local.processes import Supervised, Supervisor
    from poolkit.local.stack import EmbeddedStack

START_TIMEOUT_S = 60.0
PORT_ATTEMPTS = 3
"""A free port is found before a target binds it, so another process may be quicker."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A target that runs: where it answers, and its process if it was started here."""

    target: Target
    url: str
    process: Supervised | None = None


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Starts targets of one project on one stack.

    Args:
        root: the project's folder; commands run there.
        environment: which preset numbers, such as `prod`.
        logs: where a target's logs go.
    """

    root: Path
    environment: str
    supervisor: Supervisor
    stack: EmbeddedStack
    logs: Path

    @property
    def monitor_url(self) -> str:
        """The database to watch, for a role that may."""
        return self.stack.monitor_url

    @property
    def pids(self) -> dict[str, int]:
        """The servers of the stack, by role."""
        return self.stack.pids

    def enter(self, planned: PlannedTarget, label: str) -> Running:
        """Start a target and wait until it is ready; the label names its log.

        Raises:
            LocalStackError: it did not become ready; the message quotes its log's last line.
        """
        return self.start(planned.target, planned.instances_max or 1, label)

    def leave(self, target: Target) -> None:
        """Have the pooler close its connections: they are this target's, not the next one's."""
        if self.stack.pgbouncer is not None and target.through == "pgbouncer":
            self.stack.pgbouncer.restart()

    def start(
        self, target: Target, instances: int, label: str | None = None, **environ: str
    ) -> Running:
        """Start a target and wait until it is ready.

        Args:
            target: what to start.
            instances: the most execution environments of a Lambda function.
            label: the name of its process and its log; by default that of the target.
            environ: further variables for it.

        Raises:
            LocalStackError: it did not become ready; the message quotes its log's last line.
        """
        label = label or target.name
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port = free_port()
            try:
                return self._start(target, label, instances, port, environ)
            except LocalStackError:
                # A target fails without its database too: then that is what to tell.
                self.stack.check()
                if is_free(port) or attempt == PORT_ATTEMPTS:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def check(self) -> None:
        """Look whether everything that was started still runs.

        Raises:
            ProcessEndedError: a target or a server has ended; the message names it.
        """
        self.stack.check()
        self.supervisor.check()

    def _start(
        self, target: Target, label: str, instances: int, port: int, environ: Mapping[str, str]
    ) -> Running:
        url = f"http://{LOOPBACK}:{port}"
        variables = {**self.environ(target, port), **environ}
        commands = {"lambda": self._lambda, "web": self._web, "worker": self._worker}
        command, ready = commands[target.kind](target, port, instances, variables)
        if target.kind == "lambda":
            command += ["--log-dir", str(self.logs / f"{label}-execution-environments")]
        started = self.supervisor.start(
            label,
            command,
            environ=variables,
            inherited=inherited_variables(),
            cwd=self.root,
            ready=ready,
            timeout_s=START_TIMEOUT_S,
        )
        return Running(target=target, url=url, process=started)

    def environ(self, target: Target, port: int = 0) -> dict[str, str]:
        """Return the variables that the target's deployable reads."""
        broker = self.stack.broker
        return target_variables(
            target,
            environment=self.environment,
            database_url=self._database_url(target),
            broker_url=broker.url if broker is not None else "",
            root=self.root,
            port=port,
        )

    def _database_url(self, target: Target) -> str:
        if target.through == "pgbouncer" and self.stack.pgbouncer is not None:
            return self.stack.pgbouncer.url(driver="")
        return self.stack.database_url

    def _lambda(
        self, target: Target, port: int, instances: int, variables: dict[str, str]
    ) -> tuple[list[str], Probe]:
        command = [
            *(sys.executable, "-m", "poolkit.lambda_fleet"),
            *("--handler", str(target.handler), "--task-root", str(self.root)),
            *("--function-name", target.name, "--port", str(port)),
            *("--reserved-concurrency", str(instances)),
            # A handler that does not import is found here, before any request.
            *("--prewarm", "1"),
        ]
        # Names only: values would be on show in the list of processes.
        for name in variables:
            command += ["--env", name]
        # It says so when the first execution environment is there, after it answers.
        return command, has_logged(r'^\{"url": ')

    def _web(
        self, target: Target, port: int, instances: int, variables: dict[str, str]
    ) -> tuple[list[str], Probe]:
        if target.command:
            command = self._words(target, port)
        else:
            command = [
                *(sys.executable, "-m", "uvicorn", str(target.app)),
                *("--host", LOOPBACK, "--port", str(port), "--workers", str(target.processes)),
                *("--no-access-log", "--log-level", "warning"),
                # As the web service's own and, in effect, the function's: users who think for longer
                # than uvicorn's 5 s would reconnect to some targets and not to others.
                *("--timeout-keep-alive", "75"),
            ]
        return command, answers_http(f"http://{LOOPBACK}:{port}{target.ready or '/'}")

    def _worker(
        self, target: Target, port: int, instances: int, variables: dict[str, str]
    ) -> tuple[list[str], Probe]:
        return self._words(target, port), has_logged(target.ready or r"ready\.")

    def _words(self, target: Target, port: int) -> list[str]:
        words = {"python": sys.executable, "port": port, "processes": target.processes}
        return [word.format(**words) for word in target.command]


def target_variables(
    target: Target,
    *,
    environment: str,
    database_url: str,
    broker_url: str,
    root: Path,
    port: int,
) -> dict[str, str]:
    """Return the variables that a target's deployable reads, its own table's among them."""
    words = {
        "python": sys.executable,
        "port": str(port),
        "processes": str(target.processes),
        "broker_url": broker_url,
    }
    return {
        "POOLKIT_TARGET": target.preset,
        "POOLKIT_ENVIRONMENT": environment,
        "DATABASE_URL": database_url,
        # A deployable of the project's own is imported from its folder.
        "PYTHONPATH": str(root),
        **{name: text.format(**words) for name, text in target.env.items()},
    }


def inherited_variables() -> dict[str, str]:
    """Return this process's variables without those that say what a deployable is.

    A `POOLKIT_POOL_SIZE` from somebody's shell would have web and worker run with other
    settings than the plan and the report say; a target's own table is the place for it.
    """
    fields = {f"POOLKIT_{field.name.upper()}" for field in dataclasses.fields(EnginePreset)}
    own = fields | {"POOLKIT_TARGET", "POOLKIT_ENVIRONMENT", "POOLKIT_INSTANCE"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in own and not name.startswith("DATABASE_")
    }
