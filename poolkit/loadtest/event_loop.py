"""gevent's event loop: how busy it is, calls in a real thread beside it, and signals that end it.

**Signals.** Python raises KeyboardInterrupt in the greenlet that runs at that moment, and only in
Locust's main greenlet does it end the run. Locust's own writers of CSV files, history and tables
catch it and only end themselves, and Locust goes on without them. So the interrupt is always
raised in the main greenlet. At SIGTERM Locust ends the run in a greenlet of its own while the main
greenlet, whose runner has gone, ends it too: reports, tables and verdicts would be printed twice or
be broken. So SIGTERM is handed to the main greenlet as well.
"""

from __future__ import annotations

import gc
import logging
import math
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import gevent
from gevent import monkey
from gevent.event import Event
from gevent.queue import Queue
from gevent.threadpool import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment

WINDOW_S = 0.05
"""The window of `EventLoopLoad`; a timer wakes the event loop at least this often."""
CALM_SHARE = 0.5
"""A busy share up to which a process has time to spare."""
_CALM_WINDOWS_SKIPPED = 3
_HURRIED_WITHIN_S = 3.0
_SENT_TWICE_WITHIN_S = 2.0
_FIRST, _LAST = 2, -2
"""Priorities among the callbacks at the beginning and the end of a wait."""

# Locust replaces `time.sleep` by gevent's, which would make an event loop in the thread.
_sleep_in_thread = monkey.get_original("time", "sleep")

logger = logging.getLogger("poolkit.loadtest")

Result = TypeVar("Result")


class EventLoopLoad:
    """The share of time in which this process did not wait for events.

    Processor time would not show it: on a machine with other work, a process that always has
    something to do gets less than a core.

    Two functions are called around each wait. While the process is calm, they are measured in one
    window of four, which saves two calls for most requests of a slow rate.
    """

    def __init__(self) -> None:
        self.busy_share = 0.0
        """In the last window, between 0 and 1."""
        loop = gevent.get_hub().loop
        # Callbacks that gevent runs before a wait, such as switching to greenlets, are work.
        self._before = loop.prepare(priority=_LAST)
        self._after = loop.check(priority=_FIRST)
        self._waited = 0.0
        self._began = self._window = time.monotonic()
        self._skipped = 0
        """Windows that are left without a measurement."""

    def start(self) -> None:
        """Begin to measure."""

        def on_wait() -> None:
            self._began = time.monotonic()

        def on_event() -> None:
            # Longer than a window means that the machine had stopped the process: no spare time.
            self._waited += min(time.monotonic() - self._began, WINDOW_S)

        def measure() -> None:
            self._before.start(on_wait)
            self._after.start(on_event)

        self._measure = measure
        measure()
        self._began = self._window = time.monotonic()

    def stop(self) -> None:
        """End the measurement."""
        self._before.close()
        self._after.close()

    def look(self, now: float) -> bool:
        """Update `busy_share` and begin a new window if the present one is over.

        Args:
            now: of the monotonic clock.

        Returns:
            Whether the window was over.
        """
        passed = now - self._window
        if passed < WINDOW_S:
            return False
        if not self._skipped:
            self.busy_share = max(0.0, 1 - self._waited / passed)
        elif passed > 2 * WINDOW_S:
            # The timer came late: the process was busy, or was stopped.
            self.busy_share, self._skipped = 1 - WINDOW_S / passed, 1
        if self._skipped:
            self._skipped -= 1
            if not self._skipped:
                self._began = now
                self._measure()
        elif self.busy_share <= CALM_SHARE:
            self._skipped = _CALM_WINDOWS_SKIPPED
            self._before.stop()
            self._after.stop()
        self._waited, self._window = 0.0, now
        return True


class InThread:
    """One real thread, which makes one call after the other while other greenlets run.

    psycopg2 waits inside libpq, where gevent cannot switch: called in a greenlet, a server that
    does not answer would stop every user of the load test. Locust makes `threading` create
    greenlets, so the thread comes from gevent's pool of real ones.
    """

    def __init__(self) -> None:
        self._threads = ThreadPool(1)

    def call(self, function: Callable[[], Result]) -> Result:
        """Call the function in the thread and return its result.

        Raises:
            Exception: the exception of the function.
        """

        # The pool prints the traceback of any exception in a thread, expected or not.
        def result_or_error() -> tuple[Any, Exception | None]:
            try:
                return function(), None
            except Exception as error:  # noqa: BLE001  (raised again in the caller)
                return None, error

        result, error = self._threads.apply(result_or_error)
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]


def shorten_collections(**_: Any) -> None:
    """Take what is there at the start of a test out of Python's garbage collections.

    No greenlet runs during a collection. A full one goes through the modules of Locust, Flask and
    SQLAlchemy each time, some ten thousand objects that stay anyway.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def pause_thread() -> None:
    """Pause a real thread for a millisecond, in which the event loop gets the interpreter.

    A thread that computes keeps it for five milliseconds at a time (`sys.getswitchinterval`), and
    the event loop waits for it after every event. Called every half a millisecond, this bounds the
    wait to that.
    """
    _sleep_in_thread(0.001)


class WriterThread:
    """Runs functions that write files one after the other in a real thread; the caller never waits.

    After a failure, which is logged in one line, the others are not run: a full disk is no reason to
    end a load test.
    """

    def __init__(self) -> None:
        self.failed = False
        self._thread = InThread()
        self._calls: Queue[Callable[[], object] | None] = Queue()
        self._running = gevent.spawn(self._run)

    def submit(self, write: Callable[..., object], *args: Any) -> None:
        """Call a function with these arguments in the thread, after those before it."""
        self._calls.put(partial(write, *args))

    def finish(self) -> None:
        """Wait until all are done."""
        self._calls.put(None)
        self._running.join()

    def _run(self) -> None:
        while (write := self._calls.get()) is not None:
            if self.failed:
                continue
            try:
                self._thread.call(write)
            except OSError as error:
                self.failed = True
                logger.error("the files of --csv are incomplete: %s", error)  # noqa: TRY400


def interrupt_the_main_greenlet() -> None:
    """Make each SIGINT raise KeyboardInterrupt in the main greenlet, and in no other.

    A second one before the first has arrived there is raised where it is received: a greenlet that
    never yields to the event loop would otherwise block both. A process that ignores SIGINT or
    has a handler of its own keeps it.
    """
    hub = gevent.get_hub()
    if not hub.main_hub or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    on_its_way = False

    def pass_on(*_: Any) -> None:
        nonlocal on_its_way
        if on_its_way:
            raise KeyboardInterrupt
        on_its_way = True
        hub.loop.run_callback_threadsafe(arrive)

    def arrive() -> None:
        nonlocal on_its_way
        on_its_way = False
        hub.parent.throw(KeyboardInterrupt)

    signal.signal(signal.SIGINT, pass_on)


def end_test(environment: Environment) -> None:
    """End the present test, and without a web page the process.

    A web page stays open, so that the figures can be read, for the time of `--autoquit` if it is set.
    """
    runner, web_ui, options = environment.runner, environment.web_ui, environment.parsed_options
    assert runner is not None  # noqa: S101  (it has started the test)
    if web_ui is None:
        runner.quit()
        return
    runner.stop()
    if options is not None and options.autostart and options.autoquit != -1:
        gevent.sleep(options.autoquit)
        runner.quit()
        web_ui.stop()  # type: ignore[no-untyped-call]


def end_in_the_main_greenlet(environment: Environment) -> None:
    """Make SIGTERM end the run as Ctrl-C does: in the main greenlet.

    Call it after all other listeners to the end of the run are added, since Locust calls them in
    reverse order. A later SIGTERM is as a second Ctrl-C, except one within 2 s of another: `timeout`
    sends one to its command and one to the group of processes.
    """
    hub = gevent.get_hub()
    handed_over_at = -math.inf

    def hand_over(*_: Any) -> None:
        nonlocal handed_over_at
        now = time.monotonic()
        if now - handed_over_at > _SENT_TWICE_WITHIN_S:
            handed_over_at = now
            hub.loop.run_callback_threadsafe(hub.parent.throw, KeyboardInterrupt)

    def on_quitting(**_: Any) -> None:
        if gevent.getcurrent() is not hub.parent:
            hand_over()
            Event().wait()  # for the end of the process, which the main greenlet brings about

    environment.events.quitting.add_listener(on_quitting)  # type: ignore[no-untyped-call]
    # Locust installs its handler once the main greenlet waits: with a shape, after the shape ends.
    if hub.main_hub and environment.shape_class is not None:
        signal.signal(signal.SIGTERM, hand_over)


def unless_interrupted_again(environment: Environment, end: Callable[[], None]) -> None:
    """Call the function that ends a run; at a Ctrl-C meanwhile, call it again without waiting.

    A second Ctrl-C means: do not wait for `--stop-timeout` or a worker's last report, but write
    the results. A listener or an on_stop of the locustfile that still does not return is left.
    """
    try:
        end()
    except KeyboardInterrupt:
        logger.warning("interrupted again: users and workers are not waited for")
        environment.stop_timeout = 0
        with gevent.Timeout(_HURRIED_WITHIN_S) as limit:
            try:
                end()
            except gevent.Timeout as error:
                if error is not limit:
                    raise
                # Not at the top: importing Locust replaces half of the standard library by gevent's.
                from poolkit.loadtest.locust_internals import count_as_stopped  # noqa: PLC0415

                count_as_stopped(environment)
