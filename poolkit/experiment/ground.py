"""The databases that experiments work in: a private PostgreSQL, or a schema on somebody's server."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

import psycopg2
from psycopg2 import sql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from poolkit.errors import ConfigurationError, DatabaseUnavailable
from poolkit.local.distance import way_to
from poolkit.local.ports import LOOPBACK
from poolkit.local.postgres import APP_ROLE, EmbeddedPostgres
from poolkit.local.postgres_cluster import SUPERUSER
from poolkit.local.processes import signals_wait
from poolkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from poolkit.local.distance import Distance

OBSERVER = "poolkit observer"
_APP = sql.Identifier(APP_ROLE)
_BACKENDS = sql.SQL(
    "SELECT pid, coalesce(state, 'starting'), application_name, query FROM pg_stat_activity "
    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND {own} "
    "ORDER BY backend_start, pid"
)


class Backend(NamedTuple):
    """A connection as the server sees it (pg_stat_activity)."""

    pid: int
    state: str
    """Such as `idle in transaction`."""
    application_name: str
    query: str
    """The last one."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a database is, and who logs in."""

    host: str
    port: int
    user: str
    password: str
    database: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Sent at connect: application_name, search_path."""
    ca: Path | None = None
    """The certificate authority's file, where TLS is used."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """More of libpq's parameters."""

    def url(self, driver: str = "psycopg2") -> str:
        """Return a URL for `create_engine` or `create_async_engine`.

        Args:
            driver: psycopg2, psycopg, asyncpg.
        """
        if driver == "asyncpg":
            # The dialect passes parameters on as arguments, and these are none of asyncpg's.
            query = {"dsn": f"postgresql://?{self._query(driver)}"} if self._query(driver) else {}
            tail = urlencode(query, quote_via=quote)
        else:
            tail = self._query(driver)
        return f"postgresql+{driver}://{self._login}{'?' if tail else ''}{tail}"

    def dsn(self, driver: str = "psycopg2") -> str:
        """Return a URL for the driver's own `connect`, or for its own pool."""
        tail = self._query(driver)
        return f"postgresql://{self._login}{'?' if tail else ''}{tail}"

    @property
    def _login(self) -> str:
        user, password = quote(self.user, safe=""), quote(self.password, safe="")
        return f"{user}:{password}@{self.host}:{self.port}/{quote(self.database, safe='')}"

    def _query(self, driver: str) -> str:
        given = dict(self.extra)
        settings = dict(self.settings)
        if driver != "asyncpg" and "search_path" in settings:
            given["options"] = f"-csearch_path={settings.pop('search_path')}"
        given |= settings
        if self.ca is not None:
            given |= {"sslmode": "verify-full", "sslrootcert": str(self.ca)}
        return urlencode(given, quote_via=quote)


class Place:
    """One database, or one schema, that an experiment may use as it likes.

    Attributes:
        address: for the experiment's own connections.
        postgres: the server, if it is private; None on somebody's server.
    """

    def __init__(
        self,
        address: Address,
        observer: Address,
        *,
        postgres: EmbeddedPostgres | None = None,
        condition: str = "datname = current_database()",
    ) -> None:
        self.address = address
        self.postgres = postgres
        self._observer_address = observer
        self._condition = condition
        self._observer: Any = None

    def url(self, driver: str = "psycopg2") -> str:
        """Return the URL of the database for `create_engine`."""
        return self.address.url(driver)

    def dsn(self, driver: str = "psycopg2") -> str:
        """Return the URL of the database for a driver's own `connect` and pools."""
        return self.address.dsn(driver)

    def backends(self) -> list[Backend]:
        """Return the experiment's connections as the server sees them, oldest first."""
        return [Backend(*row) for row in self.ask(_BACKENDS.format(own=sql.SQL(self._condition)))]

    def ask(self, query: str | sql.Composable, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query over a connection beside the experiment's own.

        On a private server its role is the superuser. A connection that the server has ended since
        the last query, as by a restart, is replaced.
        """
        is_new = self._observer is None or self._observer.closed
        if is_new:
            named = replace(self._observer_address, settings={"application_name": OBSERVER})
            try:
                self._observer = psycopg2.connect(named.dsn(), connect_timeout=10)
            except psycopg2.OperationalError as error:
                raise DatabaseUnavailable(
                    f"cannot connect to the database {named.database}: {in_one_line(error)}"
                ) from None
            self._observer.autocommit = True
        try:
            with self._observer.cursor() as cursor:
                cursor.execute(query, values or None)
                return cursor.fetchall() if cursor.description else []
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            self._observer.close()
            if is_new:
                raise
        return self.ask(query, *values)

    def terminate(self, *pids: int) -> None:
        """End backends, as an administrator does; all of the experiment's without `pids`."""
        for pid in pids or [backend.pid for backend in self.backends()]:
            self.ask("SELECT pg_terminate_backend(%s)", pid)

    def close(self) -> None:
        """Close the observer's connection."""
        if self._observer is not None:
            self._observer.close()


class Ground(ABC):
    """A server on which experiments get their places."""

    @abstractmethod
    def place(self, name: str) -> AbstractContextManager[Place]:
        """Return a context manager with a `Place`, which leaves nothing behind."""


class PrivateGround(Ground):
    """A PostgreSQL of the experiments' own, with a database for each.

    Args:
        postgres: the server, started.
        distance: between the experiments and the server.
    """

    def __init__(self, postgres: EmbeddedPostgres, distance: Distance) -> None:
        self._server = postgres
        self._distance = distance
        self._count = 0

    @contextmanager
    def place(self, name: str) -> Iterator[Place]:
        """Make a database, and drop it at the end with whoever is still connected to it."""
        self._count += 1
        address = Address(
            host=self._server.host,
            port=self._server.port,
            user=APP_ROLE,
            password=self._server.password(),
            database=f"{name}_{self._count}"[-63:],
        )
        root = replace(address, user=SUPERUSER, password=self._server.password(SUPERUSER))
        database = sql.Identifier(address.database)
        server = Place(replace(root, database="postgres"), replace(root, database="postgres"))
        place = Place(address, root, postgres=self._server)
        with ExitStack() as stack:
            stack.callback(server.close)
            server.ask(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, _APP))
            # It would take one of max_connections for as long as the experiment runs.
            server.close()
            stack.callback(self._drop, server, database)
            stack.callback(place.close)
            place.address = stack.enter_context(far(address, self._distance))
            yield place

    @staticmethod
    def _drop(server: Place, database: sql.Identifier) -> None:
        # A server that was interrupted while it restarted goes away itself, with all that it has.
        with suppress(psycopg2.Error, DatabaseUnavailable):
            server.ask(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))


class ForeignGround(Ground):
    """Somebody's server: a schema of its own for each experiment, dropped at the end.

    Args:
        url: the database; its role must be allowed to make a schema.
        distance: to be added on the way to it.
    """

    def __init__(self, url: str, distance: Distance) -> None:
        try:
            found = make_url(url)
        except (ArgumentError, ValueError):  # whose text may have the password
            raise ConfigurationError(
                "--database-url is no URL such as postgresql://user@host/database"
            ) from None
        if found.get_backend_name() not in ("postgresql", "postgres"):
            raise ConfigurationError(
                f"experiments run on PostgreSQL, not on {found.get_backend_name()}: "
                "give --database-url a postgresql:// URL, or leave it out for a private server"
            )
        self._distance = distance
        self._address = Address(
            host=found.host or LOOPBACK,
            port=found.port or 5432,
            user=found.username or "",
            password=found.password or "",
            database=found.database or found.username or "",
            extra={name: str(value) for name, value in found.query.items()},
        )

    @contextmanager
    def place(self, name: str) -> Iterator[Place]:
        """Make a schema, and drop it at the end."""
        token = f"poolkit_{secrets.token_hex(4)}"
        schema = sql.Identifier(token)
        address = replace(self._address, settings={"application_name": token, "search_path": token})
        place = Place(address, self._address, condition=f"application_name LIKE '{token}%'")
        with ExitStack() as stack:
            stack.callback(place.close)
            place.ask("SET lock_timeout = '10s'")
            # A signal in between would leave a schema that nobody drops.
            with signals_wait():
                try:
                    place.ask(sql.SQL("CREATE SCHEMA {}").format(schema))
                except psycopg2.errors.InsufficientPrivilege:
                    raise ConfigurationError(
                        f"{self._address.user} may not make a schema in the database "
                        f"{self._address.database}: GRANT CREATE ON DATABASE "
                        f"{self._address.database} TO {self._address.user}"
                    ) from None
                except psycopg2.Error as error:
                    raise ConfigurationError(
                        f"cannot make a schema in the database {self._address.database}: "
                        f"{in_one_line(error)}"
                    ) from None
                stack.callback(self._drop, place, schema)
            place.address = stack.enter_context(far(address, self._distance))
            yield place

    def _drop(self, place: Place, schema: sql.Identifier) -> None:
        """Drop an experiment's schema, without an interruption by Ctrl-C or SIGTERM."""
        drop = sql.SQL("DROP SCHEMA {} CASCADE").format(schema)
        try:
            with signals_wait():
                # Its own connections could hold locks on what is dropped.
                place.terminate()
                place.ask(drop)
        except (psycopg2.Error, DatabaseUnavailable) as error:
            raise DatabaseUnavailable(
                f"the schema {schema.string} is left in the database {self._address.database}: "
                f"{in_one_line(error)}; DROP SCHEMA {schema.string} CASCADE removes it"
            ) from None


def in_one_line(error: BaseException) -> str:
    """Return an error's text in one line, without passwords."""
    return " ".join(masked(str(error)).split())


@contextmanager
def far(address: Address, distance: Distance) -> Iterator[Address]:
    """Return an address that leads to the same database over a distance."""
    if distance.is_none:
        yield address
        return
    with way_to(address.host, address.port, distance) as way:
        yield replace(address, host=way.network.host, port=way.network.port, ca=way.ca)
