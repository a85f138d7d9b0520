"""The plugin: its work at each of Locust's events.

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
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from locust import events, stats
from locust.runners import MasterRunner, WorkerRunner

from poolkit.errors import ConfigurationError
from poolkit.loadtest.event_loop import (
    WriterThread,
    end_in_the_main_greenlet,
    interrupt_the_main_greenlet,
    pause_thread,
    shorten_collections,
)
from poolkit.loadtest.find_limit import LimitRun, OwnSteps, WorkersSteps, WorkerSteps
from poolkit.loadtest.latency import report as latency_report
from poolkit.loadtest.latency.collection import OwnLatencies, WorkerReports, WorkersLatencies
from poolkit.loadtest.latency.connect_reports import OwnConnects, WorkersConnects
from poolkit.loadtest.latency.report import LatencyFiles
from poolkit.loadtest.locust_internals import (
    add_failures,
    check_redirects,
    end_csv_writer_before_its_files,
    html_report,
    listen_first,
    warn_if_untested,
)
from poolkit.loadtest.open_loop.distributed import MasterLoop, WorkerLoop, announce_users
from poolkit.loadtest.open_loop.limit_search import LimitSearch
from poolkit.loadtest.output import (
    ConnectionsCsv,
    connections_line,
    document,
    summary,
    with_section,
    write_report,
)
from poolkit.loadtest.preflight import (
    MEASURED_BY_COMPARE,
    HostGuard,
    add_options,
    arrival_refusal,
    check_arrivals,
    check_user_classes,
    limiting,
    refuse_in_process,
    refuse_tests,
    run_thresholds,
)
from poolkit.loadtest.recording import Recording
from poolkit.loadtest.run_loop import RunLoop
from poolkit.loadtest.telemetry.start import start_telemetry
from poolkit.loadtest.threshold_checks import ThresholdChecks
from poolkit.loadtest.web_pages import WebPages
from poolkit.thresholds import plain_lines, takes_marks

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from locust.env import Environment
    from locust.runners import Runner
    from locust.web import WebUI

    from poolkit.loadtest.latency.collection import Source
    from poolkit.loadtest.latency.counters import Latencies
    from poolkit.loadtest.open_loop.loop import OpenLoop
    from poolkit.loadtest.recording import Second
    from poolkit.thresholds import Threshold

FAILED = 1
"""The exit status of a run that has measured nothing, as of one whose threshold did not hold."""
console = logging.getLogger("locust.stats_logger")
logger = logging.getLogger("poolkit.loadtest")
_EARLY_S = 0.5
_LOOK_EVERY_S = 0.01


@cache
def register() -> None:
    """Listen to Locust's events, once; see `poolkit.loadtest.register`."""
    end_csv_writer_before_its_files()
    check_redirects()
    events.init_command_line_parser.add_listener(add_options)  # type: ignore[no-untyped-call]
    listen_first(events.test_start, _on_test_start)
    events.init.add_listener(_on_init)  # type: ignore[no-untyped-call]


class WorkerSide:
    """What a worker has of this plugin, from its init on.

    A worker is connected before its init, so its master may start a test while Locust still makes
    the runner, or while another listener to init reads data. Users that start then would run a
    closed loop. So the test waits for the init here.
    """

    def __init__(self) -> None:
        self._initialized = Event()
        self._loop: WorkerLoop | None = None
        self._reports: WorkerReports | None = None

    def initialize(self, environment: Environment, runner: WorkerRunner) -> None:
        """Begin to listen to the master."""
        self._loop = WorkerLoop(environment, runner)
        self._reports = WorkerReports(environment, runner, self._loop.take_cut_off)
        WorkerSteps(runner, self._loop, self._reports.source)
        self._initialized.set()

    def on_start(self, environment: Environment) -> None:
        """Prepare for a test, before any of its users starts."""
        while environment.runner is None:  # Locust is still in the constructor of the runner
            gevent.sleep(_LOOK_EVERY_S)
        announce_users(environment)
        self._initialized.wait()
        assert self._loop is not None and self._reports is not None  # noqa: PT018, S101
        self._loop.on_start()
        self._reports.on_start()


_worker = WorkerSide()


def _on_test_start(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    if options is not None and options.worker and MEASURED_BY_COMPARE not in os.environ:
        _worker.on_start(environment)


def _on_init(environment: Environment, runner: Runner, web_ui: WebUI | None, **_: Any) -> None:
    interrupt_the_main_greenlet()
    environment.events.test_start.add_listener(shorten_collections)  # type: ignore[no-untyped-call]
    options = environment.parsed_options
    # Removed here: a master sends all its options to its workers, and the URL has a password.
    url = vars(options).pop("poolkit_database_url", None) if options is not None else None
    if options is not None and MEASURED_BY_COMPARE not in os.environ:
        check_user_classes(environment, options)
        guard = HostGuard(environment=environment, agreed=options.poolkit_yes_load_this_host)
        # A process of a master's --processes would wait for one that is gone. The other workers
        # have their master on another machine, which has checked its host.
        master_is_here = options.processes and getattr(options, "poolkit_master_is_here", False)
        checks_host = master_is_here or not isinstance(runner, WorkerRunner)
        if checks_host and (reason := guard.refusal()):
            refuse_in_process(environment, reason)
        check_arrivals(environment, options)
        if isinstance(runner, WorkerRunner):
            _worker.initialize(environment, runner)
            OwnConnects(environment)
        else:
            warn_if_untested()
            refuse_tests(environment, guard.refusal)
            refuse_tests(environment, partial(arrival_refusal, environment))
            loop = RunLoop(environment, options, runner)
            recording = _recording(environment, loop, runner, url)
            thresholds = run_thresholds(options)
            if options.poolkit_find_limit:
                # They judge each step, not the run, which goes beyond the limit on purpose.
                _find_limit(environment, loop.opened, recording, limiting(thresholds))
                thresholds = ()
            checks = ThresholdChecks(environment, recording, thresholds)
            if web_ui is not None:
                pages = WebPages(web_ui, recording, checks, guard, options.web_base_path or "")
                if not options.poolkit_find_limit:
                    pages.take_rate = loop.take_form
            try:
                start_telemetry(environment, recording, options.poolkit_metrics_port)
            except ConfigurationError as error:
                refuse_in_process(environment, error)
            # Last: Locust calls the listeners of the end in reverse, and the others need the rest.
            RunOutput(environment, options, recording, checks, loop).start()
    end_in_the_main_greenlet(environment)


def _recording(
    environment: Environment, loop: RunLoop, runner: Runner, url: str | None
) -> Recording:
    """Return the recording of a run, with the source of latencies that it needs."""
    source: Source
    connects: WorkersConnects | OwnConnects
    if isinstance(runner, MasterRunner):
        source = WorkersLatencies(environment, runner)
        connects = WorkersConnects(environment, runner)
    else:
        source = OwnLatencies(environment, loop.take_cut_off)
        connects = OwnConnects(environment)
    recording = Recording(runner, url, source, reported=isinstance(runner, MasterRunner))
    recording.add_failures = partial(add_failures, runner.stats)
    recording.loop = loop.report
    recording.arrivals = lambda: loop.opened
    recording.client = connects.counts
    return recording


def _find_limit(
    environment: Environment,
    loop: MasterLoop | OpenLoop | None,
    recording: Recording,
    thresholds: Sequence[Threshold],
) -> None:
    """Search for the limit in each test of a run."""
    source, options = recording.source, environment.parsed_options
    assert options is not None  # noqa: S101  (a run from the command line has them)
    assert loop is not None  # noqa: S101  (the options have a rate)
    steps: OwnSteps | WorkersSteps
    if isinstance(loop, MasterLoop):
        assert isinstance(environment.runner, MasterRunner)  # noqa: S101
        steps = WorkersSteps(loop, environment.runner)
    else:
        assert isinstance(source, OwnLatencies)  # noqa: S101
        steps = OwnSteps(loop, source)
    first = loop.rate.at(0)
    run = LimitRun(
        environment,
        recording,
        steps,
        thresholds,
        make=lambda: LimitSearch(first, options.poolkit_highest_per_s),
        step_s=options.poolkit_find_limit_step_s,
        kind=loop.rate.kind,
    )
    recording.limit = lambda: run.search


class RunOutput:
    """Everything that a run prints and writes, at Locust's events and once a second."""

    def __init__(
        self,
        environment: Environment,
        options: Namespace,
        recording: Recording,
        checks: ThresholdChecks,
        loop: RunLoop,
    ) -> None:
        self._environment, self._options, self._recording = environment, options, recording
        self._checks, self._loop = checks, loop
        self._began = time.time()
        self._shape_has_ended = False
        self._test_started: float | None = None
        """When the last test started, Unix time, before any listener ran; None without a test."""
        self._seconds = 0
        self._document: dict[str, Any] = {}
        """Of the whole run, once it has ended."""
        prefix = options.csv_prefix
        self._csv = ConnectionsCsv(prefix) if prefix else None
        self._latency_files: LatencyFiles | None = None
        if prefix:
            self._latency_files = LatencyFiles(prefix, self._began, pause=pause_thread)
        self._writer = WriterThread()

    def start(self) -> None:
        """Start the recording, and listen to Locust's events."""

        def on_spawning_complete(**_: Any) -> None:
            if self._environment.reset_stats:
                self._on_reset()

        def on_test_start(**_: Any) -> None:
            self._test_started = time.time()

        listen_first(self._environment.events.test_start, on_test_start)
        for event, listener in (
            (self._environment.events.test_start, self._on_start),
            (self._environment.events.reset_stats, self._on_reset),
            (self._environment.events.spawning_complete, on_spawning_complete),
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
        self._recording.begin_again()
        if self._latency_files is not None:
            self._writer.submit(self._latency_files.begin_again, self._recording.started)

    def _on_reset(self, **_: Any) -> None:
        self._recording.forget_totals()
        if self._latency_files is not None:
            self._writer.submit(self._latency_files.begin_again, time.time())

    def _on_second(self, second: Second, latencies: Latencies) -> None:
        self._seconds += 1
        if self._csv is not None:
            self._writer.submit(self._csv.write, second)
        if self._latency_files is not None:
            run = self._recording.latencies
            self._writer.submit(self._latency_files.add, latencies, second.time, run)
        options, recording = self._options, self._recording
        # When Locust prints its tables while it runs, these lines stand between them.
        prints = not options.only_summary and (options.print_stats or options.headless)
        if prints and self._seconds % int(stats.CONSOLE_STATS_INTERVAL_SEC) == 0:
            console.info(latency_report.line(second.rates, recording.latencies, recording.loop()))
            if recording.limits:
                console.info(connections_line(second, recording.limits.usable))

    def _on_quitting(self, **_: Any) -> None:
        rest = self._recording.take_rest()
        self._checks.conclude()
        self._fail_without_load()
        if (search := self._recording.limit()) is not None:
            # Requests fail beyond the limit, so they do not decide.
            self._environment.process_exit_code = 0 if search.is_found else 1
        found = document(
            self._recording,
            self._checks.verdicts,
            target=self._options.poolkit_target,
            partial=self._is_partial(),
        )
        self._document = found
        self._recording.stop()
        if self._latency_files is not None:
            run = self._recording.latencies
            self._writer.submit(self._latency_files.finish, rest, time.time(), run)
        if self._csv is not None:
            self._writer.submit(self._csv.file.close)
        self._writer.finish()
        if self._options.json_file:
            # Beside the NAME.json that Locust writes.
            path = Path(f"{self._options.json_file}_connections.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if self._options.html_file:
            write_report(
                Path(self._options.html_file),
                lambda: with_section(html_report(self._environment), found),
                since=self._began,
            )

    def _fail_without_load(self) -> None:
        """Fail an open loop that has sent nothing: it has measured nothing, whatever the reason."""
        if self._test_started is None or self._recording.latencies.total().served:
            return
        if reason := self._recording.loop().without_load():
            logger.error(reason)
            self._environment.process_exit_code = self._environment.process_exit_code or FAILED

    def _is_partial(self) -> bool:
        """Return whether the run ended before its planned end: of a shape, a rate or `--run-time`."""
        if self._checks.aborted_by is not None:
            return True
        if (search := self._recording.limit()) is not None:
            return bool(search.ended_by)
        if self._environment.shape_class is not None:
            return not self._shape_has_ended
        arrivals = self._loop.opened
        if arrivals is not None and arrivals.rate.ends:
            return not arrivals.has_ended
        planned = self._options.run_time
        started = self._test_started or self._recording.started
        took = (self._checks.ended or time.time()) - started
        return bool(planned) and took < float(planned) - _EARLY_S

    def _on_quit(self, **_: Any) -> None:
        for line in summary(self._recording):
            console.info(line)
        # A line with a tick or a cross for each verdict, or with words where the terminal has none.
        words = not takes_marks(getattr(sys.stderr, "encoding", None))
        for line in plain_lines(self._checks.verdicts, words=words):
            console.info(line)
        if self._checks.verdicts:
            console.info("")
        if self._options.json:
            # The standard output is Locust's JSON array, and its readers expect nothing else.
            sys.stderr.write(f"{json.dumps(self._document)}\n")
            sys.stderr.flush()
