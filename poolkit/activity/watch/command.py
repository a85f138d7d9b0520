"""`poolkit watch`: on a terminal a live view, elsewhere or with --json one line an interval."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from poolkit.activity.watch.keys import keys
from poolkit.activity.watch.observation import Observer
from poolkit.activity.watch.view import view
from poolkit.errors import ConfigurationError, DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.activity.watch.observation import Observation

LEAST_INTERVAL_S = 0.05
ANSWER_WITHIN_S = 2.0
"""Seconds without an answer after which the view says so, and asks no more than once meanwhile."""


def watch(url: str | None, *, interval_s: float, as_json: bool, once: bool) -> None:
    """Show who is connected until somebody ends it, or once.

    Args:
        url: the database; None for `DATABASE_URL`.
        interval_s: seconds from one look to the next.
        as_json: print one JSON document a line.
        once: look once and end.

    Raises:
        ConfigurationError: there is no URL, or it is not one, or the interval is too short.
        DatabaseUnavailable: the server cannot be reached at the start, or not `once`.
        MonitoringNotAllowed: the role may not see other roles' activity.

    """
    url = url or os.environ.get("DATABASE_URL")
    if not url:
        raise ConfigurationError("no database: give its URL, or set DATABASE_URL")
    if not interval_s >= LEAST_INTERVAL_S:
        raise ConfigurationError(
            f"--interval must be at least {LEAST_INTERVAL_S:g} s, not {interval_s:g}"
        )
    if not (as_json or once or (sys.stdin.isatty() and sys.stdout.isatty())):
        raise ConfigurationError("this is no terminal to draw on: add --json, or --once")
    with closing(Observer(url)) as observer, suppress(KeyboardInterrupt):
        if once:
            _look_once(observer, as_json=as_json)
        elif as_json:
            _print_lines(observer, interval_s)
        else:
            _show(observer, interval_s)


def _look_once(observer: Observer, *, as_json: bool) -> None:
    seen = observer.observe()
    if seen.problem is not None:
        raise DatabaseUnavailable(seen.problem)
    if as_json:
        _print_line(seen)
    else:
        Console().print(view(seen))


def _print_lines(observer: Observer, interval_s: float) -> None:
    for due in _moments(interval_s):
        try:
            _print_line(observer.observe(ANSWER_WITHIN_S))
        except BrokenPipeError:
            # Whoever read has enough, as `head` does. Python would complain when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        time.sleep(max(0.0, due - time.monotonic()))


def _print_line(seen: Observation) -> None:
    print(json.dumps(seen.to_json()), flush=True)  # noqa: T201  (its output)


def _show(observer: Observer, interval_s: float) -> None:
    # The screen is a second one: what stood on the terminal before is there again afterwards.
    with keys() as key_within, Live(screen=True, auto_refresh=False) as live:
        for due in _moments(interval_s):
            live.update(view(observer.observe(ANSWER_WITHIN_S)), refresh=True)
            while (left := due - time.monotonic()) > 0:
                if key_within(left) in ("q", "Q", "\x04"):
                    return


def _moments(interval_s: float) -> Iterator[float]:
    """Give the moment of the next look each time; one that was missed is not made up for."""
    due = time.monotonic()
    while True:
        due = max(due + interval_s, time.monotonic())
        yield due
