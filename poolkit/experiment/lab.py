"""The lab: what an experiment works with, and where it puts what it finds."""

from __future__ import annotations

import resource
import socket
import statistics
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from poolkit.errors import NotReadyError
from poolkit.experiment.ground import Address, Place, PrivateGround, far, through
from poolkit.experiment.outcome import Chart, Holds, Judgement, Table, judged
from poolkit.lambda_fleet import FunctionConfig, LambdaFleet
from poolkit.local.distance import Distance, way_to
from poolkit.local.mongodb import EmbeddedMongoDB
from poolkit.local.pgbouncer import EmbeddedPgBouncer
from poolkit.local.ports import LOOPBACK
from poolkit.local.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from starlette.types import ASGIApp

    from poolkit.local.network import Network


class Times(tuple[float, ...]):
    """Durations in seconds."""

    __slots__ = ()

    @property
    def median(self) -> float:
        """The middle one, in seconds."""
        return statistics.median(self)

    @property
    def total(self) -> float:
        """Their sum, in seconds."""
        return sum(self)

    def percentile(self, share: float) -> float:
        """Return the smallest duration that this share of them does not exceed (0 to 1)."""
        ordered = sorted(self)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def __str__(self) -> str:
        return f"{milliseconds(self.median)} (p50 of {len(self)})"


def milliseconds(seconds: float) -> str:
    """Return a duration to three digits, such as `7.61 ms` or `1.2 s`."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms"


class Pooler:
    """A PgBouncer in front of a place.

    Attributes:
        bouncer: the server itself, whose `stats_url` leads to its admin console.
    """

    def __init__(self, address: Address, bouncer: EmbeddedPgBouncer) -> None:
        self._address = address
        self.bouncer = bouncer

    def url(self, driver: str = "psycopg2") -> str:
        """Return the URL of the same database through the pooler, for `create_engine`."""
        return self._address.url(driver)

    def dsn(self, driver: str = "psycopg2") -> str:
        """Return the URL of the same database through the pooler, for the driver itself."""
        return self._address.dsn(driver)

    @property
    def version(self) -> str:
        """PgBouncer's version, such as `1.18.0`."""
        return self.bouncer.version()


class Line(NamedTuple):
    """A network in front of a database, and the address of the database through it."""

    network: Network
    address: Address


class Lab:
    """What an experiment works with: a database, an observer, time, and a record of its findings.

    `url`, `dsn`, `backends`, `ask` and `terminate` are those of its own database: see `Place`.

    Args:
        place: the experiment's own database.
        folder: for the files of further servers.
        distance: between the experiment and its database; further servers have the same.
        say: shows the progress.
        programs: the folder of another PostgreSQL than the wheel's, for further servers.
        mongodb_url: a MongoDB, where there is one.
    """

    def __init__(
        self,
        place: Place,
        *,
        folder: Path,
        distance: Distance,
        say: Callable[[str], None],
        programs: Path | None = None,
        mongodb_url: str = "",
    ) -> None:
        self.place = place
        self.folder = folder
        self.distance = distance
        self.say = say
        self.mongodb_url = mongodb_url
        self.judgements: list[Judgement] = []
        self.tables: list[Table] = []
        self.charts: list[Chart] = []
        self.notes: list[str] = []
        self._programs = programs
        self._endings = ExitStack()
        self.url = place.url
        self.dsn = place.dsn
        self.backends = place.backends
        self.ask = place.ask
        self.terminate = place.terminate

    def at_end(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Call a function when the experiment has ended, also when it raised: `engine.dispose`.

        The last one comes first.
        """
        self._endings.callback(action, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._endings.close()

    def allow_open_files(self, count: int) -> None:
        """Raise this process's limit of open files until the experiment ends, as far as allowed.

        Servers that it starts inherit the limit.

        Args:
            count: of files and sockets; many systems allow 1024.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
        if soft != resource.RLIM_INFINITY and soft < allowed:
            self.at_end(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))

    # -- further servers -------------------------------------------------------------------------

    @contextmanager
    def new_server(
        self, *, max_connections: int = 100, settings: Mapping[str, str] | None = None
    ) -> Iterator[Place]:
        """Start another PostgreSQL, which may be stopped, filled or set up as one likes.

        Args:
            max_connections: of the server.
            settings: more settings of postgresql.conf.
        """
        with ExitStack() as stack:
            postgres = stack.enter_context(
                EmbeddedPostgres(
                    self.folder,
                    max_connections=max_connections,
                    settings=settings,
                    programs=self._programs,
                )
            )
            ground = PrivateGround(postgres, self.distance)
            yield stack.enter_context(ground.place("experiment"))

    @contextmanager
    def pgbouncer(
        self,
        place: Place | None = None,
        *,
        pool_mode: Literal["session", "transaction", "statement"] = "transaction",
        pool_size: int = 20,
        settings: Mapping[str, str] | None = None,
    ) -> Iterator[Pooler]:
        """Start a PgBouncer in front of a private server.

        Args:
            place: on the server of `new_server`; the experiment's own by default.
            pool_mode: PgBouncer's.
            pool_size: `default_pool_size`, the most connections to the server.
            settings: more settings of pgbouncer.ini.
        """
        place = place or self.place
        assert place.postgres is not None  # noqa: S101  (it needs "pgbouncer", so a private server)
        with ExitStack() as stack:
            bouncer = stack.enter_context(
                EmbeddedPgBouncer(
                    place.postgres,
                    self.folder,
                    pool_mode=pool_mode,
                    pool_size=pool_size,
                    settings=settings,
                )
            )
            address = Address(
                host=bouncer.host,
                port=bouncer.port,
                user=place.address.user,
                password=place.address.password,
                database=place.address.database,
            )
            yield Pooler(stack.enter_context(far(address, self.distance)), bouncer)

    @contextmanager
    def mongodb(self) -> Iterator[str]:
        """Yield the URL of a MongoDB: the one of --mongodb-url, or one that is started."""
        if self.mongodb_url:
            yield self.mongodb_url
            return
        with EmbeddedMongoDB(self.folder) as server:
            yield server.url()

    @contextmanager
    def network(
        self,
        place: Place | None = None,
        *,
        rtt_s: float = 0.0,
        tls: bool = False,
        traces: bool = False,
    ) -> Iterator[Line]:
        """Open a network in front of a database: far, with TLS, or one that can fail.

        Args:
            place: on the server of `new_server`; the experiment's own by default.
            rtt_s: its round-trip time in seconds.
            tls: whether connections through it use TLS.
            traces: record what passes, for `Network.traces`.
        """
        to = (place or self.place).address
        distance = Distance(rtt_s=rtt_s, tls=tls)
        with way_to(to.host, to.port, distance, traces=traces, server_tls=to.server_tls) as way:
            address = through(way, to)
            # Drivers try TLS unless told otherwise, and --tls offers it on the way behind this one.
            if to.ca is not None and not tls:
                address = replace(address, extra={**address.extra, "sslmode": "disable"})
            yield Line(way.network, address)

    def count_backends(self, expected: int, *, within_s: float = 3.0) -> int:
        """Return the number of the experiment's connections on the server, after a close.

        A server process ends some milliseconds after the client has closed its connection. So this
        asks again until the number is the expected one, or the time is over.

        Args:
            expected: the number that ends the wait.
            within_s: the longest wait, in seconds.
        """
        deadline = time.monotonic() + within_s
        while (found := len(self.backends())) != expected and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    @contextmanager
    def serve(self, app: ASGIApp) -> Iterator[int]:
        """Serve an ASGI application, such as one of FastAPI's, and return its port on 127.0.0.1.

        A real uvicorn serves it in a thread of this process, so that the experiment can look into
        the application's pool. Requests that are under way at the end may finish.
        """
        import uvicorn  # noqa: PLC0415  (most experiments serve nothing)

        # Errors are answers here, which the experiment counts.
        config = uvicorn.Config(app, loop="asyncio", log_config=None, log_level="critical")
        server = uvicorn.Server(config)
        with socket.create_server((LOOPBACK, 0), backlog=config.backlog) as listening:
            thread = threading.Thread(target=server.run, args=([listening],), name="uvicorn")
            thread.start()
            try:
                yield listening.getsockname()[1]
            finally:
                server.should_exit = True
                thread.join()

    @contextmanager
    def function(self, source: str, *, url: str, timeout_s: float = 30.0) -> Iterator[LambdaFleet]:
        """Run a Lambda function on the local Lambda.

        Args:
            source: of its module, with a function `handler`.
            url: of its database, in its variable DATABASE_URL.
            timeout_s: its time limit for an invoke, in seconds.
        """
        with TemporaryDirectory(prefix="poolkit-function-") as folder:
            (Path(folder) / "app.py").write_text(source, encoding="utf-8")
            config = FunctionConfig(
                handler="app.handler",
                task_root=Path(folder),
                env={"DATABASE_URL": url},
                timeout_s=timeout_s,
                # Several start at once, perhaps on a busy machine.
                init_limit_s=60,
            )
            with LambdaFleet(config, log_dir=Path(folder) / "logs") as fleet:
                yield fleet

    # -- time ------------------------------------------------------------------------------------

    def time(self, action: Callable[[], Any], times: int = 1) -> Times:
        """Call a function `times` times, and return how long each call took."""
        found = []
        for _ in range(times):
            began = time.perf_counter()
            action()
            found.append(time.perf_counter() - began)
        return Times(found)

    def time_in_turn(
        self, actions: Mapping[str, Callable[[], Any]], times: int
    ) -> dict[str, Times]:
        """Time several functions in turn, so that what else the machine does falls on all alike.

        Args:
            actions: by name.
            times: the number of rounds.
        """
        found: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(times):
            for name, action in actions.items():
                found[name] += self.time(action)
        return {name: Times(each) for name, each in found.items()}

    def rate(self, action: Callable[[], Any], *, threads: int, seconds: float) -> float:
        """Call a function from several threads for a time, and return the calls per second.

        A thread starts no call when the time is over. The last ones are waited for and counted,
        with the time that they took.

        Args:
            action: what a client does, such as a query with a connection of the pool.
            threads: the clients at the same time.
            seconds: how long they start calls.
        """
        began = time.perf_counter()

        def client() -> int:
            calls = 0
            while time.perf_counter() < began + seconds:
                action()
                calls += 1
            return calls

        with ThreadPoolExecutor(threads) as clients:
            counts = [clients.submit(client) for _ in range(threads)]
        return sum(count.result() for count in counts) / (time.perf_counter() - began)

    def wait_until(self, what: str, condition: Callable[[], Any], *, within_s: float = 20.0) -> Any:
        """Wait for a condition, and return what it returned.

        Raises:
            NotReadyError: it is not true within that time; `what` is in the message.
        """
        deadline = time.monotonic() + within_s
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise NotReadyError(f"not within {within_s:g} s: {what}")
            time.sleep(0.01)
        return found

    # -- findings --------------------------------------------------------------------------------

    def table(
        self, title: str, columns: Sequence[object], rows: Iterable[Sequence[object]]
    ) -> None:
        """Record a table. A float is shown to three digits.

        Raises:
            ValueError: a row has more cells than there are columns, or fewer.
        """
        heads = tuple(map(_cell, columns))
        cells = tuple(tuple(map(_cell, row)) for row in rows)
        for row in cells:
            if len(row) != len(heads):
                raise ValueError(
                    f"the table {title!r} has {len(heads)} columns, and a row of {len(row)}: {row}"
                )
        self.tables.append(Table(title=title, columns=heads, rows=cells))

    def bars(
        self,
        title: str,
        values: Mapping[str, float | Mapping[str, float]],
        *,
        unit: str,
        is_log: bool = False,
    ) -> None:
        """Record a chart of bars.

        Args:
            title: what it shows.
            values: the length of each bar by its name; or the parts of each bar, which are stacked.
            unit: of the values.
            is_log: on a logarithmic axis; not for parts.
        """
        points = [
            (part, name, float(length))
            for name, value in values.items()
            for part, length in (value.items() if isinstance(value, Mapping) else [("", value)])
        ]
        self.charts.append(
            Chart(kind="bars", title=title, unit=unit, points=tuple(points), is_log=is_log)
        )

    def lines(
        self,
        title: str,
        series: Mapping[str, Sequence[tuple[float, float]]],
        *,
        unit: str,
        x_title: str,
        is_log: bool = False,
    ) -> None:
        """Record a chart of lines.

        Args:
            title: what it shows.
            series: the points (x, y) of each line by its name.
            unit: of the values.
            x_title: what x is, with its unit.
            is_log: the values are on a logarithmic axis.
        """
        points = [(name, x, y) for name, line in series.items() for x, y in line]
        self.charts.append(
            Chart(
                kind="lines",
                title=title,
                unit=unit,
                points=tuple(points),
                x_title=x_title,
                is_log=is_log,
            )
        )

    def note(self, text: str) -> None:
        """Record a remark on this run, such as what this machine could not show."""
        self.notes.append(text)

    def judge(self, rows: str, claim: str, *, holds: Holds, measured: str, why: str) -> None:
        """Record the verdict on a claim.

        Args:
            rows: of docs/claims.md, such as `4.22`, or several with spaces between.
            claim: in its author's sense.
            holds: whether the measurement shows it; or whether it does under each of several
                conditions, by their names.
            measured: the numbers.
            why: the mechanism behind them, as a paragraph that is right whatever the verdict.
        """
        self.judgements += [judged(row, claim, holds, measured, why) for row in rows.split()]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)
