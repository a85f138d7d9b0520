"""The plugin: what of a Locust run it listens to, and what it does then.

Only the process that has all the figures watches the server and writes files: the master, or the
one process of a run without workers. A worker reports its latencies, and ends at Ctrl-C as the
others do.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from locust import events, stats
from locust.runners import MasterRunner, WorkerRunner

from poolkit.loadtest.arrival_options import (
    add_open_loop_options,
    master_loop,
    own_loop,
    worker_loop,
)
from poolkit.loadtest.console import line, summary
from poolkit.loadtest.document import document
from poolkit.loadtest.files import ConnectionsCsv, add_to_report, write_json
from poolkit.loadtest.host_guard import HostGuard, add_host_option, check_host_when_parsed
from poolkit.loadtest.interrupt import end_in_the_main_greenlet, interrupt_the_main_greenlet
from poolkit.loadtest.latency import report as latency_report
from poolkit.loadtest.latency.collection import OwnLatencies, WorkerReports, WorkersLatencies
from poolkit.loadtest.latency.files import LatencyFiles
from poolkit.loadtest.locust_csv import end_the_writer_before_its_files
from poolkit.loadtest.needed_variables import exit_if_variables_are_missing
from poolkit.loadtest.option_checks import check_when_parsed
from poolkit.loadtest.output_checks import check_outputs
from poolkit.loadtest.recording import Recording
from poolkit.loadtest.threshold_checks import (
    ThresholdChecks,
    add_threshold_options,
    run_thresholds,
)
from poolkit.loadtest.web_pages import WebPages

if TYPE_CHECKING:
    from argparse import Namespace

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment
    from locust.runners import Runner
    from locust.web import WebUI

    from poolkit.loadtest.latency.collection import Source
    from poolkit.loadtest.latency.run_latencies import Latencies
    from poolkit.loadtest.open_loop.closed_loop import ClosedLoop
    from poolkit.loadtest.open_loop.distributed import MasterLoop
    from poolkit.loadtest.open_loop.loop import OpenLoop
    from poolkit.loadtest.series import Second

console = logging.getLogger("locust.stats_logger")
MEASURED_ELSEWHERE = "POOLKIT_LOAD_REQUESTS"
"""Set by `poolkit compare`, which watches the server itself."""
_EARLY_S = 0.5


@cache
def register() -> None:
    """Listen to Locust's events, once; see `poolkit.loadtest.register`."""
    end_the_writer_before_its_files()
    events.init_command_line_parser.add_listener(_add_option)  # type: ignore[no-untyped-call]
    events.init.add_listener(_begin)  # type: ignore[no-untyped-call]


def _add_option(parser: LocustArgumentParser, **_: Any) -> None:
    group = parser.add_argument_group("Connections (poolkit)")
    group.add_argument(
        "--database-url",
        metavar="<url>",
        env_var="DATABASE_URL",
        help="The PostgreSQL database whose connections to watch, as a role with pg_monitor: "
        "postgresql://user:password@host:port/database",
    )
    add_host_option(parser)
    if MEASURED_ELSEWHERE not in os.environ:
        check_host_when_parsed(parser)
    add_threshold_options(parser)
    add_open_loop_options(parser)
    check_when_parsed(parser, check_outputs)


def _begin(environment: Environment, runner: Runner, web_ui: WebUI | None, **_: Any) -> None:
    interrupt_the_main_greenlet()
    _listen(environment, runner, web_ui)
    end_in_the_main_greenlet(environment)


def _listen(environment: Environment, runner: Runner, web_ui: WebUI | None) -> None:
    options = environment.parsed_options
    # Taken out: a master sends all its options to its workers, and the URL has a password.
    url = vars(options).pop("database_url", None) if options is not None else None
    if options is None or MEASURED_ELSEWHERE in os.environ:
        return
    exit_if_variables_are_missing(environment, options)
    if isinstance(runner, WorkerRunner):
        _begin_worker(environment, options, runner)
        return
    guard = HostGuard(environment, agreed=options.yes_load_this_host)
    guard.exit_if_refused()
    guard.check_each_test()
    thresholds = run_thresholds(options)
    recording = _recording(environment, runner, url)
    checks = ThresholdChecks(environment, recording, thresholds)
    Watched(environment, options, recording, checks)
    if web_ui is not None:
        WebPages(web_ui, recording, checks, guard, options.web_base_path or "")


def _begin_worker(environment: Environment, options: Namespace, runner: WorkerRunner) -> None:
    # The processes of a master's --processes would wait for one that is gone. Those of a worker have
    # a master elsewhere, which is asked what may be loaded.
    if options.processes and getattr(options, "master_is_here", False):
        guard = HostGuard(environment, agreed=options.yes_load_this_host)
        guard.exit_quietly_if_refused()
    WorkerReports(environment, runner, worker_loop(environment, runner).take_cut_off)


def _recording(environment: Environment, runner: Runner, url: str | None) -> Recording:
    loop: MasterLoop | OpenLoop | ClosedLoop | None
    source: Source
    if isinstance(runner, MasterRunner):
        loop = master_loop(environment, runner)
        source = WorkersLatencies(environment, runner)
    else:
        loop = own_loop(environment)
        source = OwnLatencies(environment, loop.take_cut_off)
    recording = Recording(runner, url, source, reported=isinstance(runner, MasterRunner))
    if loop is not None:
        recording.loop = loop.report
    return recording


class Watched:
    """A run whose connections are watched: hears Locust's events, and passes the figures on."""

    def __init__(
        self,
        environment: Environment,
        options: Namespace,
        recording: Recording,
        checks: ThresholdChecks,
    ) -> None:
        self._environment, self._options, self._recording = environment, options, recording
        self._checks = checks
        self._began = time.time()
        self._ended: float | None = None
        self._seconds = 0
        self._document: dict[str, Any] = {}
        """Of the whole run, once it has ended."""
        prefix = options.csv_prefix
        self._csv = ConnectionsCsv(prefix) if prefix else None
        self._latency_files = LatencyFiles(prefix, self._began) if prefix else None
        for event, listener in (
            (environment.events.test_start, self._on_start),
            (environment.events.test_stop, self._on_stop),
            (environment.events.reset_stats, self._on_reset),
            (environment.events.spawning_complete, self._on_spawning_complete),
            (environment.events.quitting, self._on_quitting),
            (environment.events.quit, self._on_quit),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]
        recording.start(self._on_second)

    def _on_start(self, **_: Any) -> None:
        self._ended = None
        self._recording.begin_again()
        if self._latency_files is not None:
            self._latency_files.begin_again(self._recording.started)

    def _on_stop(self, **_: Any) -> None:
        self._ended = time.time()

    def _on_spawning_complete(self, **_: Any) -> None:
        if self._environment.reset_stats:
            self._on_reset()

    def _on_reset(self, **_: Any) -> None:
        self._recording.forget_totals()
        if self._latency_files is not None:
            self._latency_files.begin_again(time.time())

    def _on_second(self, second: Second, latencies: Latencies) -> None:
        self._seconds += 1
        if self._csv is not None:
            self._csv.write(second)
        if self._latency_files is not None:
            self._latency_files.add(latencies, second.time)
        if self._prints and self._seconds % stats.CONSOLE_STATS_INTERVAL_SEC == 0:
            self._print(second)

    def _print(self, second: Second) -> None:
        recording = self._recording
        console.info(latency_report.line(second, recording.latencies, recording.loop()))
        if recording.limits:
            console.info(line(second, recording.limits.usable))

    @property
    def _prints(self) -> bool:
        """Whether Locust prints its tables while it runs."""
        options = self._options
        return not options.only_summary and bool(options.print_stats or options.headless)

    def _on_quitting(self, **_: Any) -> None:
        rest = self._recording.take_rest()
        self._checks.conclude()
        found = document(self._recording, self._checks.verdicts, partial=self._is_partial())
        self._document = found
        self._recording.stop()
        if self._csv is not None:
            self._csv.close()
        if self._latency_files is not None:
            self._latency_files.add(rest, time.time())
            self._latency_files.close(time.time())
        if self._options.json_file:
            write_json(self._options.json_file, found)
        if self._options.html_file:
            add_to_report(Path(self._options.html_file), found, since=self._began)

    def _on_quit(self, **_: Any) -> None:
        for words in summary(self._recording):
            console.info(words)
        self._checks.say()
        if self._options.json:
            # The standard output is one JSON array, Locust's, and who reads it expects nothing else.
            sys.stderr.write(f"{json.dumps(self._document)}\n")
            sys.stderr.flush()

    def _is_partial(self) -> bool:
        """Tell whether the run ended before its own end: a shape's, or `--run-time`."""
        if self._checks.aborted_by is not None:
            return True
        shape = self._environment.shape_class
        if shape is not None:
            return shape.tick() is not None
        planned = self._options.run_time
        took = (self._ended or time.time()) - self._recording.started
        return bool(planned) and took < float(planned) - _EARLY_S
