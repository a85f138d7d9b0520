"""The function: the choice of the execution environment that serves an invoke.

As in Lambda, an invoke takes the idle execution environment that was used last. Without one it
causes a cold start, or is throttled when the reserved concurrency is in use. It stays with the
execution environment it caused: Lambda too binds a synchronous invoke to its cold start, even when
another one becomes idle sooner.

One case needs a rule of its own. A fraction of a millisecond passes between the function's answer
and the runtime's request for the next event. A client on the same machine may send its next request
within it. Such an invoke waits for that execution environment. Otherwise it would cause a cold
start (or a 429) that no client over a network would see.

The reserved concurrency bounds the execution environments as well, because they hold the
connections. Idle and prewarmed ones count too. An invoke that finds no room to start one waits for
one that is being prewarmed, and that is its cold start then.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from poolkit.errors import FunctionConfigError, FunctionInitError
from poolkit.lambda_fleet.config import FunctionConfig
from poolkit.lambda_fleet.execution_environment import (
    MAX_RESPONSE_BYTES,
    ExecutionEnvironment,
    State,
)
from poolkit.lambda_fleet.invocation import (
    Counters,
    Invocation,
    Status,
    error_payload,
)

THROTTLED = json.dumps(
    {
        "Reason": "ReservedFunctionConcurrentInvocationLimitExceeded",
        "Type": "User",
        "message": "Rate Exceeded.",
    }
).encode()


class Usage(NamedTuple):
    """One execution environment and all its child processes, in bytes and CPU seconds."""

    execution_environment: str
    pid: int
    rss_bytes: int
    pss_bytes: int | None
    """Memory in which a shared page counts in parts; `None` where the system has no such figure."""
    cpu_s: float


class LambdaFunction:
    """All execution environments of one function. Lives on the event loop's thread."""

    def __init__(self, config: FunctionConfig, log_dir: Path) -> None:
        self.config = config
        self.counters = Counters(config.records_kept)
        self._log_dir = log_dir
        self._environments: set[ExecutionEnvironment] = set()
        self._idle: list[ExecutionEnvironment] = []
        self._finishing: dict[ExecutionEnvironment, None] = {}
        self._in_flight = 0
        self._starting: set[asyncio.Task[None]] = set()
        self._all_ended = asyncio.Event()
        self._all_ended.set()
        self._reaper: asyncio.TimerHandle | None = None
        self._prewarming: dict[ExecutionEnvironment, asyncio.Future[None]] = {}
        self._closed = False

    # Invokes

    def submit(self, invocation: Invocation) -> None:
        """Serve the invoke, start an execution environment for it, or throttle it."""
        if self._closed or self._in_flight >= self.config.reserved_concurrency:
            self.counters.add(invocation.finish(Status.THROTTLED, THROTTLED, "TooManyRequests"))
            return
        self._in_flight += 1
        self.counters.peak_concurrency = max(self.counters.peak_concurrency, self._in_flight)
        self._place(invocation)

    def _place(self, invocation: Invocation) -> None:
        if self._idle:
            self._idle.pop().dispatch(invocation)
        elif self._finishing:
            environment, _ = self._finishing.popitem()
            environment.following = invocation
        elif self._room() > 0:
            self._start(invocation)
        else:
            # There is one: fewer invokes are in flight than execution environments live.
            next(e for e in self._prewarming if e.invocation is None).begin_cold(invocation)

    def _room(self) -> int:
        """Return the number of execution environments that may be started."""
        living = sum(e.state not in (State.ENDING, State.ENDED) for e in self._environments)
        return self.config.reserved_concurrency - living

    def _finish(
        self,
        environment: ExecutionEnvironment,
        status: Status,
        payload: bytes,
        error_type: str | None,
    ) -> None:
        invocation, environment.invocation = environment.invocation, None
        if invocation is None:
            return
        self._in_flight -= 1
        record = invocation.finish(status, payload, error_type)
        self.counters.add(record)
        environment.report(record)

    # Starting

    def _start(self, invocation: Invocation | None) -> ExecutionEnvironment:
        self.counters.started += 1
        number = self.counters.started
        log = self._log_dir / f"{self.config.function_name}-{number:05d}.log"
        environment = ExecutionEnvironment(number, self.config, self, log)
        limit_s = self.config.init_limit_s
        if invocation is not None:
            environment.begin_cold(invocation)
            if invocation.init_retried:
                limit_s = self.config.timeout_s
        self._environments.add(environment)
        self._all_ended.clear()
        self.counters.peak_execution_environments = max(
            self.counters.peak_execution_environments, len(self._environments)
        )
        environment.limit(limit_s, partial(self._on_init_limit, environment))
        task = asyncio.get_running_loop().create_task(environment.start())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return environment

    def _on_init_limit(self, environment: ExecutionEnvironment) -> None:
        """Try the init phase once more as part of the invoke, as Lambda does; then give up."""
        invocation = environment.invocation
        why = f"it took longer than init_limit_s, {self.config.init_limit_s} s"
        self._fail_prewarming(environment, why)
        if invocation is None or invocation.init_retried:
            self.on_answer(environment, Status.TIMEOUT, b"", "Sandbox.Timedout")
            return
        environment.invocation = None
        environment.kill()
        invocation.init_retried = True
        invocation.deadline = time.perf_counter() + self.config.timeout_s
        self._start(invocation)

    async def prewarm(self, count: int) -> None:
        """Start `count` execution environments without an invoke and wait for their init phases.

        Raises:
            FunctionInitError: one of the init phases failed.
            FunctionConfigError: the reserved concurrency leaves no room for `count` more.
        """
        if count > (room := self._room()):
            reserved = self.config.reserved_concurrency
            raise FunctionConfigError(
                f"cannot start {count} execution environments beside the {reserved - room} there "
                f"are with a reserved_concurrency of {reserved}; lower the one or raise the other"
            )
        loop = asyncio.get_running_loop()
        ready = []
        for _ in range(count):
            future = loop.create_future()
            self._prewarming[self._start(None)] = future
            ready.append(future)
        outcomes = await asyncio.gather(*ready, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _fail_prewarming(self, environment: ExecutionEnvironment, why: str) -> None:
        ready = self._prewarming.pop(environment, None)
        if ready is not None and not ready.done():
            ready.set_exception(
                FunctionInitError(
                    f"the init phase of {self.config.handler!r} failed: {why} "
                    f"(its output: {environment.log})"
                )
            )

    # The events of execution environments

    def on_next(self, environment: ExecutionEnvironment) -> None:
        """Dispatch the invoke that waits for this execution environment, or let it rest."""
        ready = self._prewarming.pop(environment, None)
        if ready is not None and not ready.done():
            ready.set_result(None)
        self._finishing.pop(environment, None)
        # After the init phase the invoke that caused it, else the one that came while FINISHING.
        invocation = environment.invocation or environment.following
        environment.following = None
        if invocation is not None:
            environment.dispatch(invocation)
            return
        environment.state = State.IDLE
        environment.idle_since = time.monotonic()
        self._idle.append(environment)
        if self.config.freeze:
            assert environment.process is not None  # noqa: S101 - it has just asked for an event
            environment.process.freeze()
            self.counters.freezes += 1
        if self._reaper is None:
            loop = asyncio.get_running_loop()
            self._reaper = loop.call_later(self.config.idle_timeout_s, self._reap)

    def on_answer(
        self,
        environment: ExecutionEnvironment,
        status: Status,
        payload: bytes,
        error_type: str | None,
    ) -> None:
        """Pass the answer on; an execution environment that timed out does not survive it."""
        invocation = environment.invocation
        if status is Status.TIMEOUT:
            request_id = invocation.request_id if invocation is not None else ""
            now = time.time()
            at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
            text = f"Task timed out after {self.config.timeout_s:.2f} seconds"
            text = f"{at}.{int(now * 1000) % 1000:03d}Z {request_id} {text}"
            payload = json.dumps({"errorMessage": text}).encode()
            environment.kill()
        elif status is Status.RESPONSE_TOO_LARGE:
            payload = error_payload(
                "Function.ResponseSizeTooLarge",
                "Response payload size exceeded maximum allowed payload size "
                f"({MAX_RESPONSE_BYTES} bytes).",
            )
        if environment.state is State.BUSY:
            environment.state = State.FINISHING
            self._finishing[environment] = None
            # The time until the runtime asks again is the function's too.
            environment.limit(self.config.timeout_s, environment.kill)
        self._finish(environment, status, payload, error_type)

    def on_init_error(
        self, environment: ExecutionEnvironment, payload: bytes, error_type: str
    ) -> None:
        """Report the error of the handler's module; the process is of no further use."""
        try:
            message = str(json.loads(payload)["errorMessage"])
        except (ValueError, KeyError, TypeError, RecursionError):
            message = payload.decode("utf-8", "replace")[:200]
        self._fail_prewarming(environment, f"{error_type}: {message}")
        environment.kill()
        self._finish(environment, Status.INIT_ERROR, payload, error_type)

    def on_exit(self, environment: ExecutionEnvironment, reason: str) -> None:
        """Forget the execution environment; an invoke it was working on has failed."""
        in_init = environment.state is State.INIT or (
            environment.invocation is not None and environment.invocation.dispatched is None
        )
        environment.state = State.ENDED
        self._environments.discard(environment)
        self._finishing.pop(environment, None)
        if environment in self._idle:
            self._idle.remove(environment)
        self._fail_prewarming(environment, reason)
        if environment.invocation is not None:
            payload = error_payload(
                "Runtime.ExitError",
                f"RequestId: {environment.invocation.request_id} Error: {reason}",
            )
            status = Status.INIT_ERROR if in_init else Status.EXIT
            self._finish(environment, status, payload, "Runtime.ExitError")
        # The following invoke has not begun, so it does not fail: another environment takes it.
        following, environment.following = environment.following, None
        if following is not None and self._closed:
            self._in_flight -= 1
            self.counters.add(following.finish(Status.THROTTLED, THROTTLED, "TooManyRequests"))
        elif following is not None:
            self._place(following)
        if not self._environments:
            self._all_ended.set()

    # Rest and end

    def _reap(self) -> None:
        """End the ones that were idle too long. In the list, the longest idle come first."""
        self._reaper = None
        now = time.monotonic()
        while self._idle and now - self._idle[0].idle_since >= self.config.idle_timeout_s:
            environment = self._idle.pop(0)
            self.counters.reaped += 1
            environment.shut_down()
        if self._idle:
            delay_s = max(0.001, self._idle[0].idle_since + self.config.idle_timeout_s - now)
            self._reaper = asyncio.get_running_loop().call_later(delay_s, self._reap)

    async def close(self) -> None:
        """End every execution environment and wait until the processes are gone."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        self._idle.clear()
        self._finishing.clear()
        for environment in tuple(self._environments):
            environment.shut_down()
        await self._all_ended.wait()
        if self._starting:
            await asyncio.wait(self._starting)

    # Statistics

    def stats(self) -> dict[str, Any]:
        """Return the counters since the start and the present states, as plain JSON types."""
        states = {state.name.lower(): 0 for state in State if state is not State.ENDED}
        for environment in self._environments:
            states[environment.state.name.lower()] += 1
        return {
            **self.counters.as_dict(),
            "concurrency": self._in_flight,
            "execution_environments": states,
        }

    def pids(self) -> dict[str, int]:
        """Return the process id of each running execution environment by its name."""
        return {
            environment.name: environment.process.pid
            for environment in self._environments
            if environment.process is not None and not environment.process.ended
        }


def usage(pids: Mapping[str, int]) -> list[Usage]:
    """Return the usage of each execution environment in `pids` that still lives.

    A frozen one has a usage too. Add up PSS, not RSS: the pages of the interpreter and the
    libraries are shared by all, and RSS counts them once for each.
    """
    rows = []
    for name, pid in sorted(pids.items()):
        rss, pss, cpu = 0, 0, 0.0
        try:
            leader = psutil.Process(pid)
            for process in (leader, *leader.children(recursive=True)):
                memory = process.memory_full_info()
                rss += memory.rss
                pss += getattr(memory, "pss", 0)
                times = process.cpu_times()
                cpu += times.user + times.system
        except psutil.NoSuchProcess:
            continue
        rows.append(Usage(name, pid, rss, pss or None, cpu))
    return rows
