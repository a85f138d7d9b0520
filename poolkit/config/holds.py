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

import contextlib
import logging
import math
import os
import sys
import threading
import weakref
from asyncio import _get_running_loop, current_task  # asyncio.events calls both public
from collections import Counter
from contextvars import ContextVar, Token
from dataclasses import dataclass
from random import random
from threading import get_ident
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    # A connection that is out: its holds, its unit of work, when it was checked out, what else that
    # unit, task or thread has out, and what is noted of it. No class: one is made for each checkout.
    _Out = tuple["Holds", "Unit | None", float, "list[_Out]", "_Taken | None"]

__all__ = (
    "HOLD_SAMPLING",
    "CallSite",
    "Holding",
    "Holds",
    "Unit",
    "call_site_text",
    "connections_out",
    "current_unit",
    "forget_connections_out",
    "merged",
    "unit",
)

logger = logging.getLogger("poolkit.holds")

HOLD_SAMPLING = 0.02
"""The share of checkouts whose call site and SQL time are taken under load, by default."""

EVERY = 0.05
"""Seconds. A checkout this long after the last one that was taken is always taken: of up to 20
checkouts a second that is each of them, and its cost does not matter."""

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
        self.out: list[_Out] = [] if around is None else around.out
        self.is_over = False
        self._late: list[_Out] = []
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
        for out in tuple(self.out):
            holds, unit, _, _, taken = out
            if unit is self and out not in self._late:
                self._late.append(out)
                holds.late(taken)

    def __enter__(self) -> Unit:  # noqa: PYI034  (Python 3.9 has no Self)
        self._token = _unit.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        """End the unit. A connection that is still out counts as held after the response."""
        self.responded()
        self.close()

    def still_out(self) -> list[str]:
        """Return the lines whose connections of this unit are out; empty texts for unknown ones."""
        found = [taken for _, unit, _, _, taken in tuple(self.out) if unit is self]
        return ["" if taken is None else taken.site.text for taken in found]

    def close(self) -> None:
        """End the unit before its response is sent; `responded` is called later."""
        self.is_over = True
        if self.out:  # a label that is a function may keep the whole request alive
            self._label = self.label
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
_of_holder: ContextVar[tuple[int, list[_Out]]] = ContextVar("poolkit_out", default=(0, []))


def connections_out() -> list[_Out]:
    """Return what the unit of work around the caller, or else its task or thread, has out."""
    work = _unit.get()
    if work is not None and not work.is_over:
        return work.out
    loop = _get_running_loop()
    task = None if loop is None else current_task(loop)
    key = get_ident() if task is None else id(task)
    owner, found = _of_holder.get()
    if owner != key:
        found = []
        _of_holder.set((key, found))
    return found


def forget_connections_out() -> None:
    """Forget what the caller has out: in a forked child, whose parent has it."""
    _of_holder.set((0, []))
    if (work := _unit.get()) is not None:
        work.out.clear()


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

    @property
    def text(self) -> str:
        """Such as `app/views.py:41 in list_orders`."""
        return _where(self.file, self.line, self.name)


def _call_site(frame: FrameType | None) -> _Site:
    """Return the line of the application, or of the library, that asks for a connection.

    It is the first frame of the application's own code. Code among the installed packages counts
    where no such frame stands between it and the framework that calls it.
    """
    last, candidate, innermost = None, None, frame
    for caller in _callers(frame):
        code = caller.f_code
        kind = _kinds.get(code.co_filename)
        if kind is None:
            kind = _kind(code.co_filename)
        if kind == _LAYER:
            if candidate is None:
                last = code
        elif kind == _APPLICATION:
            candidate = caller
            break
        elif kind == _LIBRARY:
            candidate = candidate or caller
        elif candidate is not None:
            break
    found = candidate or innermost
    if found is None:
        return _Site("", 0, "(unknown)", is_raw=False)
    code = found.f_code
    # The one that the application called: `raw_connection` of an engine, `connect` of a pool.
    is_raw = last is not None and (
        last.co_name == "raw_connection"
        or (last.co_name == "connect" and last.co_filename in (_POOL, _file_of("pool.base")))
    )
    name = getattr(code, "co_qualname", code.co_name)
    return _Site(code.co_filename, found.f_lineno, name, is_raw=is_raw)


def call_site_text(frame: FrameType | None) -> str:
    """Return the line of the application that called, such as `app/views.py:41 in list_orders`."""
    return _call_site(frame).text


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and its callers, with the coroutines that wait for SQLAlchemy's greenlet."""
    while frame is not None:
        yield frame
        frame = frame.f_back
    greenlet = sys.modules.get("greenlet")
    current = None if greenlet is None else greenlet.getcurrent()
    # A gevent greenlet's parent is the hub, which has called no one.
    while current is not None and type(current).__name__ == "_AsyncIoGreenlet":
        current = current.parent
        frame = None if current is None else current.gr_frame
        while frame is not None:
            yield frame
            frame = frame.f_back


_POOL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "metrics.py")


def _file_of(module: str) -> str | None:
    return getattr(sys.modules.get(f"sqlalchemy.{module}"), "__file__", None)


def _stack(frame: FrameType | None) -> tuple[tuple[str, int, str], ...]:
    """Return the callers of a checkout, the outermost first: without frames, which keep variables."""
    found = [
        (each.f_code.co_filename, each.f_lineno, each.f_code.co_name) for each in _callers(frame)
    ]
    return tuple(reversed(found))


def _holder() -> str:
    """Return the name of the task or the thread that is running."""
    loop = _get_running_loop()
    task = None if loop is None else current_task(loop)
    if task is not None:
        return f"task {task.get_name()}"
    return f"thread {threading.current_thread().name}"


def _where(file: str, line: int, name: str) -> str:
    return f"{_shown(file)}:{line} in {name}" if file else name


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
    spread: tuple[tuple[int, float], ...] = ()
    """The holds by length, for `merged`: see `bucket_of`."""

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
        self.spread: dict[int, float] = {}

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


def bucket_of(seconds: float) -> int:
    """Return the number of a duration's bucket: eight in each power of two, at most 12.5 % wide."""
    mantissa, exponent = math.frexp(max(seconds, 1e-6))
    return exponent * 8 + int((mantissa - 0.5) * 16)


def _percentile(spread: tuple[tuple[int, float], ...], share: float) -> float:
    """Return the middle of the bucket that has the percentile, in seconds."""
    wanted, passed = share * sum(number for _, number in spread), 0.0
    for bucket, number in spread:
        passed += number
        if passed >= wanted:
            exponent, step = divmod(bucket, 8)
            return math.ldexp(0.5 + (step + 0.5) / 16, exponent)
    return 0.0


# -- the holds ------------------------------------------------------------------------------


class _Taken:
    """What is noted of a checkout that is taken for the table, or reported as a leak."""

    def __init__(
        self,
        site: _Site,
        unit: Unit | None,
        weight: float,
        began: float,
        fairy: Callable[[], Any] | None,
    ) -> None:
        self.site = site
        self.unit = unit
        self.began = began
        self.fairy = fairy
        """A weak reference to what the program has of the connection."""
        self.weight = weight
        """The number of checkouts that it stands for in the table."""
        self.busy = 0.0
        self.last = began
        """The end of the last statement."""
        self.longest_gap = 0.0
        self.stack: tuple[tuple[str, int, str], ...] = ()
        self.holder = ""
        """The thread or task that asked for it."""
        self.is_reported = False


class Holds:
    """The open holds of one engine's pool, and the table of those that are over; thread-safe.

    Args:
        sampling: the share, from 0 to 1, of the checkouts whose call site and SQL time are taken
            under load; of few checkouts, each is. Their numbers in the table and in `busy_seconds`
            are scaled up. 0 switches all off.
        leak_threshold: seconds after which a checkout is logged, with the stack of its caller; 0
            for never. Above 0 each checkout is taken, whatever `sampling` is.
        count_time: called with the seconds of every hold that is over.
        on_end: called with each hold that was taken, when it is over.
    """

    def __init__(
        self,
        *,
        sampling: float = HOLD_SAMPLING,
        leak_threshold: float = 0.0,
        count_time: Callable[[float], object] | None = None,
        on_end: Callable[[Ended], object] | None = None,
    ) -> None:
        self._on_end = on_end
        # An attribute, set and never deleted: a key that comes and goes costs a dictionary more.
        self._key = f"_poolkit_hold_{id(self):x}"
        self._taken: set[_Taken] = set()
        self.configure(sampling=sampling, leak_threshold=leak_threshold)
        self.begin_again(count_time)

    def configure(self, *, sampling: float, leak_threshold: float) -> None:
        """Set what is measured; before an engine is watched."""
        self.sampling = 1.0 if leak_threshold > 0 else sampling
        self.leak_threshold = leak_threshold
        # Until then the share of taken checkouts is `sampling`; from then on it rises, to 1 at EVERY.
        self._patience = EVERY * (1 + self.sampling) / 2

    def begin_again(self, count_time: Callable[[float], object] | None) -> None:
        """Start at zero: in a forked child, whose pool is empty."""
        # Reentrant: the garbage collector may return a connection in the middle of the work below.
        self._lock = threading.RLock()
        self._count_time = count_time or (lambda held: None)
        self._last_taken = 0.0
        self._taken.clear()
        self._waiting: dict[object, tuple[_Site, str, int]] = {}
        self._rows: dict[tuple[str, int, str, str], _Row] = {}
        self.busy_seconds = 0.0
        self.unseen_seconds = 0.0
        self.nested = 0
        self.after_response = 0
        self.leaked = 0

    # -- checkouts, as the pool reports them ------------------------------------------------

    def asking(self, beside: list[_Out]) -> object:
        """Note that a caller who has connections out asks for another; return a key for `asked`."""
        key = object()
        number = sum(holds is self for holds, *_ in tuple(beside))
        if number:
            unit = current_unit()
            site = _call_site(sys._getframe(2))  # noqa: SLF001
            self._waiting[key] = site, _label(unit), number
        return key

    def asked(self, key: object) -> None:
        """End what `asking` began: the caller has its connection, or gave up."""
        self._waiting.pop(key, None)

    def begin(self, record: Any, beside: list[_Out], began: float) -> None:
        """Begin the hold of a pool's record; called by the pool's method that the program called.

        Args:
            record: SQLAlchemy's ConnectionPoolEntry.
            beside: the `connections_out()` of the caller.
            began: the time, by `perf_counter`.
        """
        # StaticPool gives its one connection out again and again.
        if getattr(record, self._key, None) is not None:
            self.end(None, record)
        # Each checkout has a known probability to be taken, and stands for its reciprocal. A fixed
        # share would miss the line that checks out once a minute: it rises to 1 within EVERY.
        unit, taken, since = _unit.get(), None, began - self._last_taken
        share = self.sampling if since < self._patience else 2 * since / EVERY - 1
        if random() < share:
            self._last_taken = began
            weight = 1.0 if share >= 1 else 1 / share
            frame = sys._getframe(2)  # noqa: SLF001  (only here: a frame that is asked for costs 1 µs)
            taken = _Taken(_call_site(frame), unit, weight, began, record.fairy_ref)
            if self.leak_threshold > 0:
                taken.stack, taken.holder = _stack(frame), _holder()
                _watch_for_leaks(self)
            self._taken.add(taken)
        if beside and any(holds is self for holds, *_ in tuple(beside)):
            site = _call_site(sys._getframe(2)) if taken is None else taken.site  # noqa: SLF001
            with self._lock:
                self.nested += 1
                self._row(site, unit).nested += 1
        out = self, unit, began, beside, taken
        beside.append(out)
        setattr(record, self._key, out)

    def end(self, connection: Any, record: Any) -> None:
        """End the hold of a record that comes back, or that loses its connection."""
        out: _Out | None = getattr(record, self._key, None)
        if out is None:
            return
        setattr(record, self._key, None)
        _, _, began, beside, taken = out
        held = perf_counter() - began
        if out in beside:
            beside.remove(out)
        self._count_time(held)
        if taken is not None:
            self._end_taken(taken, held)

    def _end_taken(self, taken: _Taken, held: float) -> None:
        self._taken.discard(taken)
        with self._lock:
            row, scaled = self._row(taken.site, taken.unit), held * taken.weight
            row.count += taken.weight
            row.held += scaled
            row.longest = max(row.longest, held)
            bucket = bucket_of(held)
            row.spread[bucket] = row.spread.get(bucket, 0) + taken.weight
            if taken.site.is_raw:
                row.unseen += scaled
                self.unseen_seconds += scaled
            else:
                busy = min(taken.busy, held) * taken.weight
                row.busy += busy
                self.busy_seconds += busy
        is_collected = taken.fairy is not None and taken.fairy() is None
        if self._on_end is not None:
            self._on_end(_ended(taken, held, is_collected=is_collected))
        if self.leak_threshold <= 0:
            return
        was_reported = taken.is_reported
        if is_collected:
            self._report(taken, held, "was collected without a close")
        elif held >= self.leak_threshold:  # no thread could start that would have found it before
            self._report(taken, held, f"was out for more than {self.leak_threshold:g} s")
        if was_reported:
            text = "the connection of %s came back after %.1f s"
            fields = _fields(taken, held)
            logger.info(text, _described(taken), held, extra={"hold": fields})

    def late(self, taken: _Taken | None) -> None:
        """Count a hold that goes on after the response."""
        with self._lock:
            self.after_response += 1
            if taken is not None:
                self._row(taken.site, taken.unit).late += 1

    def _row(self, site: _Site, unit: Unit | None) -> _Row:
        """Return the row of a line and a unit of work; the caller has the lock."""
        key = (site.file, site.line, site.name, _label(unit))
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MAX_ROWS:
                key = ("", 0, "(others)", "")
            row = self._rows.setdefault(key, _Row())
        return row

    # -- leaks ------------------------------------------------------------------------------

    def report_leaks(self) -> None:
        """Log each checkout that is out for longer than the threshold, once."""
        now = perf_counter()
        for taken in self._taken.copy():
            if now - taken.began >= self.leak_threshold:
                what = f"is out for more than {self.leak_threshold:g} s"
                self._report(taken, now - taken.began, what)

    def _report(self, taken: _Taken, held: float, what: str) -> None:
        """Count and log a leak, unless it is logged already."""
        with self._lock:
            if taken.is_reported:
                return
            taken.is_reported = True
            self.leaked += 1
            self._row(taken.site, taken.unit).leaked += 1
        # Without the lock: a handler of the log may use this pool. The import is for leaks alone.
        from traceback import FrameSummary, format_list  # noqa: PLC0415

        stack = "".join(format_list([FrameSummary(*frame) for frame in taken.stack]))
        described, fields = _described(taken), _fields(taken, held)
        text = "the connection of %s %s; it was checked out %.1f s ago by:\n%s"
        logger.warning(text, described, what, held, stack, extra={"hold": fields})

    # -- SQL, as the dialect reports it -----------------------------------------------------

    def watch(self, dialect: Any) -> Callable[[], None]:
        """Time the statements, commits and rollbacks of an engine's own dialect.

        Not by events, because SQLAlchemy has none for the end of a commit. Return a function that
        ends it.
        """
        if self.sampling <= 0:
            return lambda: None
        methods, ours = vars(dialect), {}
        before = dict(methods)
        for name in ("do_execute", "do_executemany"):
            ours[name] = self._timed_statement(getattr(dialect, name))
        ours["do_execute_no_params"] = self._timed_text(dialect.do_execute_no_params)
        for name in ("do_commit", "do_rollback"):
            ours[name] = self._timed_end(getattr(dialect, name))
        methods.update(ours)

        def unwatch() -> None:
            for name, method in ours.items():
                if methods.get(name) is not method:  # another one around it: it passes on
                    continue
                del methods[name]
                if name in before:
                    methods[name] = before[name]

        return unwatch

    # Each has the parameters of its method: to pass on `*arguments, **options` takes longer.

    def _timed_statement(self, method: Callable[..., Any]) -> Callable[..., Any]:
        taken = self._taken

        def timed(cursor: Any, statement: Any, parameters: Any, context: Any = None) -> Any:
            if not taken:
                return method(cursor, statement, parameters, context)
            began = perf_counter()
            try:
                return method(cursor, statement, parameters, context)
            finally:
                self._ran(getattr(context, "_dbapi_connection", None), began)

        return timed

    def _timed_text(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(cursor: Any, statement: Any, context: Any = None) -> Any:
            began = perf_counter()
            try:
                return method(cursor, statement, context)
            finally:
                self._ran(getattr(context, "_dbapi_connection", None), began)

        return timed

    def _timed_end(self, method: Callable[..., Any]) -> Callable[..., Any]:
        taken = self._taken

        def timed(connection: Any) -> Any:
            if not taken:
                return method(connection)
            began = perf_counter()
            try:
                return method(connection)
            finally:
                self._ran(connection, began)

        return timed

    def _ran(self, connection: Any, began: float) -> None:
        record = getattr(connection, "_connection_record", None)
        if record is None:  # detached from its pool
            return
        out: _Out | None = getattr(record, self._key, None)
        taken = None if out is None else out[4]
        if taken is None:
            return
        now = perf_counter()
        taken.busy += now - began
        taken.longest_gap = max(taken.longest_gap, began - taken.last)
        taken.last = now

    # -- figures ----------------------------------------------------------------------------

    def rows(self) -> list[CallSite]:
        """Return the table; the rows with most idle time come first."""
        with self._lock:
            found = [
                row.call_site(_where(file, line, name), label)
                for (file, line, name, label), row in self._rows.items()
            ]
        # Two copies of one file may have the same name.
        return merged(found)

    def holding(self) -> list[Holding]:
        """Return the connections that are out now, of those that are taken; the oldest first."""
        now = perf_counter()
        return [
            Holding(
                where=taken.site.text,
                unit=_label(taken.unit),
                holder=taken.holder,
                age_s=now - taken.began,
            )
            for taken in sorted(self._taken.copy(), key=lambda taken: taken.began)
        ]

    def still_out(self) -> list[Ended]:
        """Return the connections that are out now, as if they came back."""
        now = perf_counter()
        found = self._taken.copy()
        return [_ended(taken, now - taken.began, is_collected=False) for taken in found]

    def why_full(self, checked_out: int) -> str:
        """Return who has the connections of a pool that has none left, as a part of a sentence.

        Args:
            checked_out: the number of connections that are out.
        """
        texts = []
        waiting = tuple(self._waiting.values())
        if waiting:
            held = sum(number for _, _, number in waiting)
            lines = Counter(f"{site.text}{_of_unit(label)}" for site, label, _ in waiting)
            texts.append(
                f"{held} of {checked_out} connections are held by callers that wait for a second "
                f"one: {_most(lines)}"
            )
        if found := self.holding():
            lines = Counter(f"{each.where}{_of_unit(each.unit)}" for each in found)
            texts.append(f"held by {_most(lines)}; the oldest for {found[0].age_s:.1f} s")
        return "; ".join(texts)


class Ended(NamedTuple):
    """A hold that is over; times are in seconds."""

    where: str
    unit: str
    held_s: float
    busy_s: float
    longest_gap_s: float
    """The longest time without SQL."""
    is_raw: bool
    """Whether it was the driver's own connection, whose SQL is not seen."""
    is_collected: bool
    """Whether the garbage collector returned the connection, because no one closed it."""


def _ended(taken: _Taken, held: float, *, is_collected: bool) -> Ended:
    gap = max(taken.longest_gap, taken.began + held - taken.last)
    site, label = taken.site, _label(taken.unit)
    return Ended(site.text, label, held, taken.busy, gap, site.is_raw, is_collected)


@dataclass(frozen=True)
class Holding:
    """A connection that is out now."""

    where: str
    unit: str
    holder: str
    """The thread or task that asked for it; empty without leak detection."""
    age_s: float


def _of_unit(label: str) -> str:
    return f" ({label})" if label else ""


def _most(lines: Counter[str]) -> str:
    texts = [text if n == 1 else f"{text} x {n}" for text, n in lines.most_common(3)]
    return ", ".join(texts) + (", and others" if len(lines) > 3 else "")


def _described(taken: _Taken) -> str:
    label = _label(taken.unit)
    return ", ".join(part for part in (taken.site.text, label, taken.holder) if part)


def _fields(taken: _Taken, held: float) -> dict[str, Any]:
    where, unit, holder = taken.site.text, _label(taken.unit), taken.holder
    return {"where": where, "unit": unit, "holder": holder, "held_s": held}


def _label(unit: Unit | None) -> str:
    return "" if unit is None else unit.label


# -- leak detection -------------------------------------------------------------------------

_leaks_of: weakref.WeakSet[Holds] = weakref.WeakSet()
_watcher: threading.Thread | None = None
_try_again_at = 0.0


def _watch_for_leaks(holds: Holds) -> None:
    """Start the one thread of this process that looks for leaks, unless it runs already."""
    global _watcher, _try_again_at  # noqa: PLW0603
    if holds not in _leaks_of:
        _leaks_of.add(holds)
    # A forked child has no threads of its parent's, and is_alive says so.
    if (_watcher is not None and _watcher.is_alive()) or perf_counter() < _try_again_at:
        return
    watcher = threading.Thread(target=_look_for_leaks, name="poolkit-holds", daemon=True)
    _watcher = watcher
    try:
        watcher.start()
    except RuntimeError:
        # No thread to be had, or the interpreter ends. Leaks are found when they come back.
        _watcher, _try_again_at = None, perf_counter() + 1


def _look_for_leaks() -> None:
    while _watcher is threading.current_thread():  # of two that began at once, one goes on
        pause = 1.0
        for holds in tuple(_leaks_of):
            if holds.leak_threshold > 0:
                pause = min(pause, max(holds.leak_threshold / 4, 0.01))
                holds.report_leaks()
        sleep(pause)
