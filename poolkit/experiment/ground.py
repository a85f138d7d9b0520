"""The databases that experiments work in: a private PostgreSQL, or a schema on another server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import parse_dsn
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from poolkit.errors import ConfigurationError, DatabaseUnavailable
from poolkit.experiment.schema import Custodian, Schema, drop_left
from poolkit.local.distance import way_to
from poolkit.local.network import ServerTls
from poolkit.local.ports import LOOPBACK
from poolkit.local.postgres import APP_ROLE, EmbeddedPostgres
from poolkit.local.postgres_cluster import SUPERUSER
from poolkit.local.processes import signals_wait
from poolkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from poolkit.local.distance import Distance, Way

OBSERVER = "poolkit observer"
_LIBPQ_ALONE = (
    *("channel_binding", "connect_timeout", "gssencmode", "keepalives", "keepalives_idle"),
    *("keepalives_interval", "keepalives_count", "sslsni", "tcp_user_timeout"),
)
"""Parameters that asyncpg would send to the server as settings."""
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
    server_tls: ServerTls | None = None
    """How a network in front of it speaks TLS to it, if it has TLS."""

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
        login = f"{user}{':' if password else ''}{password}{'@' if user or password else ''}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{login}{host}:{self.port}/{quote(self.database, safe='')}"

    def _query(self, driver: str) -> str:
        given = dict(self.extra)
        if driver == "asyncpg":
            given = {name: value for name, value in given.items() if name not in _LIBPQ_ALONE}
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
        postgres: the server, if it is private; None on another server.

    Args:
        address: for the experiment's own connections.
        observer: for the connection beside them.
        postgres: the server, if it is private.
        condition: in SQL, what distinguishes the experiment's connections in pg_stat_activity.
        prepare: receives each connection of the observer before it is used.
    """

    def __init__(
        self,
        address: Address,
        observer: Address,
        *,
        postgres: EmbeddedPostgres | None = None,
        condition: str = "datname = current_database()",
        prepare: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self.address = address
        self.postgres = postgres
        self._observer_address = observer
        self._condition = condition
        self._prepare = prepare
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
            self._prepare(self._observer)
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

    def observed_address(self) -> Address:
        """Return the observer's address as libpq completed it: from .pgpass, PGUSER, PGSSLMODE."""
        info, address = self._observer.info, self._observer_address
        return replace(
            address,
            user=info.user,
            password=info.password or "",
            database=info.dbname,
            server_tls=_tls_of(info, address.host),
        )

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
        """Make a database, and drop it at the end with the connections that it still has."""
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
    """A server that is not ours: a schema of its own for each experiment, dropped at the end.

    Args:
        url: the database; its role must be allowed to make a schema.
        distance: to be added on the way to it.
        say: shows what is dropped of earlier runs.
    """

    def __init__(
        self, url: str, distance: Distance, say: Callable[[str], None] = lambda _: None
    ) -> None:
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
        query = {name: str(value) for name, value in found.query.items()}
        host = query.pop("host", found.host) or LOOPBACK
        if "/" in host or "," in host:
            raise ConfigurationError(
                f"--database-url leads to {host}: experiments connect to one host over TCP"
            )
        try:
            parse_dsn(found.set(drivername="postgresql").render_as_string(hide_password=False))
            port = int(query.pop("port", found.port or 5432))
        except (psycopg2.ProgrammingError, ValueError) as error:
            raise ConfigurationError(
                f"--database-url is no URL of libpq: {in_one_line(error)}"
            ) from None
        if query.pop("ssl", ""):  # libpq takes `ssl=true` alone, and asyncpg does not
            query["sslmode"] = "require"
        self._distance = distance
        self._say = say
        self._has_looked = False
        self._address = Address(
            host=host,
            port=port,
            user=found.username or "",
            password=found.password or "",
            database=found.database or found.username or "",
            extra=query,
        )

    @contextmanager
    def place(self, name: str) -> Iterator[Place]:
        """Make a schema, and drop it at the end."""
        schema = Schema.new()

        def prepare(connection: Any) -> None:
            _check_for_pooler(connection, self._address)
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '10s'")
                # Another run sees by it that this one is in progress.
                cursor.execute("SELECT pg_advisory_lock(%s, %s)", schema.lock)

        condition = f"left(application_name, 16) = '{schema.name}'"
        place = Place(self._address, self._address, condition=condition, prepare=prepare)
        with ExitStack() as stack:
            stack.callback(place.close)
            place.ask("SELECT 1")
            address = replace(
                place.observed_address(),
                settings={"application_name": schema.name, "search_path": schema.name},
            )
            self._drop_left(place)
            # A signal in between would leave the schema behind.
            with signals_wait():
                custodian = Custodian(schema, replace(address, settings={}).dsn())
                stack.callback(custodian.dismiss)
                try:
                    place.ask(schema.creation())
                except psycopg2.errors.InsufficientPrivilege:
                    raise ConfigurationError(
                        f"{address.user} may not make a schema in the database "
                        f"{address.database}: GRANT CREATE ON DATABASE "
                        f"{address.database} TO {address.user}"
                    ) from None
                except psycopg2.Error as error:
                    raise ConfigurationError(
                        f"cannot make a schema in the database {address.database}: "
                        f"{in_one_line(error)}"
                    ) from None
                stack.callback(self._drop, place, schema)
            place.address = stack.enter_context(far(address, self._distance))
            yield place

    def _drop_left(self, place: Place) -> None:
        """Drop what killed runs have left, before the first experiment."""
        if self._has_looked:
            return
        self._has_looked = True
        # It is no part of this run: what does not work is left to the next.
        with suppress(psycopg2.Error, DatabaseUnavailable):
            for name in drop_left(place.ask):
                self._say(f"dropped the schema {name}, which a killed run has left")

    def _drop(self, place: Place, schema: Schema) -> None:
        """Drop an experiment's schema, without an interruption by Ctrl-C or SIGTERM."""
        try:
            with signals_wait():
                # Its own connections could hold locks on what is dropped.
                place.terminate()
                place.ask(schema.drop())
        except (psycopg2.Error, DatabaseUnavailable) as error:
            raise DatabaseUnavailable(
                f"the schema {schema.name} is left in the database {self._address.database}: "
                f"{in_one_line(error)}; DROP SCHEMA {schema.name} CASCADE removes it"
            ) from None


def _check_for_pooler(connection: Any, address: Address) -> None:
    """Raise an error if another program than the server answers, whose pid is not the server's."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    if pid != connection.info.backend_pid:
        connection.close()
        raise ConfigurationError(
            f"a pooler such as PgBouncer answers at {address.host}:{address.port}: experiments "
            "count the server's own connections, so give --database-url the server itself"
        )


def _tls_of(info: Any, host: str) -> ServerTls | None:
    """Return how a connection of libpq speaks TLS; None if it does not."""
    if not info.ssl_in_use:
        return None
    given = info.dsn_parameters
    own = Path.home() / ".postgresql"
    files = {"sslrootcert": "root.crt", "sslcert": "postgresql.crt", "sslkey": "postgresql.key"}
    found = {
        name: given.get(name) or (str(own / file) if (own / file).exists() else "")
        for name, file in files.items()
    }
    mode = given.get("sslmode", "prefer")
    # libpq checks the certificate too where it has an authority's file (libpq-ssl.html).
    if mode == "require" and found["sslrootcert"]:
        mode = "verify-ca"
    return ServerTls(host=host, sslmode=mode, **found)


def in_one_line(error: BaseException) -> str:
    """Return an error's text in one line, without passwords."""
    return " ".join(masked(str(error)).split())


@contextmanager
def far(address: Address, distance: Distance) -> Iterator[Address]:
    """Return an address that leads to the same database over a distance."""
    if distance.is_none:
        yield address
        return
    with way_to(address.host, address.port, distance, server_tls=address.server_tls) as way:
        yield through(way, address)


def through(way: Way, address: Address) -> Address:
    """Return the address of a database through a network in front of it."""
    extra = dict(address.extra)
    if address.server_tls is not None:
        # These are between the network and the server now, and the certificate is not the server's.
        extra = {name: value for name, value in extra.items() if not name.startswith("ssl")}
        extra |= {"sslmode": "prefer", "channel_binding": "disable"}
    return replace(
        address,
        host=way.network.host,
        port=way.network.port,
        ca=way.ca,
        extra=extra,
        server_tls=None,
    )
