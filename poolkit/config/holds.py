"""Who holds a connection: from which line, for which unit of work, how long, and how much of it idle.

A hold is the time from a checkout to its checkin. The pool of `PoolMetrics` reports both here, and
the engine's dialect reports the time in which SQL ran.

    with unit("GET /orders"):  # the integrations do this for each request, task and invoke
        ...

    for row in metrics.holds.rows():
        print(row.where, row.unit, row.held_s, row.busy_share)

This file imports the standard library only, and runs on Python 3.9 with SQLAlchemy 1.4: the shim of
`poolkit compare` loads it into applications that do not have poolkit.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import threading
from contextvars import ContextVar, Token
from dataclasses import dataclass
from random import random
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

__all__ = ("HOLD_SAMPLING", "CallSite", "Hold", "Holds", "Unit", "current_unit", "merged", "unit")

HOLD_SAMPLING = 1.0
"""The share of checkouts whose call site and SQL time are taken, by default."""

MAX_ROWS = 500
"""Rows of a table; call sites beyond are counted together, as `(others)`."""


# -- the unit of work -----------------------------------------------------------------------


class Unit:
    """One request, task or invoke: its label, and the connections that it has out.

    Made by `unit`. Threads and tasks that a unit starts belong to it.
    """

    def __init__(self, label: str | Callable[[], str]) -> None:
        self._label = label
        around = current_unit()
        # A unit inside another is the same work: its second connection is a second one.
        self.open: set[Hold] = set() if around is None else around.open
        self.is_over = False
        self._token: Token[Unit | None] | None = None

    @property
    def label(self) -> str:
        """The label, such as `GET /orders/{order_id}`."""
        return self._label if isinstance(self._label, str) else self._label()

    @label.setter
    def label(self, label: str) -> None:
        self._label = label

    def responded(self) -> None:
        """Count the connections that are still out, now that the response has been sent."""
        for hold in tuple(self.open):
            if hold.unit is self and not hold.is_late:
                hold.is_late = True
                hold.holds.late(hold)

    def __enter__(self) -> Unit:  # noqa: PYI034  (Python 3.9 has no Self)
        self._token = _unit.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        """End the unit. A connection that is still out counts as held after the response."""
        self.responded()
        self.is_over = True
        if self._token is not None:
            # A framework may end a request in another context than it began.
            with contextlib.suppress(ValueError):
                _unit.reset(self._token)
            self._token = None


def unit(label: str | Callable[[], str]) -> Unit:
    """Return a context in which checkouts belong to one unit of work.

        with unit("nightly report"):
            ...

    Args:
        label: with few values, such as a route's template or a task's name; a function is called
            at each checkout, for a framework that finds the route later.
    """
    return Unit(label)


def current_unit() -> Unit | None:
    """Return the unit of work around the caller, or None."""
    found = _unit.get()
    return None if found is None or found.is_over else found


_unit: ContextVar[Unit | None] = ContextVar("poolkit_unit", default=None)
# Without a unit: the holds of one task or thread, and which one. A new task has a copy of its
# parent's context, and no part in what the parent holds.
_of_holder: ContextVar[tuple[int, set[Hold]]] = ContextVar("poolkit_holds", default=(0, set()))


def _open_holds() -> set[Hold]:
    """Return what the unit of work around the caller, or else its task or thread, has out."""
    work = _unit.get()
    if work is not None and not work.is_over:
        return work.open
    loop = asyncio._get_running_loop()  # noqa: SLF001  (public, says asyncio.events, for event loops)
    task = None if loop is None else asyncio.current_task(loop)
    key = threading.get_ident() if task is None else id(task)
    owner, found = _of_holder.get()
    if owner != key:
        found = set()
        _of_holder.set((key, found))
    return found


# -- the call site --------------------------------------------------------------------------

# Packages that a checkout passes through; none of them decides how long a connection is held.
_LAYERS = frozenset(
    {"flask_sqlalchemy", "greenlet", "poolkit", "sqlalchemy", "sqlalchemy_utils", "sqlmodel"}
)
# Packages that call the application. Behind them stands another caller, not this one's.
_FRAMEWORKS = frozenset(
    {"_pytest", "aiohttp", "alembic", "anyio", "arq", "asgiref", "aws_lambda_powertools"}
    | {"awslambdaric", "billiard", "celery", "ddtrace", "django", "dramatiq", "eventlet"}
    | {"fastapi", "flask", "gevent", "gunicorn", "hypercorn", "kombu", "litestar", "mangum"}
    | {"newrelic", "opentelemetry", "pluggy", "pytest", "quart", "rq", "sanic", "sentry_sdk"}
    | {"starlette", "tornado", "uvicorn", "uvloop", "werkzeug"}
    | {"asyncio", "concurrent", "socketserver", "threading.py", "wsgiref"}  # the standard library's
)
_LAYER, _FRAMEWORK, _LIBRARY, _APPLICATION = range(4)
_kinds: dict[str, int] = {}
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STDLIB = os.path.dirname(os.path.abspath(os.__file__))


def _kind(file: str) -> int:
    """Return which kind of code a file has; `_kinds` keeps it."""
    parts = file.replace("\\", "/").split("/")
    kind = _APPLICATION
    for packages in ("site-packages", "dist-packages"):
        if packages in parts[:-1]:
            package = parts[parts.index(packages) + 1].partition(".")[0]
            kind = _LIBRARY
            kind = _FRAMEWORK if package in _FRAMEWORKS else kind
            kind = _LAYER if package in _LAYERS else kind
            break
    else:
        sqlalchemy = os.path.dirname(getattr(sys.modules.get("sqlalchemy"), "__file__", None) or "")
        own = ("<", _HERE + os.sep, (sqlalchemy or _HERE) + os.sep)
        if file.startswith(own):
            kind = _LAYER
        elif file.startswith(_STDLIB + os.sep):
            first = file[len(_STDLIB) + 1 :].split(os.sep, maxsplit=1)[0]
            kind = _FRAMEWORK if first in _FRAMEWORKS else _LAYER
    _kinds[file] = kind
    return kind


class _Site:
    """A line that checks connections out."""

    __slots__ = ("file", "is_raw", "line", "name")

    def __init__(self, file: str, line: int, name: str, *, is_raw: bool) -> None:
        self.file = file
        self.line = line
        self.name = name
        self.is_raw = is_raw
        """Whether it asked for a connection of the driver, whose SQL is not seen."""


def _call_site(frame: FrameType | None) -> _Site:
    """Return the line of the application, or of the library, that asks for a connection.

    It is the first frame of the application's own code. Code among the installed packages counts
    where no such frame stands between it and the framework that calls it.
    """
    last, candidate, innermost = "connect", None, frame
    while frame is not None:
        code = frame.f_code
        file = code.co_filename
        kind = _kinds.get(file)
        if kind is None:
            kind = _kind(file)
        if kind == _LAYER:
            if candidate is None:
                last = code.co_name
        elif kind == _APPLICATION:
            candidate = frame
            break
        elif kind == _LIBRARY:
            candidate = candidate or frame
        elif candidate is not None:
            break
        frame = frame.f_back or _awaiting(frame)
    found = candidate or innermost
    if found is None:
        return _Site("", 0, "(unknown)", is_raw=False)
    code = found.f_code
    is_raw = last in ("raw_connection", "connect_raw")
    name = getattr(code, "co_qualname", code.co_name)
    return _Site(code.co_filename, found.f_lineno, name, is_raw=is_raw)


def _awaiting(frame: FrameType) -> FrameType | None:
    """Return the frame of the coroutine that waits for SQLAlchemy's greenlet, if this is its first."""
    greenlet = sys.modules.get("greenlet")
    if greenlet is None:
        return None
    current = greenlet.getcurrent()
    # A gevent greenlet's parent is the hub, which has called no one.
    if type(current).__name__ != "_AsyncIoGreenlet" or current.parent is None:
        return None
    above: FrameType | None = current.parent.gr_frame
    return above


def _shown(file: str) -> str:
    """Return a file's path from the project's folder, or from the folder of the installed package."""
    here = os.getcwd()
    if file.startswith(here + os.sep) and "site-packages" not in file[len(here) :]:
        return file[len(here) + 1 :]
    roots = [
        entry for entry in sys.path if entry and file.startswith(entry.rstrip(os.sep) + os.sep)
    ]
    return file[len(max(roots, key=len).rstrip(os.sep)) + 1 :] if roots else file


# -- the table ------------------------------------------------------------------------------


@dataclass(frozen=True)
class CallSite:
    """What the checkouts of one line did for one unit of work. Times are in seconds.

    `held_s` is the sum of the holds, `busy_s` the part of it in which SQL ran. `unseen_s` is the part
    in which the program had the driver's own connection, whose SQL is not seen.
    """

    where: str
    """Such as `app/views.py:41 in list_orders`."""
    unit: str
    """Such as `GET /orders`; empty outside any unit of work."""
    count: int
    held_s: float
    busy_s: float
    p95_s: float
    longest_s: float
    nested: int = 0
    """Checkouts of a unit of work that had a connection of this pool already."""
    after_response: int = 0
    """Checkouts that were still out when the response had been sent, or the task was over."""
    leaked: int = 0
    """Checkouts longer than `leak_detection_threshold`, or collected without a close."""
    unseen_s: float = 0.0
    spread: tuple[tuple[int, int], ...] = ()
    """The holds by length, for `merged`: see `_bucket`."""

    @property
    def busy_share(self) -> float | None:
        """The share of the hold time in which SQL ran; None where it is not known."""
        seen = self.held_s - self.unseen_s
        return min(1.0, self.busy_s / seen) if seen > 0 else None


def merged(rows: Iterable[CallSite]) -> list[CallSite]:
    """Return one row for each call site and unit, such as those of several processes.

    The rows with most idle time come first.
    """
    table: dict[tuple[str, str], _Row] = {}
    for row in rows:
        into = table.setdefault((row.where, row.unit), _Row())
        into.count += row.count
        into.held += row.held_s
        into.busy += row.busy_s
        into.unseen += row.unseen_s
        into.longest = max(into.longest, row.longest_s)
        into.nested += row.nested
        into.late += row.after_response
        into.leaked += row.leaked
        for bucket, number in row.spread:
            into.spread[bucket] = into.spread.get(bucket, 0) + number
    return _sorted(row.call_site(where, label) for (where, label), row in table.items())


def _sorted(rows: Iterable[CallSite]) -> list[CallSite]:
    return sorted(rows, key=lambda row: (row.busy_s + row.unseen_s - row.held_s, row.where))


class _Row:
    """The sums of a call site and a unit."""

    __slots__ = (
        *("busy", "count", "held", "late", "leaked", "longest", "nested", "spread", "unseen"),
    )

    def __init__(self) -> None:
        self.count = self.held = self.busy = self.unseen = self.longest = 0.0
        self.nested = self.late = self.leaked = 0
        self.spread: dict[int, int] = {}

    def call_site(self, where: str, label: str) -> CallSite:
        spread = tuple(sorted(self.spread.items()))
        return CallSite(
            where=where,
            unit=label,
            count=round(self.count),
            held_s=self.held,
            busy_s=self.busy,
            p95_s=min(_percentile(spread, 0.95), self.longest),
            longest_s=self.longest,
            nested=self.nested,
            after_response=self.late,
            leaked=self.leaked,
            unseen_s=self.unseen,
            spread=spread,
        )


def _bucket(seconds: float) -> int:
    """Return the number of a duration's bucket: eight in each power of two, at most 12.5 % wide."""
    mantissa, exponent = math.frexp(max(seconds, 1e-6))
    return exponent * 8 + int((mantissa - 0.5) * 16)


def _percentile(spread: tuple[tuple[int, int], ...], share: float) -> float:
    """Return the middle of the bucket that has the percentile, in seconds."""
    wanted, passed = share * sum(number for _, number in spread), 0
    for bucket, number in spread:
        passed += number
        if passed >= wanted:
            exponent, step = divmod(bucket, 8)
            return math.ldexp(0.5 + (step + 0.5) / 16, exponent)
    return 0.0


# -- the holds ------------------------------------------------------------------------------


class Hold:
    """One checkout that has not come back yet."""

    site: _Site | None = None
    weight: float = 0.0
    busy = 0.0
    longest_gap = 0.0
    waits = 0
    """Checkouts of the same unit of work that wait for a connection, while this one is held."""
    nested = False
    is_late = False
    leaked = False

    def __init__(self, holds: Holds, beside: set[Hold], unit: Unit | None, began: float) -> None:
        self.holds = holds
        self.beside = beside
        self.unit = unit
        self.began = began
        self.last = began
        """The end of the last statement."""


class Histogram(Protocol):
    """A histogram of durations, such as `poolkit.config.metrics.Histogram`."""

    def observe(self, seconds: float) -> None:
        """Count one duration."""


class Holds:
    """The open holds of one engine's pool, and the table of those that are over; thread-safe.

    Args:
        sampling: the share, from 0 to 1, of the checkouts whose call site and SQL time are taken.
            Their numbers in the table and in `busy_seconds` are scaled up. 0 switches all off.
        times: counts the time of every hold.
    """

    def __init__(self, *, sampling: float = HOLD_SAMPLING, times: Histogram | None = None) -> None:
        self.sampling = sampling
        self._key = f"poolkit.hold.{id(self)}"
        self._times = times
        self.begin_again(times)

    def begin_again(self, times: Histogram | None) -> None:
        """Start at zero: in a forked child, whose pool is empty."""
        # Reentrant: the garbage collector may return a connection in the middle of the work below.
        self._lock = threading.RLock()
        self._times = times
        self._rows: dict[tuple[str, int, str, str], _Row] = {}
        self.open: set[Hold] = set()
        self.busy_seconds = 0.0
        self.unseen_seconds = 0.0
        self.nested = 0
        self.after_response = 0
        self.leaked = 0

    # -- checkouts, as the pool reports them ------------------------------------------------

    def asking(self) -> set[Hold]:
        """Return what the caller has out already, of this pool and others, before it waits."""
        beside = _open_holds()
        for hold in beside:
            hold.waits += 1
        return beside

    def begin(self, record: Any, beside: set[Hold], frame: FrameType | None) -> None:
        """Begin the hold of a pool's record, after `asking`."""
        work = _unit.get()
        hold = Hold(self, beside, work, perf_counter())
        if beside:
            self._not_asking(beside)
            if any(other.holds is self for other in beside):
                hold.nested = True
        if random() < self.sampling:
            hold.weight = 1 / self.sampling
            hold.site = _call_site(frame)
        elif hold.nested:
            hold.site = _call_site(frame)
        if hold.nested:
            with self._lock:
                self.nested += 1
                self._row(hold).nested += 1
        before = record.__dict__.get(self._key)
        if before is not None:  # StaticPool gives its one connection out again and again
            self.end(record)
        record.__dict__[self._key] = hold
        beside.add(hold)
        self.open.add(hold)

    def gave_up(self, beside: set[Hold]) -> None:
        """End the wait of a checkout that failed."""
        self._not_asking(beside)

    @staticmethod
    def _not_asking(beside: set[Hold]) -> None:
        for hold in tuple(beside):
            hold.waits = max(0, hold.waits - 1)

    def end(self, record: Any) -> None:
        """End the hold of a record that comes back, or that loses its connection."""
        hold: Hold | None = record.__dict__.pop(self._key, None)
        if hold is None:
            return
        now = perf_counter()
        held = now - hold.began
        hold.beside.discard(hold)
        self.open.discard(hold)
        with self._lock:
            if self._times is not None:
                self._times.observe(held)
            if not hold.weight or hold.site is None:
                return
            row, scaled = self._row(hold), held * hold.weight
            row.count += hold.weight
            row.held += scaled
            row.longest = max(row.longest, held)
            bucket = _bucket(held)
            row.spread[bucket] = row.spread.get(bucket, 0) + 1
            if hold.site.is_raw:
                row.unseen += scaled
                self.unseen_seconds += scaled
            else:
                busy = min(hold.busy, held) * hold.weight
                row.busy += busy
                self.busy_seconds += busy

    def late(self, hold: Hold) -> None:
        """Count a hold that goes on after the response."""
        with self._lock:
            self.after_response += 1
            if hold.site is not None:
                self._row(hold).late += 1

    def _row(self, hold: Hold) -> _Row:
        """Return the row of a hold; the caller has the lock."""
        site, label = hold.site, "" if hold.unit is None else hold.unit.label
        key = ("", 0, "(unknown)", label)
        if site is not None:
            key = (site.file, site.line, site.name, label)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MAX_ROWS:
                key = ("", 0, "(others)", "")
            row = self._rows.setdefault(key, _Row())
        return row

    # -- SQL, as the dialect reports it -----------------------------------------------------

    def watch(self, dialect: Any) -> None:
        """Time the statements, commits and rollbacks of an engine's own dialect.

        Not by events, because SQLAlchemy has none for the end of a commit.
        """
        if self.sampling <= 0:
            return
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            vars(dialect)[name] = self._timed_statement(getattr(dialect, name))
        for name in ("do_commit", "do_rollback"):
            vars(dialect)[name] = self._timed_end(getattr(dialect, name))

    def _timed_statement(self, method: Callable[..., Any]) -> Callable[..., Any]:
        ran = self._ran

        def timed(*arguments: Any, **options: Any) -> Any:
            began = perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                context = options.get("context", arguments[-1])
                ran(getattr(context, "_dbapi_connection", None), began)

        return timed

    def _timed_end(self, method: Callable[..., Any]) -> Callable[..., Any]:
        ran = self._ran

        def timed(connection: Any) -> Any:
            began = perf_counter()
            try:
                return method(connection)
            finally:
                ran(connection, began)

        return timed

    def _ran(self, connection: Any, began: float) -> None:
        record = getattr(connection, "_connection_record", None)
        if record is None:  # detached from its pool
            return
        hold: Hold | None = record.__dict__.get(self._key)
        if hold is None or hold.site is None:
            return
        now = perf_counter()
        hold.busy += now - began
        hold.longest_gap = max(hold.longest_gap, began - hold.last)
        hold.last = now

    # -- figures ----------------------------------------------------------------------------

    def rows(self) -> list[CallSite]:
        """Return the table; the rows with most idle time come first."""
        with self._lock:
            found = [
                row.call_site(f"{_shown(file)}:{line} in {name}" if file else name, label)
                for (file, line, name, label), row in self._rows.items()
            ]
        # Two copies of one file may have the same name.
        return merged(found)
