"""Thresholds of a Locust run: what it is held to, when it is ended early, how it exits.

Only the process with all the figures checks: the master, or the one process of a run without
workers. See docs/thresholds.md.
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
from poolkit.loadtest.option_checks import check_when_parsed
from poolkit.loadtest.run_figures import NOT_HERE, figures, why_not_known
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
"""What a run without a target is called in a JUnit file."""

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
        help="What must hold for exit status 0, such as 'http.p95 < 200' or 'http.errors < 1%% "
        "abort after 10s'; may be repeated. Replaces one of pyproject.toml for the same metric",
    )
    group.add_argument(
        "--target",
        metavar="<name>",
        default="",
        help="The target that is loaded: its thresholds hold, and its connections alone count",
    )
    group.add_argument(
        "--junit", metavar="<file>", default="", help="Write the thresholds' verdicts as JUnit XML"
    )
    check_when_parsed(parser, _check_options)


def _check_options(options: Namespace) -> None:
    run_thresholds(options)


def run_thresholds(options: Namespace) -> tuple[Threshold, ...]:
    """Return the thresholds of pyproject.toml and of the options that a run is held to.

    Raises:
        ConfigurationError: one of them is none, or is for another target; one line.
    """
    thresholds = thresholds_of(Project.find().table, options.threshold)
    _check_target(options)
    return tuple(each for each in thresholds if each.applies_to(options.target))


def _check_target(options: Namespace) -> None:
    """Refuse a threshold of the command line that this run would never look at."""
    for text in options.threshold:
        names = Threshold.parse(text).targets
        if names and options.target not in names:
            meant = f"not {options.target}" if options.target else "and the run has none"
            raise ConfigurationError(
                f"threshold {text!r} is for the target {' or '.join(names)}, {meant}; "
                f"say --target {names[0]}, or leave the name out"
            )


class ThresholdChecks:
    """Holds a run to its thresholds while it goes on and at its end."""

    def __init__(
        self, environment: Environment, recording: Recording, thresholds: Sequence[Threshold]
    ) -> None:
        self.verdicts: tuple[Verdict, ...] = ()
        """Those of the last test, once it has ended."""
        self.aborted_by: Verdict | None = None
        """What ended the test before its time."""
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
        """Look twice a second until the test that began then has ended, or has to end."""
        while self._ended is None and self._started == started:
            verdict = should_abort(
                self._thresholds, self._options.target, self._figures(), time.time() - started
            )
            if verdict is not None:
                self._abort(verdict)
                return
            gevent.sleep(LOOK_EVERY_S)

    def _abort(self, verdict: Verdict) -> None:
        self.aborted_by = verdict
        logger.error("the run ends early: %s", verdict.words)
        runner = self._environment.runner
        assert runner is not None  # noqa: S101  (it has started the test)
        # A web page stays, so that one can look at what happened.
        (runner.quit if self._environment.web_ui is None else runner.stop)()

    def _figures(self) -> dict[str, float | None]:
        return figures(self._recording, self._options.target, self._until)

    @property
    def _until(self) -> float:
        return self._ended or time.time()

    # -- at its end -------------------------------------------------------------------------

    def conclude(self) -> None:
        """Judge the run, whose figures are all there, set the exit status and write the files."""
        if self._awaits_a_test:
            return  # a page was opened and closed
        self.verdicts = self.so_far()
        self._set_exit_status()
        self._write()

    def so_far(self) -> tuple[Verdict, ...]:
        """Hold what has been measured until now against the thresholds."""
        if self._awaits_a_test:
            return ()
        verdicts = check_all(
            self._thresholds,
            self._options.target,
            self._figures(),
            NOT_HERE,
            reasons=why_not_known(self._recording, self._options.target),
        )
        seen = with_unseen(verdicts, self._recording.measured.connections.unseen_s(self._until))
        return tuple(map(self._as_aborted, seen))

    @property
    def _awaits_a_test(self) -> bool:
        return self._started is None and self._environment.web_ui is not None

    def _as_aborted(self, verdict: Verdict) -> Verdict:
        """What has ended the run has failed, also if its last answers were good ones."""
        first = self.aborted_by
        return first if first is not None and verdict.threshold == first.threshold else verdict

    def _set_exit_status(self) -> None:
        """Let Locust exit with 1 if a threshold is not met, and leave the rest to Locust.

        A threshold on `http.errors` says how many requests may fail; Locust on its own says none.
        """
        environment, runner = self._environment, self._environment.runner
        if unmet(self.verdicts):
            environment.process_exit_code = 1
        elif environment.process_exit_code is None and self._judges_errors:
            environment.process_exit_code = 1 if runner is not None and runner.exceptions else 0

    @property
    def _judges_errors(self) -> bool:
        return any(verdict.threshold.metric == "http.errors" for verdict in self.verdicts)

    def _write(self) -> None:
        """Write the JUnit file that was asked for, and in a workflow of GitHub its annotations."""
        if self._options.junit:
            self._write_junit(Path(self._options.junit))
        if os.environ.get("GITHUB_ACTIONS") == "true":
            # With --json the standard output is one JSON document, and Locust's.
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

    def say(self) -> None:
        """Say every verdict in a line with a tick or a cross."""
        words = not takes_marks(getattr(sys.stderr, "encoding", None))
        for line in plain_lines(self.verdicts, words=words):
            console.info(line)
        if self.verdicts:
            console.info("")
