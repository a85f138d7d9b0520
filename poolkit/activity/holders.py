"""`poolkit holders`: who holds the connections of a database, and whether SQL runs on them.

The server is sampled for some seconds. A connection that is idle in a transaction is held by its client
and not by SQL: the client computes, waits for another service, or has forgotten it. The samples show its
share of the time, its longest idle moment with the last statement, and whose locks others wait for.

An idle connection without a transaction may lie in a pool or be held all the same. The server cannot
tell these apart; the application's own metrics can, where it has them.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from poolkit.activity.by_target import UNNAMED
from poolkit.activity.call_sites import held_between, read_metrics
from poolkit.activity.holding import FORGOTTEN_S, SAMPLE, Counters, Holders, age
from poolkit.activity.server import ActivityConnection
from poolkit.errors import ConfigurationError, DatabaseUnavailable, PoolkitError
from poolkit.masking import masked
from poolkit.terminal import new_console

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType
    from sqlalchemy.engine import URL

    from poolkit.activity.call_sites import HeldFrom, Reading
    from poolkit.activity.holding import Group, Holder

LEAST_INTERVAL_S = 0.02
SITES = 10
"""The lines of the application that are shown; `--json` has all."""
RECONNECT_EVERY_S = 0.25


def holders(
    url: str | None,
    *,
    seconds: float,
    interval_s: float,
    as_json: bool,
    metrics_url: str | None = None,
) -> None:
    """Sample a database and print who held its connections; Ctrl-C ends the sampling early.

    Args:
        url: the database; None for `DATABASE_URL`.
        seconds: the time to sample for.
        interval_s: seconds from one sample to the next.
        as_json: print a JSON document.
        metrics_url: the application's metrics, for the lines that hold connections.

    Raises:
        ConfigurationError: a URL is missing or wrong, or a number is too small.
        DatabaseUnavailable: the server cannot be reached, or gave no answer at all.
        PoolkitError: the metrics cannot be read.

    """
    url = url or os.environ.get("DATABASE_URL")
    if not url:
        raise ConfigurationError("no database: give its URL, or set DATABASE_URL")
    if not interval_s >= LEAST_INTERVAL_S:
        raise ConfigurationError(
            f"--interval must be at least {LEAST_INTERVAL_S:g} s, not {interval_s:g}"
        )
    if not interval_s <= seconds < math.inf:
        raise ConfigurationError(f"--seconds must be at least --interval, not {seconds:g}")
    before = None if metrics_url is None else read_metrics(metrics_url)
    sampling = Sampling(url, interval_s=interval_s)
    if sys.stderr.isatty():
        print(f"Sampling for {seconds:g} s; Ctrl-C ends it early.", file=sys.stderr)  # noqa: T201
    with suppress(KeyboardInterrupt):
        sampling.run(seconds)
    found = sampling.result()
    if metrics_url is not None and before is not None:
        found = _with_call_sites(found, metrics_url, before)
    if as_json:
        print(json.dumps(found.to_json()), flush=True)  # noqa: T201  (its output)
    else:
        new_console().print(view(found))


def _with_call_sites(found: Holders, metrics_url: str, before: Reading) -> Holders:
    """Return the result with the lines that held connections meanwhile, or with the reason."""
    try:
        after = read_metrics(metrics_url)
    except PoolkitError as error:
        return replace(found, notes=(*found.notes, str(error)))
    notes = found.notes
    if not after:
        notes = (*notes, f"{masked(metrics_url)} has no metrics of who holds connections.")
    return replace(found, call_sites=held_between(before, after), notes=notes)


# -- the server, for some seconds ---------------------------------------------------------------


class Sampling:
    """The sampling of a database, in a thread of its own: libpq's waiting would hold up Ctrl-C.

    Args:
        url: of the database.
        interval_s: seconds from one sample to the next.

    Raises:
        ConfigurationError: the URL is not that of a PostgreSQL database.
        DatabaseUnavailable: the server cannot be reached.

    """

    def __init__(self, url: str | URL, *, interval_s: float) -> None:
        self._activity = ActivityConnection(url, needs_all=False)
        self._limits = self._activity.connect()
        self._interval_s = interval_s
        self._counters = Counters()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._unseen_s = 0.0
        self._answered = self._began
        self._problem = "it did not answer"
        self._is_over = threading.Event()

    def run(self, seconds: float) -> None:
        """Sample for some seconds; KeyboardInterrupt ends it and keeps the samples."""
        self._began = self._answered = time.monotonic()
        end = self._began + seconds
        thread = threading.Thread(target=self._sample_until, args=(end,), daemon=True)
        thread.start()
        try:
            # A little longer than the time limit of a query that has just begun.
            thread.join(seconds + 3)
        finally:
            self._is_over.set()
        if not thread.is_alive():
            self._activity.close()

    def _sample_until(self, end: float) -> None:
        next_at = time.monotonic()
        while not self._is_over.is_set():
            try:
                if self._activity.is_lost:
                    self._activity.connect()
                rows = self._activity.rows(SAMPLE)
            except DatabaseUnavailable as error:
                self._problem = str(error)
                self._is_over.wait(RECONNECT_EVERY_S)
            else:
                now = time.monotonic()
                with self._lock:
                    self._counters.add(rows)
                    # The time of one missed sample is not worth a note.
                    silent_s = now - self._answered - self._interval_s
                    self._unseen_s += silent_s if silent_s > 1 else 0.0
                    self._answered = now
            next_at = max(next_at + self._interval_s, time.monotonic())
            if next_at >= end or self._is_over.wait(max(0.0, next_at - time.monotonic())):
                return

    def result(self) -> Holders:
        """Return who held the connections in the samples so far.

        Raises:
            DatabaseUnavailable: there is no sample.
        """
        activity = self._activity
        with self._lock:
            if not self._counters.samples:
                raise DatabaseUnavailable(f"no sample of the database: {self._problem}")
            now = time.monotonic()
            silent_s = now - self._answered - self._interval_s
            unseen_s = self._unseen_s + (silent_s if silent_s > 1 else 0.0)
            groups = self._counters.groups()
            notes = _notes(activity, groups, unseen_s)
            return Holders(
                time=round(time.time(), 3),
                seconds=round(now - self._began, 3),
                samples=self._counters.samples,
                interval_s=self._interval_s,
                unseen_s=round(unseen_s, 3),
                limits=self._limits,
                role=activity.role,
                sees_all=activity.sees_all,
                is_pooled=activity.is_pooled,
                groups=groups,
                blockers=self._counters.blockers(),
                notes=notes,
            )


def _notes(
    activity: ActivityConnection, groups: Sequence[Group], unseen_s: float
) -> tuple[str, ...]:
    """Return what limits the figures, a sentence each."""
    notes = []
    if not activity.sees_all:
        hidden = sum(group.seen for group in groups if group.hidden)
        notes.append(
            f"The state of {hidden:,} connections of other roles is hidden from {activity.role}, and so "
            f'is what they wait for. As a superuser run: GRANT pg_monitor TO "{activity.role}"'
        )
    if activity.is_pooled:
        notes.append(
            "This command is connected through a pooler. The server shows the pooler's connections: "
            "their names are those of the clients that used them last, and clients that wait in the "
            "pooler are not seen. PgBouncer's SHOW POOLS and SHOW CLIENTS have these."
        )
    if any(group.longest_idle and group.longest_idle.is_cut for group in groups):
        notes.append(
            "The server cuts long statements, and with them the comments at their end; "
            "track_activity_query_size is the limit."
        )
    if unseen_s:
        notes.append(f"The server did not answer for {unseen_s:.0f} s, of which nothing is known.")
    return tuple(notes)


# -- the view -----------------------------------------------------------------------------------


def view(found: Holders) -> RenderableType:
    """Return the table and the verdicts, within 80 columns."""
    limits = found.limits
    title = Text.assemble(
        ("Who holds the connections", "bold"),
        f"  PostgreSQL {limits.version}, {found.seconds:.3g} s, {found.samples:,} samples",
    )
    if not found.groups:
        parts: list[RenderableType] = [title, Text("No connection was seen.", style="dim")]
    else:
        parts = [title, _table(found.groups)]
    for group in found.groups:
        style = "yellow" if group.verdict in ("held", "forgotten", "waiting") else ""
        parts.append(Text.assemble((_name(group), "bold"), ": ", (group.sentence, style)))
        if group.verdict in ("held", "forgotten") and group.longest_idle is not None:
            parts += _held_after(group)
        elif group.oldest_transaction is not None and (
            (group.oldest_transaction.transaction_s or 0) >= FORGOTTEN_S
        ):
            parts += _described(group.oldest_transaction, "statement of the oldest transaction")
    for blocker in found.blockers:
        blocked = ", ".join(f"{n} of {name}" for name, n in blocker.blocked.items())
        text = Text.assemble(
            ("Lock: ", "bold"),
            f"{blocker.application} blocks {blocked}, for up to ",
            f"{age(blocker.longest_wait_s)} ({blocker.lock}).",
        )
        parts += [Text(), text]
        if blocker.holder is not None:
            now = f"{blocker.holder.state} for {age(blocker.holder.state_s)}"
            parts += _described(blocker.holder, f"{now}; statement")
    if found.call_sites:
        heading = Text.assemble(
            ("The application's own lines", "bold"), ", those with most idle time first"
        )
        parts += [Text(), heading, _call_sites(found.call_sites)]
    if found.notes:
        parts += [Text(), *(Text(note, style="dim") for note in found.notes)]
    return Lines(*parts)


def _name(group: Group) -> str:
    """Return the name of a group, with the user and address of one that is no target."""
    client = f" from {group.client}" if group.client else ""
    return f"{group.application} ({group.user}{client})" if group.user else group.application


def _held_after(group: Group) -> list[RenderableType]:
    """Return the lines about the statements after which nothing was run for so long."""
    lines: list[RenderableType] = []
    for after in group.held_after:
        lead = f"  {after.share:>4.0%}, up to {age(after.longest_s)}, after "
        statement = after.statement or "(no statement)"
        lines.append(Text.assemble((lead, "dim"), statement, no_wrap=True, overflow="ellipsis"))
        if site := call_site(after.comment):
            lines.append(Text(f"        at {site}", style="bold"))
    return lines


def _described(holder: Holder, what: str) -> list[RenderableType]:
    """Return the lines about one connection: its statement, and the call site in its comment."""
    name = holder.application_name or UNNAMED
    cut = " (cut)" if holder.is_cut else ""
    lines = [
        Text(f"  pid {holder.pid}, {name}, {what}{cut}:", style="dim"),
        Text(f"    {holder.statement or '(none)'}", no_wrap=True, overflow="ellipsis"),
    ]
    if site := call_site(holder.comment):
        lines.append(Text(f"    at {site}", style="bold"))
    return [*lines]


def call_site(comment: Mapping[str, str]) -> str:
    """Return the call site and the endpoint or task that a statement's comment names; or nothing."""
    # The keys of this kit, and those of the other libraries that write such comments.
    where = comment.get("where", "")
    unit = comment.get("unit") or comment.get("route") or comment.get("action") or ""
    return ", in ".join(filter(None, (where, unit)))


def _table(groups: Sequence[Group]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, header_style="bold")
    # 80 columns, with ages such as `818 ms` and thousands of connections.
    table.add_column("application", overflow="ellipsis", no_wrap=True, max_width=22)
    for heading in ("conns", "active", "in tx", "idle", "longest", "oldest tx", "blocks", "waits"):
        table.add_column(heading, justify="right", no_wrap=True)
    none = Text("·", style="dim")
    for group in groups:
        is_hidden = group.verdict == "hidden"
        shares = [group.active, group.idle_in_transaction, group.idle]
        longest, oldest = group.longest_idle, group.oldest_transaction
        ages = [longest.state_s if longest else None, oldest.transaction_s if oldest else None]
        table.add_row(
            Text(group.application, style="bold"),
            f"{group.connections:,}",
            *(Text("?") if is_hidden else Text(f"{s:.0%}") if s >= 0.005 else none for s in shares),
            *(none if seconds is None else Text(age(seconds)) for seconds in ages),
            *(Text(f"{n:,}") if n else none for n in (group.blocks, group.waiting)),
        )
    return table


def _call_sites(sites: Sequence[HeldFrom]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, header_style="bold")
    table.add_column("line", overflow="fold", ratio=1)
    table.add_column("in", overflow="fold", max_width=24)
    for heading in ("checkouts", "p95", "in SQL", "second", "after"):
        table.add_column(heading, justify="right", no_wrap=True)
    for site in sites[:SITES]:
        share = "?" if site.busy_share is None else f"{site.busy_share:.0%}"
        figures = [f"{site.checkouts:,}", age(site.p95_s), share]
        figures += [f"{n:,}" if n else "·" for n in (site.nested, site.after_response)]
        table.add_row(Text(site.where), Text(site.unit or "·"), *map(Text, figures))
    return table
