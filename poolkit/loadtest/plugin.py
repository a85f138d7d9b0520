"""The plugin: its options for Locust, and its work at each of Locust's events.

The server is watched, and files are written, by the process that has all figures: the master, or
the only process of a run without workers. A worker reports its latencies, and ends at Ctrl-C as
the others do.
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

from locust import events
from locust.runners import MasterRunner, WorkerRunner

from poolkit.loadtest.event_loop import end_in_the_main_greenlet, interrupt_the_main_greenlet
from poolkit.loadtest.latency import report as latency_report
from poolkit.loadtest.latency.collection import OwnLatencies, WorkerReports, WorkersLatencies
from poolkit.loadtest.latency.report import LatencyFiles
from poolkit.loadtest.locust_internals import (
    end_csv_writer_before_its_files,
    table_interval_s,
    warn_if_untested,
)
from poolkit.loadtest.open_loop.options import (
    add_open_loop_options,
    master_loop,
    own_loop,
    worker_loop,
)
from poolkit.loadtest.output import (
    ConnectionsCsv,
    add_to_report,
    connections_line,
    document,
    summary,
    write_json,
)
from poolkit.loadtest.preflight import (
    HostGuard,
    add_host_option,
    check_outputs,
    check_variables,
    check_when_parsed,
)
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
    from poolkit.loadtest.latency.counters import Latencies
    from poolkit.loadtest.open_loop.distributed import MasterLoop
    from poolkit.loadtest.open_loop.loop import ClosedLoop, OpenLoop
    from poolkit.loadtest.series import Second

console = logging.getLogger("locust.stats_logger")
MEASURED_BY_COMPARE = "POOLKIT_LOAD_REQUESTS"
"""Set by `poolkit compare`, which watches the server itself."""
_EARLY_S = 0.5


@cache
def register() -> None:
    """Listen to Locust's events, once; see `poolkit.loadtest.register`."""
    end_csv_writer_before_its_files()
    events.init_command_line_parser.add_listener(_add_options)  # type: ignore[no-untyped-call]
    events.init.add_listener(_on_init)  # type: ignore[no-untyped-call]


def _add_options(parser: LocustArgumentParser, **_: Any) -> None:
    group = parser.add_argument_group("Connections (poolkit)")
    group.add_argument(
        "--database-url",
        metavar="<url>",
        env_var="DATABASE_URL",
        help="The PostgreSQL database whose connections to watch, as a role with pg_monitor: "
        "postgresql://user:password@host:port/database",
    )
    add_host_option(parser, check=MEASURED_BY_COMPARE not in os.environ)
    add_threshold_options(parser)
    add_open_loop_options(parser)
    check_when_parsed(parser, check_outputs)


def _on_init(environment: Environment, runner: Runner, web_ui: WebUI | None, **_: Any) -> None:
    interrupt_the_main_greenlet()
    options = environment.parsed_options
    # Removed here: a master sends all its options to its workers, and the URL has a password.
    url = vars(options).pop("database_url", None) if options is not None else None
    if options is not None and MEASURED_BY_COMPARE not in os.environ:
        check_variables(environment, options)
        if isinstance(runner, WorkerRunner):
            # A process of a master's --processes would wait for one that is gone. The processes of a
            # worker have their master on another machine, which has checked its host.
            if options.processes and getattr(options, "master_is_here", False):
                HostGuard(environment, agreed=options.yes_load_this_host).check_now()
            WorkerReports(environment, runner, worker_loop(environment, runner).take_cut_off)
        else:
            warn_if_untested()
            _begin(environment, options, runner, web_ui, url)
    end_in_the_main_greenlet(environment)


def _begin(
    environment: Environment,
    options: Namespace,
    runner: Runner,
    web_ui: WebUI | None,
    url: str | None,
) -> None:
    guard = HostGuard(environment, agreed=options.yes_load_this_host)
    guard.check_now()
    guard.check_each_test()
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
    checks = ThresholdChecks(environment, recording, run_thresholds(options))
    RunOutput(environment, options, recording, checks).start()
    if web_ui is not None:
        WebPages(web_ui, recording, checks, guard, options.web_base_path or "")


class RunOutput:
    """Everything that a run prints and writes, at Locust's events and once a second."""

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
        self._shape_has_ended = False
        self._seconds = 0
        self._document: dict[str, Any] = {}
        """Of the whole run, once it has ended."""
        prefix = options.csv_prefix
        self._csv = ConnectionsCsv(prefix) if prefix else None
        self._latency_files = LatencyFiles(prefix, self._began) if prefix else None

    def start(self) -> None:
        """Start the recording, and listen to Locust's events."""
        for event, listener in (
            (self._environment.events.test_start, self._on_start),
            (self._environment.events.test_stop, self._on_stop),
            (self._environment.events.reset_stats, self._on_reset),
            (self._environment.events.spawning_complete, self._on_spawning_complete),
            (self._environment.events.quitting, self._on_quitting),
            (self._environment.events.quit, self._on_quit),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]
        shape: Any = self._environment.shape_class
        if shape is not None:
            tick = shape.tick

            def noted_tick() -> Any:
                # Asked again at the end, a shape with a plan of its own may raise.
                found = tick()
                self._shape_has_ended = found is None
                return found

            shape.tick = noted_tick
        self._recording.start(self._on_second)

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
        options, recording = self._options, self._recording
        # When Locust prints its tables while it runs, these lines stand between them.
        prints = not options.only_summary and (options.print_stats or options.headless)
        if prints and self._seconds % table_interval_s() == 0:
            console.info(latency_report.line(second.rates, recording.latencies, recording.loop()))
            if recording.limits:
                console.info(connections_line(second, recording.limits.usable))

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
            self._latency_files.write(time.time())
        if self._options.json_file:
            write_json(self._options.json_file, found)
        if self._options.html_file:
            add_to_report(Path(self._options.html_file), found, since=self._began)

    def _is_partial(self) -> bool:
        """Return whether the run ended before its planned end, by a shape or by `--run-time`."""
        if self._checks.aborted_by is not None:
            return True
        if self._environment.shape_class is not None:
            return not self._shape_has_ended
        planned = self._options.run_time
        took = (self._ended or time.time()) - self._recording.started
        return bool(planned) and took < float(planned) - _EARLY_S

    def _on_quit(self, **_: Any) -> None:
        for line in summary(self._recording):
            console.info(line)
        self._checks.print_verdicts()
        if self._options.json:
            # The standard output is Locust's JSON array, and its readers expect nothing else.
            sys.stderr.write(f"{json.dumps(self._document)}\n")
            sys.stderr.flush()
