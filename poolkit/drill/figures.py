"""What a client saw of a fault: the figures of each target, from the rows of the load."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from poolkit.loadtest.latency.counters import DROPPED, TIMED_OUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

_KINDS = {
    "ConnectionRefusedError": "refused",
    "ConnectionResetError": "reset",
    "ConnectionAbortedError": "reset",
    "BrokenPipeError": "reset",
    "HTTPConnectionClosed": "reset",
    "HTTPConnectionClosedError": "reset",
    "TimeoutError": "timeout",
    "timeout": "timeout",
    "RetriesExceeded": "timeout",
    TIMED_OUT: "timeout",
    DROPPED: "dropped",
}
"""The kinds of failures without a status, by the name of the exception."""


class Answer(NamedTuple):
    """One request and its end. Moments are Unix times."""

    scheduled: float
    ended: float
    failure: str
    """The status or the kind of a failed one; empty for a success."""


class AnswerRows:
    """The answers of every target, read from the growing file of the load's rows.

    Args:
        file: requests.csv.
        targets: the names of the targets; with one, every row is its own.
    """

    def __init__(self, file: Path, targets: Sequence[str]) -> None:
        self._file = file
        self._read = 0
        self.by_target: dict[str, list[Answer]] = {target: [] for target in targets}

    def update(self) -> None:
        """Read the new rows."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return
        complete = text[: text.rfind(b"\n") + 1]
        self._read += len(complete)
        only = next(iter(self.by_target)) if len(self.by_target) == 1 else ""
        for row in csv.reader(complete.decode().splitlines()):
            if row[0] == "due":
                continue
            # The users of a drill name each request by the target.
            answers = self.by_target.get(only or row[5].partition(" ")[0])
            if answers is not None:
                due, latency_s, error = float(row[0]), float(row[2]) / 1000, row[7]
                failure = "" if not error else _KINDS.get(error, error)
                answers.append(Answer(due, due + latency_s, failure))


@dataclass(frozen=True, kw_only=True)
class FaultTimes:
    """When a fault began and ended, and the time around it that counts for it. Unix times."""

    fault: str
    before: float
    """The level before the fault is that from here to its begin."""
    began: float
    ended: float
    until: float
    error: str = ""
    """Why the fault could not be made, or not to its end."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The figures of one target under one fault. Times are in seconds; None is unknown."""

    target: str
    sent: int
    failed: int
    by: Mapping[str, int] = field(default_factory=dict)
    """The number of failed requests by status or kind."""
    first_ok_s: float | None
    """From the end of the fault to the first successful answer."""
    back_s: float | None
    """From the end of the fault to the moment from which on no larger share of requests fails than
    before the fault; by the scheduled moments of the requests."""
    longest_s: float
    """The longest time until an answer or a failure."""
    written: int = 0
    """Acknowledged writes."""
    lost: int | None = None
    """Acknowledged writes that the table does not have."""
    doubled: int | None = None
    """Writes that the table has more than once."""
    in_doubt: int | None = None
    """Writes that failed for the client, and that the table has."""
    leaked: int | None = None
    """Connections still in use after the load had paused."""
    restarted: bool = False
    """Whether the drill has restarted the target afterwards, because it did not work again."""


class Write(NamedTuple):
    """One write of the load."""

    target: str
    key: str
    begun: float
    is_acknowledged: bool


def writes_of(file: Path) -> Iterator[Write]:
    """Yield the writes of writes.csv."""
    with file.open(newline="", encoding="utf-8") as rows:
        for target, key, begun, status in csv.reader(rows):
            yield Write(target, key, float(begun), 200 <= int(status) < 300)


def outcome_of(
    target: str,
    answers: Iterable[Answer],
    times: FaultTimes,
    *,
    writes: Iterable[Write] = (),
    found: Mapping[str, int] | None = None,
    leaked: int | None = None,
    restarted: bool = False,
) -> Outcome:
    """Return the figures of a target.

    Args:
        target: its name.
        answers: of the whole run.
        times: of the fault.
        writes: of the whole run, of all targets.
        found: the number of rows by key; None if the table is not known.
        leaked: connections that were still in use when the load paused.
        restarted: whether the drill has restarted the target after the fault.
    """
    own = sorted(one for one in answers if times.before <= one.scheduled < times.until)
    before = [one for one in own if one.scheduled < times.began]
    during = [one for one in own if one.scheduled >= times.began]
    # A request that was under way when the fault began may fail by it.
    struck = [one for one in before if one.ended >= times.began]
    failures = [one.failure for one in (*struck, *during) if one.failure]
    succeeded = [one.ended for one in own if not one.failure and one.ended >= times.ended]
    level = [one for one in before if one.ended < times.began]
    share = sum(1 for one in level if one.failure) / max(1, len(level))
    mine = [
        one for one in writes if one.target == target and times.before <= one.begun < times.until
    ]
    acknowledged = [one.key for one in mine if one.is_acknowledged]
    known = {} if found is None else found
    refused = [one.key for one in mine if not one.is_acknowledged]
    is_checked = found is not None
    return Outcome(
        target=target,
        sent=len(struck) + len(during),
        failed=len(failures),
        by=dict(Counter(failures).most_common()),
        first_ok_s=min(succeeded) - times.ended if succeeded else None,
        back_s=_back_after([one for one in during if one.scheduled >= times.ended], times, share),
        longest_s=max((one.ended - one.scheduled for one in (*struck, *during)), default=0.0),
        written=len(acknowledged),
        lost=sum(key not in known for key in acknowledged) if is_checked else None,
        doubled=sum(known.get(one.key, 0) > 1 for one in mine) if is_checked else None,
        in_doubt=sum(key in known for key in refused) if is_checked else None,
        leaked=leaked,
        restarted=restarted,
    )


def _back_after(after: Sequence[Answer], times: FaultTimes, share: float) -> float | None:
    """Return the seconds after which no larger share fails; None if that time was not seen."""
    failed = 0
    begin: float | None = None
    for number, one in enumerate(reversed(after), start=1):
        failed += bool(one.failure)
        if failed <= share * number and not one.failure:
            begin = one.scheduled
        elif not share:
            break
    if begin is None:
        return None
    first = after[0].scheduled
    return 0.0 if begin <= first else begin - times.ended
