"""The plugin: what of a Locust run it listens to, and what it does then.

Only the process that has all the figures watches the server: the master, or the one process of a
run without workers. A worker's part in this is nothing at all, but to end at Ctrl-C as the others do.
"""

from __future__ import annotations

import logging
import os
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from locust import events, stats
from locust.runners import WorkerRunner

from poolkit.loadtest.console import line, summary
from poolkit.loadtest.document import document
from poolkit.loadtest.files import ConnectionsCsv, add_to_report, write_json
from poolkit.loadtest.interrupt import interrupt_the_main_greenlet
from poolkit.loadtest.recording import Recording
from poolkit.loadtest.web_pages import WebPages

if TYPE_CHECKING:
    from argparse import Namespace

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment
    from locust.runners import Runner
    from locust.web import WebUI

    from poolkit.loadtest.series import Second

console = logging.getLogger("locust.stats_logger")
MEASURED_ELSEWHERE = "POOLKIT_LOAD_REQUESTS"
"""Set by `poolkit compare`, which watches the server itself."""
_EARLY_S = 0.5


@cache
def register() -> None:
    """Listen to Locust's events, once; see `poolkit.loadtest.watch_connections`."""
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


def _begin(environment: Environment, runner: Runner, web_ui: WebUI | None, **_: Any) -> None:
    interrupt_the_main_greenlet()
    options = environment.parsed_options
    # Taken out: a master sends all its options to its workers, and the URL has a password.
    url = vars(options).pop("database_url", None) if options is not None else None
    if options is None or isinstance(runner, WorkerRunner) or MEASURED_ELSEWHERE in os.environ:
        return
    Watched(environment, options, Recording(runner, url), web_ui)


class Watched:
    """A run whose connections are watched: hears Locust's events, and passes the figures on."""

    def __init__(
        self,
        environment: Environment,
        options: Namespace,
        recording: Recording,
        web_ui: WebUI | None,
    ) -> None:
        self._environment, self._options, self._recording = environment, options, recording
        self._began = time.time()
        self._ended: float | None = None
        self._seconds = 0
        self._csv = ConnectionsCsv(options.csv_prefix) if options.csv_prefix else None
        if web_ui is not None:
            WebPages(web_ui, recording, options.web_base_path or "")
        for event, listener in (
            (environment.events.test_start, self._on_start),
            (environment.events.test_stop, self._on_stop),
            (environment.events.quitting, self._on_quitting),
            (environment.events.quit, self._on_quit),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]
        recording.start(self._on_second)

    def _on_start(self, **_: Any) -> None:
        self._ended = None
        self._recording.begin_again()

    def _on_stop(self, **_: Any) -> None:
        self._ended = time.time()

    def _on_second(self, second: Second) -> None:
        self._seconds += 1
        if self._csv is not None:
            self._csv.write(second)
        limits = self._recording.limits
        if limits and self._prints and self._seconds % stats.CONSOLE_STATS_INTERVAL_SEC == 0:
            console.info(line(second, limits.usable))

    @property
    def _prints(self) -> bool:
        """Whether Locust prints its tables while it runs."""
        options = self._options
        return not options.only_summary and bool(options.print_stats or options.headless)

    def _on_quitting(self, **_: Any) -> None:
        found = document(self._recording, partial=self._is_partial())
        self._recording.stop()
        if self._csv is not None:
            self._csv.close()
        if self._options.json_file:
            write_json(self._options.json_file, found)
        if self._options.html_file:
            add_to_report(Path(self._options.html_file), found, since=self._began)

    def _on_quit(self, **_: Any) -> None:
        # With --json the standard output is one JSON document, and Locust's.
        if not self._options.json:
            for words in summary(self._recording):
                console.info(words)

    def _is_partial(self) -> bool:
        """Tell whether the run ended before its own end: a shape's, or `--run-time`."""
        shape = self._environment.shape_class
        if shape is not None:
            return shape.tick() is not None
        planned = self._options.run_time
        took = (self._ended or time.time()) - self._recording.started
        return bool(planned) and took < float(planned) - _EARLY_S
