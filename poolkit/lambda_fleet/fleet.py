"""The Lambda fleet: a function behind a listening socket, on an event loop or in a thread."""

import asyncio
import atexit
import contextlib
import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

from poolkit.errors import FleetNotRunning, LambdaFleetError
from poolkit.lambda_fleet.config import FunctionConfig
from poolkit.lambda_fleet.function import LambdaFunction, Usage, usage
from poolkit.lambda_fleet.gateway import CLIENT_LIMITS, Gateway
from poolkit.lambda_fleet.http_protocol import HttpProtocol
from poolkit.lambda_fleet.invocation import (
    Invocation,
    InvokeRecord,
    Outcome,
    new_request_id,
    new_trace_id,
)

T = TypeVar("T")

LAST_PORT = 65_535


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop where it is installed, else asyncio's own loop."""
    try:
        import uvloop  # noqa: PLC0415 - optional: it has no Windows build
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class FleetServer:
    """Serves one function until closed. Everything on the thread that runs the loop."""

    def __init__(self, config: FunctionConfig, *, host: str, port: int, log_dir: Path) -> None:
        self.function = LambdaFunction(config, log_dir)
        self._host = host
        self._port = port
        self._log_dir = log_dir
        self._server: asyncio.Server | None = None
        self._connections: set[HttpProtocol] = set()

    async def open(self) -> str:
        """Create the log directory and listen; return the URL.

        Raises:
            LambdaFleetError: the directory cannot be created, or the port is taken or out of range.
        """
        gateway = Gateway(self.function)
        host, port = self._host, self._port
        # uvloop would listen on the number's lower 16 bits.
        if not 0 <= port <= LAST_PORT:
            raise LambdaFleetError(
                f"port must be 0 to {LAST_PORT}, found {port}; 0 takes a free one"
            )
        try:
            self._log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LambdaFleetError(
                f"cannot create the log directory {self._log_dir}: {error.strerror or error}; "
                "choose another one"
            ) from error
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: HttpProtocol(gateway.on_request, CLIENT_LIMITS, self._connections),
                host,
                port,
                backlog=1024,
            )
        except OSError as error:
            raise LambdaFleetError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; port 0 takes a free one"
            ) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        with contextlib.suppress(OSError):
            socket.inet_pton(socket.AF_INET6, host)
            host = f"[{host}]"
        return f"http://{host}:{port}"

    async def close(self) -> None:
        """End every execution environment, answer the requests in flight, and stop listening."""
        if self._server is not None:
            self._server.close()
        await self.function.close()
        for connection in tuple(self._connections):
            connection.close()
        # One pass of the loop, in which the last responses are written.
        await asyncio.sleep(0)
        for connection in tuple(self._connections):
            connection.abort()
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 1.0)


class LambdaFleet:
    """A local Lambda service for one function, with an HTTP API in front of it.

    A context manager; it runs in a thread of its own and is safe to call from any thread.
    `log_dir` gets one file per execution environment: its output, and Lambda's START, END and
    REPORT lines.

    Execution environments end with the fleet: at `stop()`, when the process ends, and on Linux
    also when the process is killed with SIGKILL.
    """

    def __init__(
        self, config: FunctionConfig, *, log_dir: Path, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.config = config
        self._host = host
        self._port = port
        self._log_dir = Path(log_dir)
        self._url: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: FleetServer | None = None
        self._thread: threading.Thread | None = None
        self._scheduling = threading.Lock()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The HTTP API's address, without a slash at the end. Raises `FleetNotRunning`."""
        if self._url is None:
            raise FleetNotRunning("the fleet has no address while it is not running; call start()")
        return self._url

    def start(self) -> Self:
        """Listen for clients; no execution environment is started before one is needed.

        Raises:
            LambdaFleetError: the fleet runs already, the port is taken or out of range, or the
                log directory cannot be created.
        """
        if self._thread is not None:
            raise LambdaFleetError("the fleet is running already; stop() it first")
        listening: Future[str] = Future()
        # The kernel ends the execution environments with the thread that started them. It is a
        # daemon, because the interpreter would wait for any other thread at its end.
        self._thread = threading.Thread(
            target=self._run, args=(listening,), name="lambda-fleet", daemon=True
        )
        self._thread.start()
        try:
            self._url = listening.result()
        except LambdaFleetError:
            self._thread.join()
            self._thread = None
            raise
        atexit.register(self.stop)
        return self

    def stop(self) -> None:
        """End all execution environments and the server; return when their processes are gone."""
        thread, loop, server = self._thread, self._loop, self._server
        if thread is None or loop is None or server is None:
            return
        asyncio.run_coroutine_threadsafe(server.close(), loop).result()
        with self._scheduling:
            self._thread = self._loop = self._url = None
            loop.call_soon_threadsafe(loop.stop)
        thread.join()
        atexit.unregister(self.stop)

    def prewarm(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Start `count` more execution environments and wait until they are ready for an invoke.

        A quick way to find out whether the handler imports at all.

        Raises:
            FunctionInitError: it does not.
            FunctionConfigError: there would be more than the reserved concurrency.
            TimeoutError: `timeout_s` seconds have passed.
        """
        server, loop = self._running()
        asyncio.run_coroutine_threadsafe(server.function.prewarm(count), loop).result(timeout_s)

    def invoke(self, event: Any, *, timeout_s: float | None = None) -> Outcome:
        """Invoke the function with any event that JSON can hold, and wait for the outcome.

        Throttles and failures are outcomes, not exceptions.

        Raises:
            FleetNotRunning: the fleet is not running.
            TimeoutError: `timeout_s` seconds have passed; the invoke goes on.
        """
        answered = threading.Event()
        outcomes: list[Outcome] = []

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            answered.set()

        invocation = Invocation(
            json.dumps(event).encode(), done, request_id=new_request_id(), trace_id=new_trace_id()
        )
        self._on_loop(lambda server: server.function.submit(invocation))
        if not answered.wait(timeout_s):
            raise TimeoutError(
                f"no outcome within {timeout_s} s; invoke {invocation.request_id} may still run"
            )
        return outcomes[0]

    def stats(self) -> dict[str, Any]:
        """Return the counters since the start and the present states. Raises `FleetNotRunning`."""
        return self._on_loop(lambda server: server.function.stats())

    def records(self) -> list[InvokeRecord]:
        """Return the records of the invokes, oldest first; they outlive `stop()`.

        Beyond `records_kept` the oldest are missing, and `stats()` has their number as
        `records_dropped`.
        """
        server = self._server
        if server is None:
            raise FleetNotRunning("the fleet has never been started; call start()")
        if self._thread is None:
            return server.function.counters.records
        return self._on_loop(lambda running: running.function.counters.records)

    def pids(self) -> dict[str, int]:
        """Return the process id of each execution environment by its name."""
        return self._on_loop(lambda server: server.function.pids())

    def usage(self) -> list[Usage]:
        """Return memory and CPU of each execution environment."""
        return usage(self.pids())

    def _running(self) -> tuple[FleetServer, asyncio.AbstractEventLoop]:
        server, loop = self._server, self._loop
        if self._thread is None or server is None or loop is None:
            raise FleetNotRunning("the fleet is not running; call start()")
        return server, loop

    def _on_loop(self, look: Callable[[FleetServer], T]) -> T:
        """Call `look` on the event loop's thread and return its result."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(look(server))
            except BaseException as error:  # noqa: BLE001 - passed to the caller's thread
                done.set_exception(error)

        # One callback rather than a coroutine, and not while `stop` schedules the loop's end:
        # then it runs before that end, and no caller waits for a loop that has stopped.
        with self._scheduling:
            server, loop = self._running()
            loop.call_soon_threadsafe(run)
        return done.result()

    def _run(self, listening: Future[str]) -> None:
        loop = new_event_loop()
        asyncio.set_event_loop(loop)
        server = FleetServer(self.config, host=self._host, port=self._port, log_dir=self._log_dir)
        try:
            url = loop.run_until_complete(server.open())
            self._loop, self._server = loop, server
            listening.set_result(url)
            loop.run_forever()
            loop.run_until_complete(loop.shutdown_default_executor())
        except LambdaFleetError as error:
            listening.set_exception(error)
        finally:
            loop.close()
