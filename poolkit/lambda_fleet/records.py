"""One record an invoke, and the counters."""

import csv
import io
from collections import Counter, deque
from collections.abc import Iterable
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
    """What one invoke cost. Times in milliseconds; `None` where the phase was not reached."""

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
    """From handing over the event to the function's answer, or to its end."""
    status: Status
    error_type: str | None


class Counters:
    """Counts since the start, whole even when old records have been dropped.

    Cold starts have room of their own: few, early, and what the records are read for, they would
    be the first that many warm invokes push out.
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


def as_csv(records: Iterable[InvokeRecord]) -> str:
    """Return the records as CSV with a header line; empty fields where a value is `None`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(InvokeRecord._fields)
    writer.writerows(records)
    return text.getvalue()
