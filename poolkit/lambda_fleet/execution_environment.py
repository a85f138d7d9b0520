"""One Lambda execution environment: its process, its Runtime API and the invoke it works on."""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import Protocol

from poolkit.lambda_fleet.config import FunctionConfig
from poolkit.lambda_fleet.http_protocol import HttpProtocol, Limits, Request, response
from poolkit.lambda_fleet.invocation import Invocation, InvokeRecord, Status, error_payload

# Lambda Developer Guide, Quotas: 6 MB each for request and response; the exact number is the one
# in Lambda's message "Response payload size exceeded maximum allowed payload size".
MAX_RESPONSE_BYTES = 6_291_556
# Far above it, so that a response which is too large is read and reported rather than cut off.
_RUNTIME_LIMITS = Limits(head=2 * 1024 * 1024, body=64 * 1024 * 1024)

_LAUNCH = Path(__file__).with_name("launch.py")
# Only where there is no pidfd (anything but Linux 5.3 or later, or no file descriptor is left).
_POLL_S = 0.05

_PREFIX = b"/2018-06-01/runtime/"
_NEXT = _PREFIX + b"invocation/next"
_INVOCATION = _PREFIX + b"invocation/"
_INIT_ERROR = _PREFIX + b"init/error"
_ACCEPTED = response(202, b'{"status":"OK"}\n')


@cache
def fleet_packages() -> str:
    """Return the folder of the fleet's own `awslambdaric`; empty if it has none."""
    spec = importlib.util.find_spec("awslambdaric")
    return "" if spec is None or spec.origin is None else str(Path(spec.origin).parents[1])


class FunctionProcess:
    """A running `awslambdaric` and its children: a session and a process group of their own.

    Create and use it on the event loop's thread only: the kernel ends the process together with
    the thread that started it.
    """

    def __init__(
        self,
        config: FunctionConfig,
        *,
        variables: dict[str, str],
        log_fd: int,
        on_exit: Callable[[], None],
    ) -> None:
        self._popen = subprocess.Popen(
            [config.python, _LAUNCH, str(os.getpid()), config.handler, fleet_packages()],
            cwd=config.task_root,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        self.frozen = False
        self._on_exit = on_exit
        self._pidfd: int | None = None
        loop = asyncio.get_running_loop()
        if sys.platform == "linux" and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self.pid)
        if self._pidfd is not None:
            loop.add_reader(self._pidfd, self._reap, loop)
        else:
            loop.call_later(_POLL_S, self._reap, loop)

    @property
    def exit_reason(self) -> str:
        """Why the process ended, in the text that Lambda reports. Only once it has ended."""
        code = self._popen.returncode
        if code == 0:
            return "Runtime exited without providing a reason"
        if code > 0:
            return f"Runtime exited with error: exit status {code}"
        # Lambda's text is Go's: "killed", "segmentation fault", "terminated".
        name = (signal.strsignal(-code) or f"signal {-code}").partition(" (")[0].lower()
        return f"Runtime exited with error: signal: {name}"

    @property
    def ended(self) -> bool:
        """Whether the process has been reaped."""
        return self._popen.returncode is not None

    def freeze(self, *, frozen: bool = True) -> None:
        """Stop every process of the group with one system call, or let them continue."""
        if frozen is not self.frozen:
            self.send(signal.SIGSTOP if frozen else signal.SIGCONT)
            self.frozen = frozen

    def send(self, number: int) -> None:
        """Send a signal to every process of the group."""
        # The group's leader is reaped on this thread only, so until then its id is not reused.
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _reap(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._pidfd is not None:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        elif self._popen.poll() is None:
            loop.call_later(_POLL_S, self._reap, loop)
            return
        # The function's children must not outlive its execution environment. Not by `send`, which
        # does nothing once the leader has been reaped. macOS refuses a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        self._on_exit()


class State(Enum):
    """The stage of an execution environment's life."""

    INIT = auto()
    BUSY = auto()
    FINISHING = auto()
    """The function has answered; the runtime has not asked for the next event yet."""
    IDLE = auto()
    ENDING = auto()
    ENDED = auto()


class Owner(Protocol):
    """The events that an execution environment reports to its function."""

    def on_next(self, environment: "ExecutionEnvironment") -> None:
        """The runtime is done with its init phase or an invoke, and asks for the next event."""

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
        """The process has ended; `reason` is Lambda's text."""


class ExecutionEnvironment:
    """Serves the Runtime API to one function process, on a loopback port of its own.

    A port each, because the runtime posts init errors with `http.client`, which takes no
    `host:port/path` for an address.
    """

    def __init__(self, number: int, config: FunctionConfig, owner: Owner, log: Path) -> None:
        self.name = f"{number:05d}"
        self.log = log
        self.state = State.INIT
        self.invocation: Invocation | None = None
        self.following: Invocation | None = None
        """Assigned while FINISHING; dispatched as soon as the runtime asks."""
        self.idle_since = 0.0
        self.process: FunctionProcess | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._config = config
        self._owner = owner
        self._log_fd = -1
        self._connections: set[HttpProtocol] = set()
        self._server: asyncio.Server | None = None
        self._runtime: HttpProtocol | None = None
        self._started = 0.0
        self._arn = config.arn.encode()

    async def start(self) -> None:
        """Open the Runtime API, then start the process; any failure is an exit like another."""
        try:
            self._log_fd = os.open(
                self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            self._server = await asyncio.get_running_loop().create_server(
                lambda: HttpProtocol(self._on_request, _RUNTIME_LIMITS, self._connections),
                "127.0.0.1",
                0,
            )
            if self.state is not State.INIT:
                # Ended while the port was being opened.
                self._close()
                return
            host, port = self._server.sockets[0].getsockname()[:2]
            day = time.strftime("%Y/%m/%d", time.gmtime())
            self._started = time.perf_counter()
            self.process = FunctionProcess(
                self._config,
                variables=self._config.environment_variables(
                    api=f"{host}:{port}", stream=f"{day}/[$LATEST]{os.urandom(16).hex()}"
                ),
                log_fd=self._log_fd,
                on_exit=self._exited,
            )
        except Exception as error:  # noqa: BLE001 - an environment that never ends would block close()
            self._owner.on_exit(self, f"Runtime was not started: {error}")
            self._close()

    def begin_cold(self, invocation: Invocation) -> None:
        """Bind an invoke to this execution environment's init phase."""
        self.invocation = invocation
        invocation.cold = True
        invocation.environment = self.name

    def dispatch(self, invocation: Invocation) -> None:
        """Send an event to the waiting runtime, which must have asked for one."""
        runtime = self._runtime
        assert runtime is not None  # noqa: S101 - the states allow nothing else
        self._runtime = None
        self.state = State.BUSY
        self.invocation = invocation
        invocation.environment = self.name
        deadline_ms = invocation.dispatch(
            self._config.timeout_s,
            lambda: self._owner.on_answer(self, Status.TIMEOUT, b"", "Sandbox.Timedout"),
        )
        if self.process is not None:
            self.process.freeze(frozen=False)
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

    def shut_down(self) -> None:
        """End as Lambda's Shutdown phase does: SIGTERM, `shutdown_ms`, SIGKILL."""
        if self.state in (State.ENDING, State.ENDED):
            return
        self._cancel_limit()
        self.state = State.ENDING
        if self.process is None or not self._config.shutdown_ms:
            self.kill()
            return
        # Thawed first: the kernel gives a signal for a stopped process to whichever thread runs
        # first. If that is not the main thread, Python does not wake up to handle it.
        self.process.freeze(frozen=False)
        self.process.send(signal.SIGTERM)
        asyncio.get_running_loop().call_later(self._config.shutdown_ms / 1000, self.kill)

    def kill(self) -> None:
        """Kill the process, without the time that SIGTERM gives."""
        self._cancel_limit()
        if self.state is not State.ENDED:
            self.state = State.ENDING
        if self.process is not None:
            self.process.send(signal.SIGKILL)
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

    def _cancel_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _exited(self) -> None:
        # Reported before the log is closed: an invoke in progress gets its last lines there.
        reason = self.process.exit_reason if self.process else "Runtime was not started"
        self._owner.on_exit(self, reason)
        self._close()

    def _close(self) -> None:
        self._cancel_limit()
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1

    # The Runtime API (Lambda Developer Guide, "Using the Lambda runtime API")

    def _on_request(self, connection: HttpProtocol, request: Request) -> None:
        is_post = request.method == b"POST"
        if request.target == _NEXT and request.method == b"GET":
            if self.state not in (State.INIT, State.FINISHING):
                self._refuse_transition(connection, "next")
                return
            self._cancel_limit()
            self._runtime = connection
            if self.state is State.INIT and self.invocation is not None:
                self.invocation.init_ms = round((time.perf_counter() - self._started) * 1000, 3)
            self._owner.on_next(self)
        elif is_post and request.target.startswith(_INVOCATION):
            request_id, _, kind = request.target[len(_INVOCATION) :].partition(b"/")
            self._on_answer(connection, request.body, request_id.decode("latin-1"), kind)
        elif is_post and request.target == _INIT_ERROR and self.state is State.INIT:
            connection.respond(_ACCEPTED)
            self._owner.on_init_error(self, request.body, _error_type(request.body))
        elif is_post and request.target == _INIT_ERROR:
            self._refuse_transition(connection, "an init error")
        else:
            connection.respond(_error(404, "ResourceNotFound", "no such Runtime API resource"))

    def _on_answer(
        self, connection: HttpProtocol, body: bytes, request_id: str, kind: bytes
    ) -> None:
        if self.state is not State.BUSY or self.invocation is None:
            self._refuse_transition(connection, "an answer")
        elif self.invocation.request_id != request_id:
            connection.respond(_error(400, "InvalidRequestID", "not the invoke in progress"))
        elif len(body) > MAX_RESPONSE_BYTES:
            text = "Exceeded maximum allowed payload size"
            connection.respond(_error(413, "RequestEntityTooLarge", text))
            error_type = "Function.ResponseSizeTooLarge"
            self._owner.on_answer(self, Status.RESPONSE_TOO_LARGE, b"", error_type)
        elif kind == b"response":
            connection.respond(_ACCEPTED)
            self._owner.on_answer(self, Status.OK, body, None)
        elif kind == b"error":
            connection.respond(_ACCEPTED)
            self._owner.on_answer(self, Status.HANDLER_ERROR, body, _error_type(body))
        else:
            connection.respond(_error(404, "ResourceNotFound", "no such Runtime API resource"))

    def _refuse_transition(self, connection: HttpProtocol, requested: str) -> None:
        text = f"Transition is not allowed: {requested} while {self.state.name}"
        connection.respond(_error(403, "InvalidStateTransition", text))


def _error_type(body: bytes) -> str:
    try:
        return str(json.loads(body)["errorType"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "Unknown"


def _error(status: int, error_type: str, text: str) -> bytes:
    return response(status, error_payload(error_type, text))
