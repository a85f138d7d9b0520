"""One invoke on its way through the fleet, and how it came out."""

import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

from poolkit.lambda_fleet.records import InvokeRecord, Status


class Outcome(NamedTuple):
    """What the caller of an invoke gets: Lambda's payload, and `Unhandled` when it failed."""

    status: Status
    payload: bytes
    request_id: str

    @property
    def function_error(self) -> bool:
        """Whether Lambda would say `X-Amz-Function-Error: Unhandled`."""
        return self.status not in (Status.OK, Status.THROTTLED)


class Invocation:
    """One event and its caller. `done` is called exactly once, on the event loop's thread."""

    __slots__ = (
        "_done",
        "_timer",
        "arrived",
        "arrived_unix",
        "client_context",
        "cold",
        "deadline",
        "environment",
        "event",
        "handed_over",
        "init_ms",
        "init_retried",
        "request_id",
        "trace_id",
    )

    def __init__(
        self,
        event: bytes,
        done: Callable[[Outcome], None],
        *,
        request_id: str,
        trace_id: str,
        client_context: bytes = b"",
    ) -> None:
        self.event = event
        self._done = done
        self.request_id = request_id
        self.trace_id = trace_id
        self.client_context = client_context
        self.arrived_unix = time.time()
        self.arrived = time.perf_counter()
        self.handed_over: float | None = None
        self.deadline: float | None = None
        self.environment: str | None = None
        self.cold = False
        self.init_ms: float | None = None
        self.init_retried = False
        self._timer: asyncio.TimerHandle | None = None

    def hand_over(self, timeout_s: float, on_timeout: Callable[[], None]) -> int:
        """Start the clock; return the deadline as Unix time in milliseconds."""
        self.handed_over = time.perf_counter()
        if self.deadline is not None:
            # The init phase was tried again within the invoke and has used up part of its time.
            timeout_s = max(0.0, self.deadline - self.handed_over)
        self._timer = asyncio.get_running_loop().call_later(timeout_s, on_timeout)
        return int((time.time() + timeout_s) * 1000)

    def finish(self, status: Status, payload: bytes, error_type: str | None) -> InvokeRecord:
        """Answer the caller and return the record."""
        if self._timer is not None:
            self._timer.cancel()
        record = self._record(status, error_type)
        self._done(Outcome(status, payload, self.request_id))
        return record

    def _record(self, status: Status, error_type: str | None) -> InvokeRecord:
        queue_ms = duration_ms = None
        if self.handed_over is not None:
            duration_ms = round((time.perf_counter() - self.handed_over) * 1000, 3)
            waited_ms = (self.handed_over - self.arrived) * 1000
            queue_ms = round(max(0.0, waited_ms - (self.init_ms or 0.0)), 3)
        return InvokeRecord(
            self.request_id,
            self.environment,
            round(self.arrived_unix, 6),
            self.cold,
            self.init_ms,
            queue_ms,
            duration_ms,
            status,
            error_type,
        )


def new_request_id() -> str:
    """Return a request id as Lambda's look."""
    return str(uuid.uuid4())


def new_trace_id() -> str:
    """Return an X-Ray trace header of a request that is not sampled."""
    return f"Root=1-{int(time.time()):08x}-{os.urandom(12).hex()};Sampled=0"


def error_payload(error_type: str, text: str) -> bytes:
    """Return the payload of an error that Lambda itself reports."""
    return json.dumps({"errorType": error_type, "errorMessage": text}).encode()


def timeout_payload(request_id: str, timeout_s: float) -> bytes:
    """Return the payload of an invoke that was cut off."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    millis = int(time.time() * 1000) % 1000
    text = f"{at}.{millis:03d}Z {request_id} Task timed out after {timeout_s:.2f} seconds"
    return json.dumps({"errorMessage": text}).encode()
