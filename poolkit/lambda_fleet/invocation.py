"""One invoke on its way through the fleet, its record, and the counters over all invokes."""

import asyncio
import json
import os
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Any, NamedTuple


class Status(StrEnum):
    """How an invoke ended."""

    OK = "ok"
    HANDLER_ERROR = "handler_error"
    INIT_ERROR = "init_error"
    TIMEOUT = "timeout"
    EXIT = "exit"
    RESPONSE_TOO_LARGE = "response_too_large"
    THROTTLED = "throttled"


class InvokeRecord(NamedTuple):
    """The times of one invoke in milliseconds; `None` where the phase was not reached."""

    request_id: str
    execution_environment: str | None
    arrived: float
    """Unix time, seconds."""
    cold: bool
    init_ms: float | None
    """From starting the process to its first request for an event; cold starts only."""
    queue_ms: float | None
    """From arrival until the function had the event, less `init_ms`."""
    duration_ms: float | None
    """From the dispatch of the event to the function's answer, or to its end."""
    status: Status
    error_type: str | None


class Outcome(NamedTuple):
    """The answer to the caller of an invoke: its status and Lambda's payload."""

    status: Status
    payload: bytes
    request_id: str

    @property
    def function_error(self) -> bool:
        """Whether Lambda would send `X-Amz-Function-Error: Unhandled`."""
        return self.status not in (Status.OK, Status.THROTTLED)


@dataclass(slots=True, eq=False)
class Invocation:
    """One event and its caller. `done` is called exactly once, on the event loop's thread."""

    event: bytes
    done: Callable[[Outcome], None]
    request_id: str
    trace_id: str
    client_context: bytes = b""
    arrived_unix: float = field(default_factory=time.time)
    arrived: float = field(default_factory=time.perf_counter)
    dispatched: float | None = None
    deadline: float | None = None
    """Set when the init phase is tried again; its time then counts towards the invoke's."""
    environment: str | None = None
    cold: bool = False
    init_ms: float | None = None
    init_retried: bool = False
    _timer: asyncio.TimerHandle | None = None

    def dispatch(self, timeout_s: float, on_timeout: Callable[[], None]) -> int:
        """Start the clock; return the deadline as Unix time in milliseconds."""
        self.dispatched = time.perf_counter()
        if self.deadline is not None:
            timeout_s = max(0.0, self.deadline - self.dispatched)
        self._timer = asyncio.get_running_loop().call_later(timeout_s, on_timeout)
        return int((time.time() + timeout_s) * 1000)

    def finish(self, status: Status, payload: bytes, error_type: str | None) -> InvokeRecord:
        """Answer the caller and return the record."""
        if self._timer is not None:
            self._timer.cancel()
        queue_ms = duration_ms = None
        if self.dispatched is not None:
            duration_ms = round((time.perf_counter() - self.dispatched) * 1000, 3)
            waited_ms = (self.dispatched - self.arrived) * 1000
            queue_ms = round(max(0.0, waited_ms - (self.init_ms or 0.0)), 3)
        record = InvokeRecord(
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
        self.done(Outcome(status, payload, self.request_id))
        return record


def new_request_id() -> str:
    """Return a request id in the form of Lambda's."""
    return str(uuid.uuid4())


def new_trace_id() -> str:
    """Return the X-Ray trace header of a request that is not sampled."""
    return f"Root=1-{int(time.time()):08x}-{os.urandom(12).hex()};Sampled=0"


def error_payload(error_type: str, text: str) -> bytes:
    """Return the payload of an error that Lambda itself reports."""
    return json.dumps({"errorType": error_type, "errorMessage": text}).encode()


class Counters:
    """Counts since the start, over dropped records too.

    Cold starts have a queue of their own. They are few, come early and matter most; in one queue a
    long series of warm invokes would push them out.
    """

    def __init__(self, records_kept: int) -> None:
        self._added = 0
        self._cold_records: deque[tuple[int, InvokeRecord]] = deque(maxlen=records_kept)
        self._other_records: deque[tuple[int, InvokeRecord]] = deque(maxlen=records_kept)
        self.by_status: Counter[Status] = Counter()
        self.cold = 0
        self.warm = 0
        self.started = 0
        self.reaped = 0
        self.freezes = 0
        self.peak_concurrency = 0
        self.peak_execution_environments = 0

    def add(self, record: InvokeRecord) -> None:
        """Count an invoke that has ended."""
        self._added += 1
        records = self._cold_records if record.cold else self._other_records
        records.append((self._added, record))
        self.by_status[record.status] += 1
        if record.status is Status.THROTTLED:
            return
        if record.cold:
            self.cold += 1
        else:
            self.warm += 1

    @property
    def records(self) -> list[InvokeRecord]:
        """The records that are kept, in the order in which the invokes ended."""
        kept = sorted(chain(self._cold_records, self._other_records))
        return [record for _, record in kept]

    def as_dict(self) -> dict[str, Any]:
        """Return the counters as plain JSON types."""
        return {
            "invokes": self.cold + self.warm,
            "cold": self.cold,
            "warm": self.warm,
            "throttled": self.by_status[Status.THROTTLED],
            "records_dropped": self._added - len(self._cold_records) - len(self._other_records),
            "by_status": {status.value: self.by_status[status] for status in Status},
            "execution_environments_started": self.started,
            "execution_environments_reaped": self.reaped,
            "freezes": self.freezes,
            "peak_concurrency": self.peak_concurrency,
            "peak_execution_environments": self.peak_execution_environments,
        }
