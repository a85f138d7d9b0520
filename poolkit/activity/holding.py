"""Who holds connections, computed from samples of `pg_stat_activity`.

    counters = Counters()
    counters.add(activity.rows(SAMPLE))
    counters.groups(), counters.blockers()

A connection that is idle in a transaction is held by its client and not by SQL: the client computes,
waits for another service, or has forgotten it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from poolkit.activity.by_target import IDLE, IDLE_IN_TRANSACTION, UNNAMED
from poolkit.activity.statements import comment_of, shown
from poolkit.masking import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from poolkit.activity.call_sites import HeldFrom
    from poolkit.activity.server import ServerLimits

HELD_S = 0.05
"""The idle moment in a transaction from which something else than the next statement is awaited. Between
two statements, a client on the same network needs a few milliseconds."""
FORGOTTEN_S = 10.0
"""The idle moment in a transaction from which it looks forgotten, whatever the shares are."""
MOSTLY = 0.5
"""The share of its time from which a state describes a connection."""
STATEMENTS = 3

_STATES = ("active", "idle_in_transaction", IDLE, "hidden")

Verdict: TypeAlias = Literal["held", "forgotten", "waiting", "chatty", "sql", "idle", "hidden"]
"""What the connections of an application did for most of the time in which they were in use:

- held: idle in a transaction, for longer than between two statements
- forgotten: one of them was idle in a transaction for `FORGOTTEN_S` or more
- waiting: waited for locks
- chatty: idle in a transaction, but only for the short moments between statements
- sql: ran SQL
- idle: none of them was in use for a noticeable time
- hidden: not known, since the role may not see it
"""

# The view's last columns cost little: texts and blockers are computed for few rows only.
SAMPLE = """
SELECT a.pid, a.backend_type, a.application_name, a.usename, host(a.client_addr), a.state,
       a.wait_event_type, a.wait_event, extract(epoch FROM a.backend_start)::float8,
       extract(epoch FROM clock_timestamp() - a.state_change)::float8,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8,
       CASE WHEN a.xact_start IS NOT NULL THEN a.query END,
       CASE WHEN a.xact_start IS NOT NULL THEN octet_length(a.query) >=
            pg_size_bytes(current_setting('track_activity_query_size')) - 4 END,
       CASE WHEN a.wait_event_type = 'Lock' THEN pg_blocking_pids(a.pid) END,
       l.locktype, l.relation, extract(epoch FROM clock_timestamp() - l.waitstart)::float8
FROM pg_stat_activity AS a
LEFT JOIN LATERAL (
    SELECT w.locktype, w.waitstart,
           (SELECT min(t.relation::regclass::text) FROM pg_locks AS t WHERE t.pid = a.pid
            AND (t.locktype = 'tuple' OR NOT t.granted) AND t.relation IS NOT NULL) AS relation
    FROM pg_locks AS w WHERE a.wait_event_type = 'Lock' AND w.pid = a.pid AND NOT w.granted LIMIT 1
) AS l ON true
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
      AND a.application_name IS DISTINCT FROM 'poolkit:activity'
"""


class _Row(NamedTuple):
    """One backend in one sample; ages in seconds. What the role may not see is None."""

    pid: int
    backend_type: str | None
    application_name: str | None
    user: str | None
    client: str | None
    state: str | None
    wait_type: str | None
    wait_event: str | None
    started: float | None
    state_age_s: float | None
    transaction_age_s: float | None
    query: str | None
    is_cut: bool | None
    blockers: list[int] | None
    lock_type: str | None
    relation: str | None
    waited_s: float | None

    @property
    def is_hidden(self) -> bool:
        return self.backend_type is None

    @property
    def is_client(self) -> bool:
        return self.backend_type in (None, "client backend")


class _Key(NamedTuple):
    """The identity of a group: a target, or an application's name with its user and address."""

    application: str
    user: str = ""
    client: str = ""

    @classmethod
    def of(cls, row: _Row) -> _Key:
        name = printable(row.application_name or "", one_line=True)
        target, colon, _ = name.partition(":")
        if colon and target:
            return cls(target)
        return cls(name or UNNAMED, printable(row.user or "", one_line=True), row.client or "")


# -- the result -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A connection at the moment that is reported of it."""

    pid: int
    application_name: str
    state: str
    state_s: float
    """Seconds in this state."""
    transaction_s: float | None
    """Age of its transaction in seconds; None without one."""
    statement: str
    """Its present or last statement, with `?` for literals."""
    is_cut: bool
    """Whether the server has cut the statement at `track_activity_query_size`."""
    comment: Mapping[str, str]
    """The statement's comment in SQLCommenter's format, such as `where` and `unit`."""


@dataclass(frozen=True, kw_only=True)
class HeldAfter:
    """A statement after which connections were idle in a transaction."""

    statement: str
    comment: Mapping[str, str]
    share: float
    """Of the time in which connections of the group were idle in a transaction."""
    longest_s: float


@dataclass(frozen=True, kw_only=True)
class Group:
    """The connections of one application. Shares are of the time of all its connections together."""

    application: str
    user: str
    """Empty where `application` is a target."""
    client: str
    """The client's address; empty over a Unix socket, and for a target."""
    instances: int
    connections: int
    """The most at once."""
    seen: int
    """All that were seen; more than `connections` if they are opened and closed."""
    active: float
    idle_in_transaction: float
    idle: float
    other: float
    hidden: float
    held: int
    """Connections that were idle in a transaction for at least half of their time."""
    held_share: float | None
    """The share of their time in which these were; None without any."""
    in_use: float
    """The mean number of connections that were active or idle in a transaction."""
    waiting: int
    """The most that waited for a lock at once."""
    blocks: int
    """The most connections at once that waited for a lock of one of its connections."""
    longest_idle: Holder | None
    """The longest moment that one of them was idle in a transaction."""
    oldest_transaction: Holder | None
    held_after: tuple[HeldAfter, ...]
    """The statements with the largest shares, at most `STATEMENTS`."""
    wait_events: Mapping[str, float]
    """Shares by `type:event`, such as `Client:ClientRead`; those of idle connections are left out."""
    verdict: Verdict

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        of_all = f"{self.seen:,} connection{'' if self.seen == 1 else 's'}"
        longest_s = self.longest_idle.state_s if self.longest_idle else 0.0
        worked = self.idle_in_transaction + self.active
        idle_share = self.idle_in_transaction / worked if worked else 0.0
        used = f"On average {self.in_use:.2g} of {self.connections:,} connections were in use"
        held = f"{used}, {idle_share:.0%} of that time idle in a transaction"
        if self.held_share is not None:
            verb = "was" if self.held == 1 else "were"
            share = f"{self.held_share:.0%} of the time"
            held = f"{self.held:,} of {of_all} {verb} idle in a transaction {share}"
        texts: dict[Verdict, str] = {
            "hidden": f"The state of its {of_all} is hidden from this role.",
            "held": f"{held}, up to {age(longest_s)} at once: held over something that is not SQL.",
            "forgotten": (
                f"One of {of_all} has been idle in a transaction for {age(longest_s)}: "
                "it looks forgotten."
            ),
            "waiting": (
                f"{used}, most of that time waiting for locks; "
                f"up to {self.waiting:,} waited at once."
            ),
            "chatty": (
                f"{used}, {idle_share:.0%} of that time between the statements of a transaction, "
                f"for at most {age(longest_s)}: short moments, nothing is held."
            ),
            "sql": f"{used}, {1 - idle_share:.0%} of that time in SQL.",
            "idle": "None of its connections was in use.",
        }
        return texts[self.verdict]


@dataclass(frozen=True, kw_only=True)
class Blocker:
    """A connection for whose locks others wait, while it waits for no lock itself."""

    application: str
    """Of its group; the kind of process if it is no client."""
    holder: Holder | None
    """None for a prepared transaction, which has no connection."""
    blocked: Mapping[str, int]
    """Connections that waited for it at once, directly or in a chain, by application."""
    longest_wait_s: float
    lock: str
    """The lock of that wait, such as `row of orders` or `table orders`."""


@dataclass(frozen=True, kw_only=True)
class Holders:
    """Who held the connections of a database during some seconds."""

    time: float
    """When it ended, Unix time."""
    seconds: float
    samples: int
    interval_s: float
    unseen_s: float
    """Seconds in which the server did not answer."""
    limits: ServerLimits
    role: str
    sees_all: bool
    """Whether the role sees the state of other roles' connections."""
    is_pooled: bool
    """Whether this command itself was connected through a pooler."""
    groups: tuple[Group, ...]
    blockers: tuple[Blocker, ...]
    notes: tuple[str, ...]
    call_sites: tuple[HeldFrom, ...] | None = None
    """The lines that held connections, by the application's own metrics; None without these."""

    def to_json(self) -> dict[str, Any]:
        """Return the document of `--json`; null is "not known"."""
        found = asdict(self)
        for group, of in zip(found["groups"], self.groups, strict=True):
            group["sentence"] = of.sentence
        limits = found.pop("limits")
        of_server = {key: limits[key] for key in ("max_connections", "version")}
        return {**found, **of_server, "usable": self.limits.usable}


# -- from samples to the result ---------------------------------------------------------------


@dataclass
class _Connection:
    """One connection in all samples."""

    samples: int = 0
    idle_in_transaction: int = 0


class _Text(NamedTuple):
    """A statement without literals, and the pairs of its comment."""

    statement: str
    comment: tuple[tuple[str, str], ...]


@lru_cache(maxsize=4096)
def _text(query: str) -> _Text:
    return _Text(shown(query), tuple(comment_of(query).items()))


@dataclass
class _Idle:
    """The moments of a group that were idle in a transaction after one statement."""

    samples: int = 0
    longest_s: float = 0.0


@dataclass
class _Counted:
    """One group in all samples; counts are of connections in samples."""

    states: Counter[str] = field(default_factory=Counter)
    held: int = 0
    """Idle in a transaction for longer than between two statements."""
    waits: Counter[str] = field(default_factory=Counter)
    connections: dict[tuple[int, float], _Connection] = field(
        default_factory=lambda: defaultdict(_Connection)
    )
    after: dict[_Text, _Idle] = field(default_factory=lambda: defaultdict(_Idle))
    instances: set[str] = field(default_factory=set)
    most: int = 0
    most_waiting: int = 0
    most_blocked: int = 0
    longest: Holder | None = None
    oldest: Holder | None = None


@dataclass
class _Blocked:
    """The connections that one connection blocks, in the sample with the most of them."""

    application: str
    holder: Holder | None
    blocked: Counter[str] = field(default_factory=Counter)
    longest_wait_s: float = 0.0
    lock: str = ""


class Counters:
    """The counters of the samples, which `result` turns into what is shown."""

    def __init__(self) -> None:
        self.samples = 0
        self._groups: dict[_Key, _Counted] = defaultdict(_Counted)
        self._blockers: dict[tuple[int, float], _Blocked] = {}

    def add(self, sample: Iterable[Sequence[Any]]) -> None:
        """Count the rows of one sample."""
        self.samples += 1
        rows = [_Row(*values) for values in sample]
        at_once: Counter[_Key] = Counter()
        waiting: Counter[_Key] = Counter()
        for row in rows:
            if not row.is_client:
                continue
            key = _Key.of(row)
            counted = self._groups[key]
            connection = counted.connections[row.pid, row.started or 0.0]
            connection.samples += 1
            at_once[key] += 1
            counted.instances.add((row.application_name or "").partition(":")[2])
            state = row.state or "hidden"
            if row.state in IDLE_IN_TRANSACTION:
                state = "idle_in_transaction"
                connection.idle_in_transaction += 1
                idle_s = max(0.0, row.state_age_s or 0.0)
                counted.held += idle_s >= HELD_S
                after = counted.after[_text(row.query or "")]
                after.samples += 1
                after.longest_s = max(after.longest_s, idle_s)
                if counted.longest is None or idle_s > counted.longest.state_s:
                    counted.longest = _holder(row)
            counted.states[state] += 1
            if row.wait_type is not None and row.state != IDLE:
                counted.waits[f"{row.wait_type}:{row.wait_event}"] += 1
            waiting[key] += row.wait_type == "Lock"
            age_s = row.transaction_age_s
            if age_s is not None and age_s > (
                (counted.oldest and counted.oldest.transaction_s) or 0
            ):
                counted.oldest = _holder(row)
        for key, number in at_once.items():
            counted = self._groups[key]
            counted.most = max(counted.most, number)
            counted.most_waiting = max(counted.most_waiting, waiting[key])
        self._add_locks(rows)

    def _add_locks(self, rows: Sequence[_Row]) -> None:
        """Count who waits for whom."""
        by_pid = {row.pid: row for row in rows}
        blocked: dict[int, list[_Row]] = defaultdict(list)
        for row in rows:
            for pid in _ends_of_chain(row, by_pid):
                blocked[pid].append(row)
        of_group: Counter[_Key] = Counter()
        for pid, waiters in blocked.items():
            blocker = by_pid.get(pid)
            # Without a row it is of another database, or a prepared transaction, whose pid is 0.
            application = "another process" if pid else "a prepared transaction"
            if blocker is not None:
                key = _Key.of(blocker)
                application = key.application
                if blocker.is_client:
                    of_group[key] += len(waiters)
                else:
                    application = blocker.backend_type or application
            identity = (pid, (blocker and blocker.started) or 0.0)
            holder = None if blocker is None else _holder(blocker)
            found = self._blockers.setdefault(identity, _Blocked(application, holder))
            longest = max(waiters, key=lambda row: row.waited_s or 0.0)
            if len(waiters) >= found.blocked.total():
                found.blocked = Counter(_Key.of(row).application for row in waiters)
                found.holder = holder
            if (longest.waited_s or 0.0) >= found.longest_wait_s:
                found.longest_wait_s = round(longest.waited_s or 0.0, 3)
                found.lock = _lock(longest)
        for key, number in of_group.items():
            counted = self._groups[key]
            counted.most_blocked = max(counted.most_blocked, number)

    def groups(self) -> tuple[Group, ...]:
        """Return the groups, those that hold most first."""
        found = [_group(key, counted, self.samples) for key, counted in self._groups.items()]
        return tuple(
            sorted(found, key=lambda g: (-g.idle_in_transaction * g.connections, -g.connections))
        )

    def blockers(self) -> tuple[Blocker, ...]:
        """Return the connections that others waited for, the most blocking first."""
        found = sorted(self._blockers.values(), key=lambda b: -b.blocked.total())
        return tuple(Blocker(**vars(each) | {"blocked": dict(each.blocked)}) for each in found)


def _ends_of_chain(row: _Row, by_pid: Mapping[int, _Row]) -> set[int]:
    """Return the processes that a connection waits for in the end: those that wait for no lock."""
    ends, ahead, passed = set(), list(row.blockers or ()), {row.pid}
    while ahead:
        pid = ahead.pop()
        if pid in passed:  # a deadlock, or two ways to one process
            continue
        passed.add(pid)
        blocker = by_pid.get(pid)
        if blocker is not None and blocker.blockers:
            ahead += blocker.blockers
        else:
            ends.add(pid)
    return ends


def _holder(row: _Row) -> Holder:
    return Holder(
        pid=row.pid,
        application_name=printable(row.application_name or "", one_line=True),
        state=row.state or "unknown",
        state_s=round(max(0.0, row.state_age_s or 0.0), 3),
        transaction_s=None if row.transaction_age_s is None else round(row.transaction_age_s, 3),
        statement=_text(row.query or "").statement,
        is_cut=bool(row.is_cut),
        comment=dict(_text(row.query or "").comment),
    )


def _lock(row: _Row) -> str:
    """Return the lock that a connection waits for, in words."""
    if row.lock_type in ("transactionid", "tuple"):
        return f"row of {printable(row.relation, one_line=True)}" if row.relation else "row"
    if row.lock_type == "relation":
        return f"table {printable(row.relation or '', one_line=True)}".strip()
    return row.lock_type or row.wait_event or "lock"


def _group(key: _Key, counted: _Counted, samples: int) -> Group:
    all_, states = counted.states.total(), counted.states
    share = {state: states[state] / all_ for state in _STATES}
    connections = list(counted.connections.values())
    held = [c for c in connections if c.idle_in_transaction >= MOSTLY * c.samples]
    in_held = sum(c.idle_in_transaction for c in held)
    idle_in_transaction = states["idle_in_transaction"]
    in_use = states["active"] + idle_in_transaction
    after = sorted(counted.after.items(), key=lambda pair: -pair[1].samples)[:STATEMENTS]
    locks = sum(n for event, n in counted.waits.items() if event.startswith("Lock:"))
    longest_s = counted.longest.state_s if counted.longest else 0.0
    verdict: Verdict = "idle"
    if share["hidden"] == 1:
        verdict = "hidden"
    elif counted.held >= MOSTLY * in_use and longest_s >= HELD_S:
        verdict = "held"
    elif longest_s >= FORGOTTEN_S:
        verdict = "forgotten"
    elif in_use and locks >= MOSTLY * in_use:
        verdict = "waiting"
    elif in_use and idle_in_transaction >= MOSTLY * in_use:
        verdict = "chatty"
    elif in_use:
        verdict = "sql"
    return Group(
        application=key.application,
        user=key.user,
        client=key.client,
        instances=len(counted.instances),
        connections=counted.most,
        seen=len(connections),
        active=round(share["active"], 4),
        idle_in_transaction=round(share["idle_in_transaction"], 4),
        idle=round(share[IDLE], 4),
        other=round(max(0.0, 1 - sum(share.values())), 4),
        hidden=round(share["hidden"], 4),
        held=len(held),
        held_share=round(in_held / sum(c.samples for c in held), 4) if held else None,
        in_use=round(in_use / samples, 3),
        waiting=counted.most_waiting,
        blocks=counted.most_blocked,
        longest_idle=counted.longest,
        oldest_transaction=counted.oldest,
        held_after=tuple(
            HeldAfter(
                statement=text.statement,
                comment=dict(text.comment),
                share=round(moments.samples / idle_in_transaction, 4),
                longest_s=round(moments.longest_s, 3),
            )
            for text, moments in after
        ),
        wait_events={event: round(n / all_, 4) for event, n in counted.waits.most_common()},
        verdict=verdict,
    )


def age(seconds: float) -> str:
    """Return an age as `40 ms`, `12.3 s`, `5 min` or `3.5 h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
