"""The thresholds of a Locust run: its early end, its verdicts and its exit status.

They are checked by the process that has all figures: the master, or the only process of a run
without workers. See docs/thresholds.md.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent

from poolkit.loadtest.event_loop import end_test
from poolkit.loadtest.figures import ONLY_IN_COMPARE, why_not_known, why_not_selected
from poolkit.loadtest.latency.counters import NO_NAME
from poolkit.loadtest.locust_internals import tags_of
from poolkit.thresholds import (
    check_all,
    github_annotations,
    junit,
    should_abort,
    unmet,
    with_unseen,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from locust.env import Environment

    from poolkit.loadtest.recording import Recording
    from poolkit.thresholds import Threshold, Verdict

LOOK_EVERY_S = 0.5
NAME = "locust"
"""The name of a run without a target in a JUnit file."""

logger = logging.getLogger("poolkit.loadtest")


class ThresholdChecks:
    """Checks a run against its thresholds while it goes on and at its end."""

    def __init__(
        self, environment: Environment, recording: Recording, thresholds: Sequence[Threshold]
    ) -> None:
        self.verdicts: tuple[Verdict, ...] = ()
        """The verdicts on the last test, once it has ended."""
        self.aborted_by: Verdict | None = None
        """The verdict that ended the test early."""
        self.ended: float | None = None
        """When the test ended, Unix time; None while it runs."""
        options = environment.parsed_options
        assert options is not None  # noqa: S101  (a run from the command line has them)
        self._environment, self._options, self._recording = environment, options, recording
        self.target: str = options.poolkit_target
        """Whose connections count; empty for those of all together."""
        self._thresholds = thresholds
        self._started: float | None = None

        def on_start(**_: Any) -> None:
            self._started, self.ended, self.aborted_by = time.time(), None, None
            if any(threshold.abort for threshold in thresholds):
                gevent.spawn(self._abort_when_unmet, self._started)

        def on_stop(**_: Any) -> None:
            self.ended = time.time()

        environment.events.test_start.add_listener(on_start)  # type: ignore[no-untyped-call]
        environment.events.test_stop.add_listener(on_stop)  # type: ignore[no-untyped-call]

    def _abort_when_unmet(self, started: float) -> None:
        """Check twice a second until the test that began then has ended, or must end."""
        target = self.target
        while self.ended is None and self._started == started:
            now = time.time()
            figures = self._figures(now)
            verdict = should_abort(self._thresholds, target, figures, now - started)
            if verdict is not None:
                self.aborted_by = verdict
                logger.error("the run ends early: %s", verdict.message)
                end_test(self._environment)
                return
            gevent.sleep(LOOK_EVERY_S)

    def _figures(self, until: float) -> dict[str, float | None]:
        """Return the figures up to a moment, with those of the requests that thresholds select."""
        recording = self._recording
        selectors = {one.selector for one in self._thresholds if one.selector is not None}
        found = {one: recording.latencies.select(one) for one in selectors}
        measured = recording.measured
        measured.selected = {
            one: counters for one, counters in found.items() if counters is not None
        }
        measured.unnamed = recording.latencies.of(NO_NAME)
        return measured.figures(until, self._options.poolkit_target)

    def so_far(self) -> tuple[Verdict, ...]:
        """Return the verdicts on the figures up to now; none before the first test of a web page."""
        if self._started is None and self._environment.web_ui is not None:
            return ()
        target, measured = self.target, self._recording.measured
        until = self.ended or time.time()
        figures = self._figures(until)
        reasons = why_not_known(measured.connections, target, self._recording.note)
        missing = [
            each for each in self._thresholds if each.selector and figures.get(each.key) is None
        ]
        if missing:
            reasons |= why_not_selected(
                missing,
                self._recording.latencies.recorded(),
                tags_of(self._environment.user_classes),
            )
        verdicts = check_all(
            self._thresholds,
            target,
            figures,
            ONLY_IN_COMPARE,
            reasons=reasons,
        )
        seen = with_unseen(verdicts, measured.connections.unseen_s(until))
        # The threshold that ended the run has failed, even if the last answers were good ones. Its
        # figure is that of the whole run where this does not hold either, as in all other outputs.
        first = self.aborted_by
        return tuple(
            first
            if first is not None
            and verdict.threshold == first.threshold
            and verdict.status != first.status
            else verdict
            for verdict in seen
        )

    def conclude(self) -> None:
        """Check the complete figures, set the exit status and write the files.

        An unmet threshold gives exit status 1. A met threshold on `http.errors` defines how many
        requests may fail; without one, Locust exits with 1 when any has failed.
        """
        environment, runner = self._environment, self._environment.runner
        if self._started is None and environment.web_ui is not None:
            return  # the page was opened and closed
        self.verdicts = self.so_far()
        limits_errors = any(each.threshold.key == "http.errors" for each in self.verdicts)
        if unmet(self.verdicts):
            environment.process_exit_code = 1
        elif environment.process_exit_code is None and limits_errors:
            environment.process_exit_code = 1 if runner is not None and runner.exceptions else 0
        if self._options.poolkit_junit:
            file = Path(self._options.poolkit_junit)
            text = junit(self.verdicts, NAME, {"host": environment.host or ""})
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            except OSError as error:
                # One line, and the rest of the results is still written.
                logger.error("the verdicts cannot be written: %s", error)  # noqa: TRY400
                environment.process_exit_code = 1
        if os.environ.get("GITHUB_ACTIONS") == "true":
            # With --json the standard output is one JSON document of Locust's.
            stream = sys.stderr if self._options.json else sys.stdout
            for annotation in github_annotations(self.verdicts):
                stream.write(f"{annotation}\n")
            stream.flush()
