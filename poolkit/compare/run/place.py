"""Where a target runs: on the stack that the run has started, or where it was deployed before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from poolkit.compare.run.running import Running, target_variables

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.compare.plan.plan import PlannedTarget
    from poolkit.compare.plan.targets import Target
    from poolkit.local.processes import Supervisor


class Place(Protocol):
    """What measuring asks of the place."""

    @property
    def root(self) -> Path:
        """The project's folder."""

    @property
    def logs(self) -> Path:
        """Where logs go."""

    @property
    def supervisor(self) -> Supervisor:
        """What starts processes and ends them."""

    @property
    def monitor_url(self) -> str:
        """The database to watch, for a role that may."""

    @property
    def pids(self) -> dict[str, int]:
        """The servers that run here, by role."""

    def environ(self, target: Target, port: int = 0) -> dict[str, str]:
        """Return the variables of the target, which the load generator has too."""

    def enter(self, planned: PlannedTarget, label: str) -> Running:
        """Have the target there.

        Raises:
            LocalStackError: it did not become ready.
        """

    def leave(self, target: Target) -> None:
        """Have nothing kept for a target that was stopped."""

    def check(self) -> None:
        """Look whether everything that was started still runs.

        Raises:
            ProcessEndedError: something has ended; the message names it.
        """


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """The place of a deployed target: nothing of it is started or stopped here."""

    root: Path
    logs: Path
    supervisor: Supervisor
    environment: str
    database_url: str
    url: str

    @property
    def monitor_url(self) -> str:
        """The database that was given: it is only watched."""
        return self.database_url

    @property
    def pids(self) -> dict[str, int]:
        """None: its servers are elsewhere."""
        return {}

    def environ(self, target: Target, port: int = 0) -> dict[str, str]:
        """Return the variables of the target: a worker's broker is its URL."""
        return target_variables(
            target,
            environment=self.environment,
            database_url=self.database_url,
            broker_url=self.url if target.kind == "worker" else "",
            root=self.root,
            port=port or _port(self.url),
        )

    def enter(self, planned: PlannedTarget, label: str) -> Running:
        """Return the target: it is there."""
        return Running(target=planned.target, url=self.url)

    def leave(self, target: Target) -> None:
        """Keep off."""

    def check(self) -> None:
        """Look whether the load generator still runs."""
        self.supervisor.check()


def _port(url: str) -> int:
    return urlsplit(url).port or 0
