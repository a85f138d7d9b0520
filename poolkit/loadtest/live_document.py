"""The document as an open page asks for it: made once for all who look, and a little at a time.

It is made by the process that sends the load, in which nothing else happens meanwhile: what took long at
once would be seen as latency, and by somebody who only looks.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

import gevent
from gevent.lock import RLock

from poolkit.loadtest.document import document
from poolkit.loadtest.latency.report import row

if TYPE_CHECKING:
    from poolkit.loadtest.recording import Recording
    from poolkit.loadtest.threshold_checks import ThresholdChecks

EVERY_S = 1.0
"""There is a new point a second."""
NAMES_EVERY_S = 5.0
"""Percentiles of each name need most of the work, and after some time of a run hardly move."""
PAUSE_S = 0.01
"""Between two parts of the work, each of some milliseconds at most."""


class LiveDocument:
    """What a page shows: at most `EVERY_S` old, the rows of names `NAMES_EVERY_S`."""

    def __init__(self, recording: Recording, checks: ThresholdChecks) -> None:
        self._recording, self._checks = recording, checks
        self._making = RLock()
        self._encoded = ""
        self._rows: list[dict[str, Any]] = []
        self._encoded_at = self._rows_at = -math.inf
        self._run: float | None = None

    def json(self) -> str:
        """Return it; whoever asks while it is made waits for it, and makes none of their own."""
        with self._making:
            if self._is_older(self._encoded_at, EVERY_S):
                found = self._document(NAMES_EVERY_S)
                gevent.sleep(PAUSE_S)
                self._encoded = _encoded(found)
                self._encoded_at = time.monotonic()
            return self._encoded

    def now(self) -> dict[str, Any]:
        """Return it with nothing in it that is older than the question."""
        with self._making:
            return self._document(0.0)

    def _document(self, names_every_s: float) -> dict[str, Any]:
        if self._is_older(self._rows_at, names_every_s):
            self._rows = self._rows_of_names()
            self._rows_at, self._run = time.monotonic(), self._recording.started
        total = row(self._recording.latencies, None)
        gevent.sleep(PAUSE_S)
        verdicts = self._checks.so_far()
        gevent.sleep(PAUSE_S)
        return document(self._recording, verdicts, latency_rows=[*self._rows, total])

    def _is_older(self, moment: float, seconds: float) -> bool:
        # Those of a test before say nothing about this one.
        return time.monotonic() - moment >= seconds or self._run != self._recording.started

    def _rows_of_names(self) -> list[dict[str, Any]]:
        latencies = self._recording.latencies
        rows = []
        for name in latencies.names():
            rows.append(row(latencies, name))
            gevent.sleep(PAUSE_S)
        return rows


def _encoded(found: dict[str, Any]) -> str:
    """Return it as JSON; a series of two thousand points is encoded column by column."""
    columns = []
    for name, column in found.pop("series").items():
        columns.append(f"{json.dumps(name)}: {json.dumps(column)}")
        gevent.sleep(0)
    return f'{json.dumps(found)[:-1]}, "series": {{{", ".join(columns)}}}}}'
