"""What the end of a run, or of a user, cuts off: how long each request had waited for its answer.

Without it a server that ends, or stands still, would leave a run with the answers of the time
before, and no sign of the requests that nobody answered any more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from locust.env import Environment


class CutOff(NamedTuple):
    """How long each has waited by the time it was cut off, in ms since it was due."""

    unanswered_ms: Sequence[float] = ()
    unsent_ms: Sequence[float] = ()


TakeCutOff: TypeAlias = "Callable[[], CutOff]"
"""Returns what was cut off since the last call."""


class Waits:
    """How long the requests of users that were ended had waited."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._ended: float | None = None
        self._ms: list[float] = []
        environment.events.test_start.add_listener(self._on_start)  # type: ignore[no-untyped-call]
        environment.events.test_stopping.add_listener(self._on_stopping)  # type: ignore[no-untyped-call]

    def note(self, due: float) -> None:
        """Count a request of a user that has just ended; it was due then, in Unix time."""
        # Ending many users takes time, in which no answer can be heard.
        heard_s = self._ended if self._ended and not self._environment.stop_timeout else time.time()
        self._ms.append(max(0.0, heard_s - due) * 1000)

    def take(self) -> list[float]:
        """Return those of the users that have ended since the last call, in ms."""
        taken, self._ms = self._ms, []
        return taken

    def _on_start(self, **_: Any) -> None:
        self._ended = None

    def _on_stopping(self, **_: Any) -> None:
        self._ended = time.time()
