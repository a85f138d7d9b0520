"""`poolkit watch`: the connections of a database, live or as one JSON document a line.

On a terminal a view of 80 columns is drawn at each interval. With `--json` each observation is a line,
and `--once` ends after the first.
"""

from __future__ import annotations

import json
import os
import select
import sys
import termios
import threading
import time
import tty
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from poolkit.activity.by_target import STATES, Connected, by_target, total
from poolkit.activity.holding import age
from poolkit.activity.server import ActivityConnection
from poolkit.errors import ConfigurationError, DatabaseUnavailable
from poolkit.terminal import new_console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from sqlalchemy.engine import URL

    from poolkit.activity.server import IdleTransaction, Sample, ServerLimits

    Answer = tuple[Sample, IdleTransaction | None]

LEAST_INTERVAL_S = 0.05
ANSWER_WITHIN_S = 2.0
"""The seconds without an answer after which the view says so. No second query is sent meanwhile."""
NEAR = 0.8
"""The share of the usable connections at which the bar warns."""
_HEADINGS = {"idle_in_transaction": "in tx"}
_LONG_S = 10.0


def watch(url: str | None, *, interval_s: float, as_json: bool, once: bool) -> None:
    """Show the connections of a database until Ctrl-C, or once.

    Args:
        url: the database; None for `DATABASE_URL`.
        interval_s: seconds from one observation to the next.
        as_json: print one JSON document a line.
        once: observe once and end.

    Raises:
        ConfigurationError: the URL is missing or wrong, or the interval is too short.
        DatabaseUnavailable: the server cannot be reached at the start; with `once`, also later.
        MonitoringNotAllowed: the role may not see other roles' activity.

    """
    url = url or os.environ.get("DATABASE_URL")
    if not url:
        raise ConfigurationError("no database: give its URL, or set DATABASE_URL")
    if not interval_s >= LEAST_INTERVAL_S:
        raise ConfigurationError(
            f"--interval must be at least {LEAST_INTERVAL_S:g} s, not {interval_s:g}"
        )
    if not (as_json or once or (sys.stdin.isatty() and sys.stdout.isatty())):
        raise ConfigurationError("standard output is not a terminal: add --json, or --once")
    with closing(Observer(url)) as observer, suppress(KeyboardInterrupt):
        if once:
            seen = observer.observe()
            if seen.problem is not None:
                raise DatabaseUnavailable(seen.problem)
            if not as_json:
                new_console().print(view(seen))
            else:
                print(json.dumps(seen.to_json()), flush=True)  # noqa: T201  (its output)
        elif as_json:
            for next_at in _moments(interval_s):
                seen = observer.observe(ANSWER_WITHIN_S)
                try:
                    print(json.dumps(seen.to_json()), flush=True)  # noqa: T201  (its output)
                except BrokenPipeError:
                    # The reader has ended, as `head` does. Python would complain at its own flush.
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                    return
                time.sleep(max(0.0, next_at - time.monotonic()))
        else:
            _draw(observer, interval_s)


def _draw(observer: Observer, interval_s: float) -> None:
    """Draw the view at each interval until a key or Ctrl-C ends it."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    # Keys arrive at once and without an echo; Ctrl-C stays an interrupt.
    tty.setcbreak(descriptor)
    try:
        # The alternate screen: the terminal's own text is back afterwards.
        with Live(screen=True, auto_refresh=False) as live:
            for next_at in _moments(interval_s):
                live.update(view(observer.observe(ANSWER_WITHIN_S)), refresh=True)
                while (left := next_at - time.monotonic()) > 0:
                    ready, _, _ = select.select([descriptor], [], [], left)
                    if ready and os.read(descriptor, 1) in (b"q", b"Q", b"\x04"):
                        return
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _moments(interval_s: float) -> Iterator[float]:
    """Yield the moment of the next observation; a missed one is not made up for."""
    next_at = time.monotonic()
    while True:
        next_at = max(next_at + interval_s, time.monotonic())
        yield next_at


# -- the server at one moment ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The server at one moment. With a `problem`, it did not answer, and the rest is unknown.

    `opened_per_s` is None at first, and after the server's counter was reset.
    """

    time: float
    limits: ServerLimits
    targets: tuple[Connected, ...] = ()
    elsewhere: int = 0
    """Connections to the server's other databases."""
    opened_per_s: float | None = None
    oldest: IdleTransaction | None = None
    problem: str | None = None
    silent_s: float = 0.0
    """Seconds since the last answer."""

    @property
    def on_server(self) -> int:
        """The connections to all databases of the server, which its limits count."""
        return total(self.targets).total + self.elsewhere

    def to_json(self) -> dict[str, Any]:
        """Return the document of one line of JSON; null is "not known"."""
        known = self.problem is None
        share = self.on_server / self.limits.max_connections
        return {
            "time": round(self.time, 3),
            "connections": total(self.targets).total if known else None,
            "other_databases": self.elsewhere if known else None,
            "max_connections": self.limits.max_connections,
            "usable": self.limits.usable,
            "share": round(share, 4) if known else None,
            "opened_per_s": self.opened_per_s,
            "targets": [asdict(one) | {"total": one.total} for one in self.targets if known],
            "oldest_idle_in_transaction": asdict(self.oldest) if self.oldest and known else None,
            "problem": self.problem,
        }


class Observer:
    """The observer that queries the server, and connects again after an outage.

    Raises:
        ConfigurationError: the URL is not that of a PostgreSQL database.
        DatabaseUnavailable: the server cannot be reached now, at the start.
        MonitoringNotAllowed: the role may not see other roles' activity.

    """

    def __init__(self, url: str | URL) -> None:
        self._activity = ActivityConnection(url)
        self._limits = self._activity.connect()
        self._answered = time.time()
        self._last: Sample | None = None
        self._asked: SimpleQueue[Answer | Exception] | None = None

    def observe(self, within_s: float | None = None) -> Observation:
        """Query once; a server that does not answer is an observation, too.

        Args:
            within_s: seconds to wait for the answer; None for no limit. The next call waits for
                an answer that is late.

        Raises:
            MonitoringNotAllowed: after a restart, the role may no longer see others' activity.
        """
        # In a thread, since Python handles no Ctrl-C while libpq waits.
        if self._asked is None:
            self._asked = SimpleQueue()
            threading.Thread(target=self._ask, args=(self._asked,), daemon=True).start()
        answer: Answer | Exception
        try:
            answer = self._asked.get(timeout=within_s)
            self._asked = None
        except Empty:
            answer = DatabaseUnavailable("the database does not answer")
        if isinstance(answer, DatabaseUnavailable):
            now = time.time()
            silent_s = now - self._answered
            return Observation(
                time=now, limits=self._limits, problem=str(answer), silent_s=silent_s
            )
        if isinstance(answer, Exception):
            raise answer
        sample, oldest = answer
        last, self._last = self._last, sample
        opened_per_s = None
        if last is not None and sample.sessions >= last.sessions and sample.time > last.time:
            opened_per_s = (sample.sessions - last.sessions) / (sample.time - last.time)
        self._answered = sample.time
        return Observation(
            time=sample.time,
            limits=self._limits,
            targets=by_target(sample),
            elsewhere=sample.elsewhere,
            opened_per_s=None if opened_per_s is None else round(opened_per_s, 3),
            oldest=oldest,
        )

    def _ask(self, asked: SimpleQueue[Answer | Exception]) -> None:
        try:
            if self._activity.is_lost:
                self._limits, self._last = self._activity.connect(), None
            asked.put((self._activity.sample(), self._activity.oldest_idle_in_transaction()))
        except Exception as error:  # noqa: BLE001  (raised again by observe())
            asked.put(error)

    def close(self) -> None:
        """Close the connection, unless a query runs on it: then it ends with the process."""
        if self._asked is None:
            self._activity.close()


# -- the view -------------------------------------------------------------------------------


def view(seen: Observation) -> RenderableType:
    """Return the view of one observation, within 80 columns."""
    limits, is_known = seen.limits, seen.problem is None
    moment = time.strftime("%H:%M:%S", time.localtime(seen.time))
    title = Text.assemble(("Connections", "bold"), f"  PostgreSQL {limits.version}  {moment}")
    if is_known and seen.opened_per_s is not None:
        title.append(f"  {seen.opened_per_s:.1f} opened/s")
    count = seen.on_server
    share = count / limits.max_connections
    near, full = count >= NEAR * limits.usable, count >= limits.usable
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(
            total=limits.max_connections,
            completed=count if is_known else 0,
            width=30,
            complete_style="red" if full else "yellow" if near else "green",
            finished_style="red",
        ),
        Text(f"{count if is_known else '?'} of {limits.max_connections}", style="bold"),
        Text(f"{share:.0%}, {limits.usable} usable" if is_known else "", style="dim"),
    )
    middle: list[RenderableType] = [_targets(seen)]
    if not is_known:
        silent = f"No answer for {seen.silent_s:.0f} s; trying again."
        middle = [Text(f"{seen.problem}\n{silent}", style="red")]
    elif (oldest := seen.oldest) is None:
        middle += [Text("No connection is idle in a transaction.", style="dim")]
    else:
        age = f"idle {oldest.idle_s:.1f} s, open {oldest.transaction_age_s:.1f} s"
        backend = f"{oldest.application_name or '(unnamed)'} (pid {oldest.pid})"
        style = "yellow" if oldest.idle_s >= _LONG_S else ""
        # Another program wrote the statement: its control characters must not reach the terminal.
        printable = "".join(c if c.isprintable() else " " for c in oldest.query)
        query = " ".join(printable.split()) or "(no statement)"
        middle += [
            Text(f"Oldest idle in transaction: {backend}, {age}", style=style),
            Text(f"  {query}", no_wrap=True, overflow="ellipsis"),
        ]
    foot = Text("q or Ctrl-C ends", style="dim")
    return Group(title, bar, Text(), *middle, Text(), foot)


def _targets(seen: Observation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("target", overflow="ellipsis", no_wrap=True, max_width=24)
    headings = (_HEADINGS.get(state, state) for state in STATES)
    for heading in ("instances", *headings, "all", "longest in tx"):
        table.add_column(heading, justify="right", no_wrap=True)
    # The sum, whose name is empty, stands below the targets unless there is one alone.
    together = total(seen.targets)
    for one in seen.targets if len(seen.targets) == 1 else (*seen.targets, together):
        if one is together:
            table.add_section()
        counts = [one.instances, *(getattr(one, state) for state in STATES), one.total]
        table.add_row(
            Text(one.target, style="bold") if one.target else Text("together"),
            *(Text(f"{n:,}") if n else Text("·", style="dim") for n in counts),
            _held(one.longest_idle_in_transaction_s),
        )
    if seen.elsewhere:
        table.add_section()
        unknown = [Text("·", style="dim")] * (1 + len(STATES))
        table.add_row(Text("other databases"), *unknown, Text(f"{seen.elsewhere:,}"), unknown[0])
    return table


def _held(seconds: float | None) -> Text:
    """Return the time for which a connection of a target has been idle in a transaction."""
    if seconds is None:
        return Text("·", style="dim")
    return Text(age(seconds), style="yellow" if seconds >= _LONG_S else "")
