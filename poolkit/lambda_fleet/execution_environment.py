"""One Lambda sandbox: its process, its Runtime API and the invoke it works on."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from poolkit.lambda_fleet.config import FunctionConfig
from poolkit.lambda_fleet.http_protocol import HttpProtocol, Limits, Request, response
from poolkit.lambda_fleet.invocation import Invocation
from poolkit.lambda_fleet.process import FunctionProcess, environment_variables
from poolkit.lambda_fleet.records import InvokeRecord, Status

# Lambda Developer Guide, Quotas: 6 MB each for request and response; the exact number is the one
# in Lambda's message "Response payload size exceeded maximum allowed payload size".
MAX_RESPONSE_BYTES = 6_291_556
# Far above it, so that an answer which is too large is read and reported rather than cut off.
_RUNTIME_LIMITS = Limits(head=2 * 1024 * 1024, body=64 * 1024 * 1024)

_PREFIX = b"/2018-06-01/runtime/"
_NEXT = _PREFIX + b"invocation/next"
_INVOCATION = _PREFIX + b"invocation/"
_INIT_ERROR = _PREFIX + b"init/error"
_ACCEPTED = response(202, b'{"status":"OK"}\n')
_TOO_LARGE = response(
    413, b'{"errorMessage":"Exceeded maximum allowed payload size",'
    b'"errorType":"RequestEntityTooLarge"}'
)  # fmt: skip


class State(Enum):
    """Where an execution environment is in its life."""

    INIT = auto()
    BUSY = auto()
    FINISHING = auto()
    """Has answered, and has not asked for the next event yet."""
    IDLE = auto()
    ENDING = auto()
    ENDED = auto()


class Owner(Protocol):
    """What an execution environment tells the function it belongs to."""

    def on_init(self, environment: "ExecutionEnvironment") -> None:
        """The init phase is over: the runtime has asked for its first event."""

    def on_next(self, environment: "ExecutionEnvironment") -> None:
        """The runtime is done with an invoke, and asks for the next one."""

    def on_answer(
        self,
        environment: "ExecutionEnvironment",
        status: Status,
        payload: bytes,
        error_type: str | None,
    ) -> None:
        """The invoke has an answer."""

    def on_init_error(
        self, environment: "ExecutionEnvironment", payload: bytes, error_type: str
    ) -> None:
        """The runtime has given up in its init phase."""

    def on_exit(self, environment: "ExecutionEnvironment", reason: str) -> None:
        """The process has ended; `reason` in Lambda's words."""


class ExecutionEnvironment:
    """Serves the Runtime API to one function process, on a loopback port of its own.

    A port each, because the runtime posts init errors with `http.client`, which takes no
    `host:port/path` for an address.
    """

    def __init__(self, number: int, config: FunctionConfig, owner: Owner, log: Path) -> None:
        self.name = f"{number:05d}"
        self.state = State.INIT
        self.invocation: Invocation | None = None
        self.following: Invocation | None = None
        """Assigned while FINISHING; handed over as soon as the runtime asks."""
        self.idle_since = 0.0
        self.process: FunctionProcess | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._config = config
        self._owner = owner
        self._log_path = log
        self._log_fd = -1
        self._connections: set[HttpProtocol] = set()
        self._server: asyncio.Server | None = None
        self._runtime: HttpProtocol | None = None
        self._started = 0.0
        self._arn = config.arn.encode()

    async def start(self, stream: str) -> None:
        """Open the Runtime API, then start the process; a failure is an exit like any other."""
        try:
            await self._start(stream)
        except OSError as error:
            self._close()
            self._owner.on_exit(self, f"Runtime was not started: {error}")

    async def _start(self, stream: str) -> None:
        self._log_fd = os.open(
            self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: HttpProtocol(self._on_request, _RUNTIME_LIMITS, self._connections),
            "127.0.0.1",
            0,
        )
        if self.state is not State.INIT:
            # Ended while the port was being opened.
            self._close()
            return
        host, port = self._server.sockets[0].getsockname()[:2]
        self._started = time.perf_counter()
        self.process = FunctionProcess(
            self._config,
            variables=environment_variables(self._config, api=f"{host}:{port}", stream=stream),
            log_fd=self._log_fd,
            on_exit=self._exited,
        )

    def hand_over(self, invocation: Invocation) -> None:
        """Give the waiting runtime an event; it must have asked for one."""
        runtime = self._runtime
        assert runtime is not None  # noqa: S101 - the states allow nothing else
        self._runtime = None
        self.state = State.BUSY
        self.invocation = invocation
        invocation.environment = self.name
        deadline_ms = invocation.hand_over(self._config.timeout_s, self._timed_out)
        if self.process is not None:
            self.process.thaw()
        self._log(f"START RequestId: {invocation.request_id} Version: $LATEST\n")
        headers = b"".join(
            (
                b"content-type: application/json\r\nlambda-runtime-aws-request-id: ",
                invocation.request_id.encode(),
                b"\r\nlambda-runtime-deadline-ms: %d" % deadline_ms,
                b"\r\nlambda-runtime-invoked-function-arn: " + self._arn,
                b"\r\nlambda-runtime-trace-id: " + invocation.trace_id.encode(),
                b"\r\nlambda-runtime-client-context: " + invocation.client_context
                if invocation.client_context
                else b"",
                b"\r\n",
            )
        )
        runtime.respond(response(200, invocation.event, headers))

    def limit(self, seconds: float, on_limit: Callable[[], None]) -> None:
        """Call `on_limit` unless the runtime asks for an event, or ends, within the time."""
        self._limit = asyncio.get_running_loop().call_later(seconds, on_limit)

    def _cancel_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def freeze(self) -> None:
        """Stop the processes until the next event."""
        if self.process is not None:
            self.process.freeze()

    def shut_down(self) -> None:
        """End as Lambda's Shutdown phase does: SIGTERM, `shutdown_ms`, SIGKILL."""
        if self.state in (State.ENDING, State.ENDED):
            return
        self._cancel_limit()
        self.state = State.ENDING
        if self.process is None or not self._config.shutdown_ms:
            self.kill()
            return
        self.process.terminate()
        asyncio.get_running_loop().call_later(self._config.shutdown_ms / 1000, self.kill)

    def kill(self) -> None:
        """End now."""
        self._cancel_limit()
        if self.state is not State.ENDED:
            self.state = State.ENDING
        if self.process is not None:
            self.process.kill()
        elif self._server is None:
            self._exited()

    def report(self, record: InvokeRecord) -> None:
        """Write Lambda's two closing lines of an invoke to the log."""
        duration = record.duration_ms or 0.0
        init = f"\tInit Duration: {record.init_ms:.2f} ms" if record.init_ms is not None else ""
        status = "" if record.status is Status.OK else f"\tStatus: {record.status.value}"
        kind = f"\tError Type: {record.error_type}" if record.error_type else ""
        self._log(
            f"END RequestId: {record.request_id}\n"
            f"REPORT RequestId: {record.request_id}\tDuration: {duration:.2f} ms\t"
            f"Billed Duration: {int(duration + (record.init_ms or 0.0)) + 1} ms\t"
            f"Memory Size: {self._config.memory_mb} MB{init}{status}{kind}\n"
        )

    def _log(self, text: str) -> None:
        if self._log_fd >= 0:
            # A full disk must not fail an invoke; its record is kept in memory as well.
            with contextlib.suppress(OSError):
                os.write(self._log_fd, text.encode())

    def _timed_out(self) -> None:
        self._owner.on_answer(self, Status.TIMEOUT, b"", "Sandbox.Timedout")

    def _exited(self) -> None:
        reason = self.process.exit_reason if self.process else "Runtime was not started"
        self._close()
        self._owner.on_exit(self, reason)

    def _close(self) -> None:
        self._cancel_limit()
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1

    # The Runtime API

    def _on_request(self, connection: HttpProtocol, request: Request) -> None:
        if request.target == _NEXT and request.method == b"GET":
            self._next(connection)
        elif request.target.startswith(_INVOCATION) and request.method == b"POST":
            request_id, _, what = request.target[len(_INVOCATION) :].partition(b"/")
            self._answer(connection, request, request_id.decode("latin-1"), what)
        elif request.target == _INIT_ERROR and request.method == b"POST":
            self._init_error(connection, request)
        else:
            connection.respond(_error(404, "ResourceNotFound", "no such Runtime API resource"))

    def _next(self, connection: HttpProtocol) -> None:
        if self.state not in (State.INIT, State.FINISHING):
            connection.respond(_wrong_state(f"next while {self.state.name}"))
            return
        self._cancel_limit()
        self._runtime = connection
        if self.state is State.INIT:
            invocation = self.invocation
            if invocation is not None:
                invocation.init_ms = round((time.perf_counter() - self._started) * 1000, 3)
            self._owner.on_init(self)
        else:
            self._owner.on_next(self)

    def _answer(
        self, connection: HttpProtocol, request: Request, request_id: str, what: bytes
    ) -> None:
        if self.state is not State.BUSY or self.invocation is None:
            connection.respond(_wrong_state(f"an answer while {self.state.name}"))
        elif self.invocation.request_id != request_id:
            connection.respond(_error(400, "InvalidRequestID", "not the invoke in progress"))
        elif len(request.body) > MAX_RESPONSE_BYTES:
            connection.respond(_TOO_LARGE)
            self._owner.on_answer(
                self, Status.RESPONSE_TOO_LARGE, b"", "Function.ResponseSizeTooLarge"
            )
        elif what == b"response":
            connection.respond(_ACCEPTED)
            self._owner.on_answer(self, Status.OK, request.body, None)
        elif what == b"error":
            connection.respond(_ACCEPTED)
            kind = _error_type(request.body)
            self._owner.on_answer(self, Status.HANDLER_ERROR, request.body, kind)
        else:
            connection.respond(_error(404, "ResourceNotFound", "no such Runtime API resource"))

    def _init_error(self, connection: HttpProtocol, request: Request) -> None:
        if self.state is not State.INIT:
            connection.respond(_wrong_state(f"an init error while {self.state.name}"))
            return
        connection.respond(_ACCEPTED)
        self._owner.on_init_error(self, request.body, _error_type(request.body))


def _error_type(body: bytes) -> str:
    try:
        return str(json.loads(body)["errorType"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "Unknown"


def _error(status: int, error_type: str, text: str) -> bytes:
    return response(status, json.dumps({"errorType": error_type, "errorMessage": text}).encode())


def _wrong_state(what: str) -> bytes:
    return _error(403, "InvalidStateTransition", f"Transition is not allowed: {what}")
