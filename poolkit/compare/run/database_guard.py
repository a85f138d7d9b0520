"""The check that a target uses the database of the run, and no foreign one.

An application may read its database from a file of settings, and a load test of it would then write
rows into that database. So the first requests come one at a time, until the server of the run has
seen a connection of the target. If there is none, the run stops: its figures would be about nothing.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import time
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy.engine import make_url

from poolkit.compare.run.load import FIRST_REQUESTS
from poolkit.errors import WrongDatabaseError
from poolkit.loadtest.host_safety import OPTION
from poolkit.local.processes import client_sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from poolkit.activity.server import ActivitySampler
    from poolkit.compare.run.attribution import Attribution
    from poolkit.local.processes import Address

ENOUGH = 3
"""Answers, or seconds, after which a connection to another server is believed."""
POSTGRESQL_PORTS = frozenset({5432, 5433, 6432, 6543})
"""Usual ports of PostgreSQL, PgBouncer and hosted poolers; others on this machine are asked."""
_LOOK_EVERY_S = 0.1
_LATE_SAMPLE_S = 1.5
_ANSWER_S = 3.0
"""Seconds that a server has to answer, and is asked once: PostgreSQL makes a process for the answer,
which takes a busy machine more than a moment."""
# Asks whether the server would encrypt (PostgreSQL, 54.7, SSLRequest); nothing is begun by it.
_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


class DatabaseGuard:
    """Watches where the processes of one target connect to, until it has used its database.

    Args:
        name: the target's name, for messages.
        pids: returns the target's first processes.
        load_pid: of the load generator, which is paused while a doubt is cleared up.
        attribution: of the measurement.
        sampler: of the server.
        sessions_before: the server's counter before the target's start, if it is known.
        database_urls: of the run's database, and of the pooler in front of it.
        is_own_server: whether the run started the server.
        agreed: whether a database that is not on this machine may be loaded.
        names_database: returns True if an engine of the target is known to name the run's database.
    """

    def __init__(
        self,
        *,
        name: str,
        pids: Callable[[], Iterable[int]],
        load_pid: int,
        attribution: Attribution,
        sampler: ActivitySampler,
        sessions_before: int | None,
        database_urls: Sequence[str],
        is_own_server: bool,
        agreed: bool,
        names_database: Callable[[], bool] = lambda: False,
    ) -> None:
        self._name, self._pids, self._load_pid = name, pids, load_pid
        self._attribution, self._sampler = attribution, sampler
        self._sessions_before = sessions_before
        self._database_urls = [make_url(url) for url in database_urls]
        self._database = "the embedded PostgreSQL"
        if not is_own_server:
            self._database = "the database of --database-url"
        self._agreed, self._names_database = agreed, names_database
        self._asked: dict[Address, bool] = {}
        self._looked_at = 0.0
        self._elsewhere: Address | None = None
        self._began = time.monotonic()

    @property
    def is_used(self) -> bool:
        """True if a connection of the target to its database was seen, or counted by the server.

        The counter knows connections that are too short for a sample. It has the load generator's
        too, which a sample has seen, since they stay open.
        """
        seen, latest = self._attribution.seen, self._sampler.latest
        if seen["target"]:
            return True
        if latest is None or self._sessions_before is None:
            return False
        return latest.sessions - self._sessions_before > seen["load"]

    def refuse_foreign(self) -> None:
        """Refuse a target that is connected to a database on another machine.

        Raises:
            WrongDatabaseError: it is, and the user has not agreed.
        """
        if time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        self._elsewhere = None
        for remote in set(client_sockets(self._pids()).values()) - self._own:
            if self._is_postgresql(remote):
                self._elsewhere = remote
                if not _is_loopback(remote[0]) and not self._agreed:
                    self._signal_load(signal.SIGKILL)
                    raise WrongDatabaseError(
                        f"{self._name} is connected to a database at {_shown(remote)}, which is "
                        f"not this machine, and a load test would write there; {self._advice}, or "
                        f"add {OPTION} if that database is yours to load"
                    )

    def check(self, answered: int, *, at_end: bool = False) -> None:
        """Check that the target does not take its database from elsewhere.

        Args:
            answered: the number of requests that it has answered without an error.
            at_end: whether the time of the first requests is over.

        Raises:
            WrongDatabaseError: it does, or it is connected to a database on another machine.
        """
        if self.is_used:
            return
        self.refuse_foreign()
        waited_s = time.monotonic() - self._began
        if self._elsewhere is not None and (answered >= ENOUGH or waited_s >= ENOUGH):
            at = _shown(self._elsewhere)
            self._refuse(answered, f"it is connected to a PostgreSQL server at {at} instead")
        if answered >= FIRST_REQUESTS or (answered and at_end):
            self._refuse(
                answered,
                "it takes its database from elsewhere than DATABASE_URL, or no request of the load "
                "needs a database",
            )

    def _refuse(self, answered: int, where: str) -> None:
        """Refuse the target, unless a late sample shows a connection after all."""
        self._signal_load(signal.SIGSTOP)
        if self._sampler.wait_for(lambda _: self.is_used, _LATE_SAMPLE_S)[0]:
            self._signal_load(signal.SIGCONT)
            return
        self._signal_load(signal.SIGKILL)
        times = "once" if answered == 1 else f"{answered} times"
        does = f"answers ({times} so far), but it" if answered else "runs, but it"
        if self._elsewhere is None and self._names_database():
            raise WrongDatabaseError(
                f"{self._name} {does} opened no connection to {self._database}, though its engine "
                "names that server: no request of the load needs a database; let the locustfile "
                "ask for paths that do"
            )
        raise WrongDatabaseError(
            f"{self._name} {does} opened no connection to {self._database}; {where}; "
            f"{self._advice}. For a target without a database, add database = false"
        )

    def _signal_load(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._load_pid, number)

    @property
    def _advice(self) -> str:
        return (
            "give it the variables that it reads in its table, such as "
            'env = { POSTGRES_SERVER = "{db_host}", POSTGRES_PORT = "{db_port}" }'
        )

    @cached_property
    def _own(self) -> frozenset[Address]:
        """The addresses of the database, and of the pooler in front of it."""
        found: set[Address] = set()
        for url in self._database_urls:
            with suppress(OSError):
                for *_, end in socket.getaddrinfo(url.host, url.port or 5432):
                    found.add((str(end[0]), int(end[1])))
        return frozenset(found)

    def _is_postgresql(self, remote: Address) -> bool:
        """Return whether a server is one of PostgreSQL.

        On this machine a server with another port is asked once. Servers elsewhere never are: they
        may be of any kind, and not the user's.
        """
        address, port = remote
        if port in POSTGRESQL_PORTS:
            return True
        if not _is_loopback(address):
            return False
        if remote not in self._asked:
            self._asked[remote] = False
            with suppress(OSError), socket.create_connection(remote, timeout=_ANSWER_S) as asked:
                asked.sendall(_SSL_REQUEST)
                self._asked[remote] = asked.recv(1) in (b"S", b"N")
        return self._asked[remote]


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _shown(remote: Address) -> str:
    address, port = remote
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
