"""What `poolkit watch` knows at one moment, and how it asks for it."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from poolkit.activity.by_target import Connected, by_target, total
from poolkit.activity.server import ActivityConnection
from poolkit.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from poolkit.activity.server import IdleTransaction, Sample, ServerLimits

    Answer = tuple[Sample, IdleTransaction | None]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The server at one moment; `problem` says why it could not be asked, and then the rest is old.

    `opened_per_s` is None at first, and after the server's counter began again.
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
    def connections(self) -> int:
        """All targets' connections together."""
        return total(self.targets).total

    @property
    def on_server(self) -> int:
        """The connections to all databases of the server, which its limits are about."""
        return self.connections + self.elsewhere

    @property
    def share(self) -> float:
        """The server's connections as a share of `max_connections`, 0 to 1."""
        return self.on_server / self.limits.max_connections

    def to_json(self) -> dict[str, Any]:
        """Return it for one line of JSON; null where nothing is known."""
        known = self.problem is None
        return {
            "time": round(self.time, 3),
            "connections": self.connections if known else None,
            "other_databases": self.elsewhere if known else None,
            "max_connections": self.limits.max_connections,
            "usable": self.limits.usable,
            "share": round(self.share, 4) if known else None,
            "opened_per_s": self.opened_per_s,
            "targets": [asdict(one) | {"total": one.total} for one in self.targets if known],
            "oldest_idle_in_transaction": asdict(self.oldest) if self.oldest and known else None,
            "problem": self.problem,
        }


class Observer:
    """Asks the server, and connects again when it was away.

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
        """Ask once; a server that does not answer is an observation, too.

        Args:
            within_s: how long to wait for the answer, in seconds; without it for as long as it
                takes. What is still to come then is waited for the next time.

        Raises:
            MonitoringNotAllowed: after a restart, the role may no longer see others' activity.
        """
        try:
            sample, oldest = self._answer(within_s)
        except Empty:
            return self._silent("the database does not answer")
        except DatabaseUnavailable as error:
            return self._silent(str(error))
        self._answered = sample.time
        return Observation(
            time=sample.time,
            limits=self._limits,
            targets=by_target(sample),
            elsewhere=sample.elsewhere,
            opened_per_s=self._opened_per_s(sample),
            oldest=oldest,
        )

    def _answer(self, within_s: float | None) -> Answer:
        # libpq waits where Python hears no Ctrl-C; here it does.
        if self._asked is None:
            self._asked = SimpleQueue()
            threading.Thread(target=self._ask, args=(self._asked,), daemon=True).start()
        answer = self._asked.get(timeout=within_s)
        self._asked = None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, asked: SimpleQueue[Answer | Exception]) -> None:
        try:
            if self._activity.is_lost:
                self._limits, self._last = self._activity.connect(), None
            asked.put((self._activity.sample(), self._activity.oldest_idle_in_transaction()))
        except Exception as error:  # noqa: BLE001  (raised again where the answer is waited for)
            asked.put(error)

    def _silent(self, problem: str) -> Observation:
        now = time.time()
        return Observation(
            time=now, limits=self._limits, problem=problem, silent_s=now - self._answered
        )

    def _opened_per_s(self, sample: Sample) -> float | None:
        last, self._last = self._last, sample
        if last is None or sample.sessions < last.sessions or sample.time <= last.time:
            return None
        return round((sample.sessions - last.sessions) / (sample.time - last.time), 3)

    def close(self) -> None:
        """Give the connection back; one that is being waited for ends with the process."""
        if self._asked is None:
            self._activity.close()
