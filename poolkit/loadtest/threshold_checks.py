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

from poolkit.errors import ConfigurationError
from poolkit.loadtest.figures import ONLY_IN_COMPARE, why_not_known
from poolkit.loadtest.preflight import check_when_parsed
from poolkit.project import Project
from poolkit.thresholds import (
    Threshold,
    check_all,
    github_annotations,
    junit,
    plain_lines,
    should_abort,
    takes_marks,
    thresholds_of,
    unmet,
    with_unseen,
)

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

    from poolkit.loadtest.recording import Recording
    from poolkit.thresholds import Verdict

LOOK_EVERY_S = 0.5
NAME = "locust"
"""The name of a run without a target in a JUnit file."""

logger = logging.getLogger("poolkit.loadtest")
console = logging.getLogger("locust.stats_logger")


def add_threshold_options(parser: LocustArgumentParser) -> None:
    """Add `--threshold`, `--target` and `--junit`."""
    group = parser.add_argument_group("Thresholds (poolkit)")
    group.add_argument(
        "--threshold",
        metavar="<text>",
        action="append",
        default=[],
        help="A condition for exit status 0, such as 'http.p95 < 200' or 'http.errors < 1%% "
        "abort after 10s'; may be repeated. Replaces one of pyproject.toml for the same metric",
    )
    group.add_argument(
        "--target",
        metavar="<name>",
        default="",
        help="The loaded target: only its thresholds and its connections count",
    )
    group.add_argument(
        "--junit",
        metavar="<file>",
        default="",
        help="File for the verdicts on the thresholds, as JUnit XML",
    )
    check_when_parsed(parser, run_thresholds)


def run_thresholds(options: Namespace) -> tuple[Threshold, ...]:
    """Return the thresholds of pyproject.toml and of the options that apply to a run.

    Raises:
        ConfigurationError: one is invalid, or one of the options is for another target; one line.
    """
    thresholds = thresholds_of(Project.find().table, options.threshold)
    for text in options.threshold:
        names = Threshold.parse(text).targets
        if names and options.target not in names:
            meant = f"not {options.target}" if options.target else "and the run has none"
            raise ConfigurationError(
                f"threshold {text!r} is for the target {' or '.join(names)}, {meant}; "
                f"add --target {names[0]}, or leave the name out"
            )
    return tuple(each for each in thresholds if each.applies_to(options.target))


class ThresholdChecks:
    """Checks a run against its thresholds while it goes on and at its end."""

    def __init__(
        self, environment: Environment, recording: Recording, thresholds: Sequence[Threshold]
    ) -> None:
        self.verdicts: tuple[Verdict, ...] = ()
        """The verdicts on the last test, once it has ended."""
        self.aborted_by: Verdict | None = None
        """The verdict that ended the test early."""
        options = environment.parsed_options
        assert options is not None  # noqa: S101  (a run from the command line has them)
        self._environment, self._options, self._recording = environment, options, recording
        self._thresholds = thresholds
        self._started: float | None = None
        self._ended: float | None = None
        for event, listener in (
            (environment.events.test_start, self._on_start),
            (environment.events.test_stop, self._on_stop),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]

    # -- while it goes on -------------------------------------------------------------------

    def _on_start(self, **_: Any) -> None:
        self._started, self._ended, self.aborted_by = time.time(), None, None
        if any(threshold.abort for threshold in self._thresholds):
            gevent.spawn(self._watch, self._started)

    def _on_stop(self, **_: Any) -> None:
        self._ended = time.time()

    def _watch(self, started: float) -> None:
        """Check twice a second until the test that began then has ended, or must end."""
        while self._ended is None and self._started == started:
            verdict = should_abort(
                self._thresholds, self._options.target, self._figures(), time.time() - started
            )
            if verdict is not None:
                self.aborted_by = verdict
                logger.error("the run ends early: %s", verdict.message)
                runner = self._environment.runner
                assert runner is not None  # noqa: S101  (it has started the test)
                # A web page stays open, so that the figures can be read.
                (runner.quit if self._environment.web_ui is None else runner.stop)()
                return
            gevent.sleep(LOOK_EVERY_S)

    @property
    def _until(self) -> float:
        return self._ended or time.time()

    def _figures(self) -> dict[str, float | None]:
        return self._recording.measured.figures(self._until, self._options.target)

    # -- at its end -------------------------------------------------------------------------

    @property
    def _awaits_a_test(self) -> bool:
        return self._started is None and self._environment.web_ui is not None

    def so_far(self) -> tuple[Verdict, ...]:
        """Return the verdicts on the figures up to now."""
        if self._awaits_a_test:
            return ()
        target, connections = self._options.target, self._recording.measured.connections
        verdicts = check_all(
            self._thresholds,
            target,
            self._figures(),
            ONLY_IN_COMPARE,
            reasons=why_not_known(connections, target, self._recording.note),
        )
        seen = with_unseen(verdicts, connections.unseen_s(self._until))
        # The threshold that ended the run has failed, even if the last answers were good ones.
        first = self.aborted_by
        return tuple(
            first if first is not None and verdict.threshold == first.threshold else verdict
            for verdict in seen
        )

    def conclude(self) -> None:
        """Check the complete figures, set the exit status and write the files.

        An unmet threshold gives exit status 1. A met threshold on `http.errors` defines how many
        requests may fail; without one, Locust exits with 1 when any has failed.
        """
        if self._awaits_a_test:
            return  # the page was opened and closed
        self.verdicts = self.so_far()
        environment, runner = self._environment, self._environment.runner
        limits_errors = any(each.threshold.metric == "http.errors" for each in self.verdicts)
        if unmet(self.verdicts):
            environment.process_exit_code = 1
        elif environment.process_exit_code is None and limits_errors:
            environment.process_exit_code = 1 if runner is not None and runner.exceptions else 0
        if self._options.junit:
            self._write_junit(Path(self._options.junit))
        if os.environ.get("GITHUB_ACTIONS") == "true":
            # With --json the standard output is one JSON document of Locust's.
            stream = sys.stderr if self._options.json else sys.stdout
            for annotation in github_annotations(self.verdicts):
                stream.write(f"{annotation}\n")
            stream.flush()

    def _write_junit(self, file: Path) -> None:
        host = {"host": self._environment.host or ""}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(junit(self.verdicts, NAME, host), encoding="utf-8")
        except OSError as error:
            logger.error("the verdicts cannot be written: %s", error)  # noqa: TRY400  (one line)
            self._environment.process_exit_code = 1

    def print_verdicts(self) -> None:
        """Print a line with a tick or a cross for each verdict."""
        words = not takes_marks(getattr(sys.stderr, "encoding", None))
        for line in plain_lines(self.verdicts, words=words):
            console.info(line)
        if self.verdicts:
            console.info("")
