"""The embedded stack: PostgreSQL, and the broker and PgBouncer if a target needs them."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from sqlalchemy.engine import make_url

from poolkit.errors import ServerStartError
from poolkit.local.broker import EmbeddedBroker
from poolkit.local.distance import Certificates, Distance, make_certificates, way_to
from poolkit.local.pgbouncer import DEFAULT_POOL_SIZE, EmbeddedPgBouncer
from poolkit.local.postgres import EmbeddedPostgres
from poolkit.local.processes import owned_folder

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.local.loopback_server import LoopbackServer
    from poolkit.local.network import Network


@dataclass(frozen=True, kw_only=True)
class StackNeeds:
    """The servers that a run needs."""

    broker: bool = False
    pgbouncer: bool = False
    pool_size: int = DEFAULT_POOL_SIZE
    """The most connections that PgBouncer opens to PostgreSQL."""
    max_connections: int = 100
    postgres_bin: Path | None = None
    """The programs of another PostgreSQL than the wheel's."""
    database_url: str | None = None
    """An existing PostgreSQL in place of the embedded one; it is never stopped."""
    distance: Distance = field(default_factory=Distance)
    """From the targets to the database, or to PgBouncer."""


class EmbeddedStack:
    """The servers of one run, started together and ended in reverse order.

    Args:
        state_dir: where their files go.
        needs: the servers to start.
    """

    def __init__(self, state_dir: Path, needs: StackNeeds) -> None:
        self.needs = needs
        self.postgres: EmbeddedPostgres | None = None
        self.broker: EmbeddedBroker | None = None
        self.pgbouncer: EmbeddedPgBouncer | None = None
        self._state_dir = state_dir
        self._servers: dict[str, LoopbackServer] = {}
        self.networks: dict[str, Network] = {}
        """What makes the distance, by the role of the server behind it."""
        self._certificates: Certificates | None = None
        self.database_url = needs.database_url or ""
        """The application's URL."""
        self.pooler_url = ""
        """The application's URL through PgBouncer, if there is one."""
        self.monitor_url = self.database_url
        """The URL for sampling: a role that may read statistics and nothing else."""
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            if self.needs.distance.tls:
                self._certificates = make_certificates(starting.enter_context(owned_folder()))
            if self.needs.database_url is None:
                self._servers["database"] = self.postgres = starting.enter_context(
                    EmbeddedPostgres(
                        self._state_dir,
                        max_connections=self.needs.max_connections,
                        programs=self.needs.postgres_bin,
                    )
                )
                self.database_url = self._far(starting, "database", self.postgres.url(driver=""))
                self.monitor_url = self.postgres.monitor_url(driver="")
            if self.needs.broker:
                self._servers["broker"] = self.broker = starting.enter_context(
                    EmbeddedBroker(self._state_dir)
                )
            if self.needs.pgbouncer and self.postgres is not None:
                self._servers["pooler"] = self.pgbouncer = starting.enter_context(
                    EmbeddedPgBouncer(
                        self.postgres, self._state_dir, pool_size=self.needs.pool_size
                    )
                )
                self.pooler_url = self._far(starting, "pooler", self.pgbouncer.url(driver=""))
            self._open = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _far(self, starting: ExitStack, role: str, url: str) -> str:
        """Return the URL of a server over the distance."""
        if self.needs.distance.is_none:
            return url
        there = make_url(url)
        assert there.host is not None  # noqa: S101  (a server of ours)
        assert there.port is not None  # noqa: S101
        way = starting.enter_context(
            way_to(there.host, there.port, self.needs.distance, certificates=self._certificates)
        )
        self.networks[role] = way.network
        through = there.set(port=way.network.port)
        return through.render_as_string(hide_password=False)

    @property
    def environ(self) -> dict[str, str]:
        """The variables with which libpq and asyncpg insist on TLS; empty without it.

        They name the authority too. Otherwise a `~/.postgresql/root.crt` of the user, or their own
        PGSSLROOTCERT, would refuse the certificate; and `verify-full` would have none to ask.
        """
        if self._certificates is None:
            return {}
        return {"PGSSLMODE": "require", "PGSSLROOTCERT": str(self._certificates.ca)}

    @property
    def pids(self) -> dict[str, int]:
        """The pids of the servers that run here, by role, without those that have ended."""
        found = {}
        for role, server in self._servers.items():
            with suppress(ServerStartError):
                found[role] = server.pid
        for role, network in self.networks.items():
            found["network" if role == "database" else f"network of the {role}"] = network.pid
        return found

    def check(self) -> None:
        """Check that all servers still run.

        Raises:
            ProcessEndedError: one has ended by itself; the message names it.
        """
        for server in self._servers.values():
            server.check()
        for network in self.networks.values():
            network.check()
