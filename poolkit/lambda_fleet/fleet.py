"""The fleet in a thread of its own, for tests and for whoever runs it in-process."""

import asyncio
import atexit
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

from poolkit.errors import FleetNotRunning, LambdaFleetError
from poolkit.lambda_fleet.config import FunctionConfig
from poolkit.lambda_fleet.invocation import (
    Invocation,
    Outcome,
    new_request_id,
    new_trace_id,
)
from poolkit.lambda_fleet.records import InvokeRecord
from poolkit.lambda_fleet.server import FleetServer, new_event_loop
from poolkit.lambda_fleet.usage import Usage, usage

T = TypeVar("T")


class LambdaFleet:
    """A local Lambda service for one function, with an HTTP API in front of it.

    A context manager. `log_dir` gets one file per execution environment: its output, and Lambda's
    START, END and REPORT lines. Safe to call from any thread.

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

        Raises `LambdaFleetError` when the port is taken or none, or the log directory cannot be
        made.
        """
        if self._thread is not None:
            raise LambdaFleetError("the fleet is running already; stop() it first")
        listening: Future[str] = Future()
        # The kernel ends the execution environments with the thread that started them. A daemon,
        # or an interpreter whose main thread has ended would wait for it for ever.
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
        """End all execution environments and the server; return when they are gone."""
        thread, loop, server = self._thread, self._loop, self._server
        if thread is None or loop is None or server is None:
            return
        asyncio.run_coroutine_threadsafe(server.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        atexit.unregister(self.stop)
        self._thread = self._loop = self._url = None

    def prewarm(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Start `count` execution environments more and wait until they are ready for an invoke.

        A quick way to learn whether the handler imports at all. Raises `FunctionInitError` when
        it does not, `FunctionConfigError` when there would be more than the reserved concurrency,
        and `TimeoutError` after `timeout_s` seconds.
        """
        server = self._running()
        assert self._loop is not None  # noqa: S101 - a running fleet has a loop
        asyncio.run_coroutine_threadsafe(server.function.prewarm(count), self._loop).result(
            timeout_s
        )

    def invoke(self, event: Any, *, timeout_s: float | None = None) -> Outcome:
        """Invoke the function with any event that JSON can hold, and wait for the outcome.

        Throttles and failures are outcomes, not exceptions. Raises `FleetNotRunning`, and
        `TimeoutError` after `timeout_s` seconds of waiting.
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
            raise TimeoutError(f"no outcome within {timeout_s} s")
        return outcomes[0]

    def stats(self) -> dict[str, Any]:
        """Return counters since the start and the present states. Raises `FleetNotRunning`."""
        return self._on_loop(lambda server: server.function.stats())

    def records(self) -> list[InvokeRecord]:
        """Return the invokes, oldest first, still there after `stop()`.

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

    def _running(self) -> FleetServer:
        if self._thread is None or self._server is None:
            raise FleetNotRunning("the fleet is not running; call start()")
        return self._server

    def _on_loop(self, look: Callable[[FleetServer], T]) -> T:
        server = self._running()
        assert self._loop is not None  # noqa: S101 - a running fleet has a loop

        async def run() -> T:
            return look(server)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

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
