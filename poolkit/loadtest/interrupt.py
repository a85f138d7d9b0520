"""Ctrl-C and SIGTERM end a run once, whichever greenlet they meet.

Python raises KeyboardInterrupt in whatever runs at that moment, and only Locust's main greenlet ends
the run because of it. Locust's own writers of CSV files, history and tables catch it and merely end
themselves, as `threading` does around a thread, which is a greenlet there: Locust goes on
without them, for good. Here the interrupt is handed to the main greenlet, and nobody else has it.

At SIGTERM Locust ends the run in a greenlet of its own, while the main greenlet, whose runner has
gone, ends it too: reports, tables and verdicts would be there twice, or broken. So that is handed over as well.
"""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment

logger = logging.getLogger("poolkit.loadtest")


def interrupt_the_main_greenlet() -> None:
    """Have each SIGINT raise KeyboardInterrupt in the main greenlet, and in no other.

    One that comes before the last has got there is raised where it arrives, as without this: a
    greenlet that never lets the hub run would keep both from everybody. Who has a handler already,
    or ignores SIGINT, keeps that.
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


def end_in_the_main_greenlet(environment: Environment) -> None:
    """Have SIGTERM end the run as Ctrl-C does, once: in the main greenlet.

    To be called after all others listen to the end of the run, which Locust tells in reverse order.
    Another one, which `timeout` sends, changes nothing, nor does one while the run ends anyway.
    """
    hub = gevent.get_hub()
    ending = False

    def hand_over(*_: Any) -> None:
        nonlocal ending
        if not ending:
            ending = True
            hub.loop.run_callback_threadsafe(hub.parent.throw, KeyboardInterrupt)

    def on_quitting(**_: Any) -> None:
        nonlocal ending
        if gevent.getcurrent() is not hub.parent:
            hand_over()
            Event().wait()  # for the end of the process, which is the main greenlet's
        ending = True

    environment.events.quitting.add_listener(on_quitting)  # type: ignore[no-untyped-call]
    # Locust has its own handler only when the main greenlet waits: with a shape, when that has ended.
    if hub.main_hub and environment.shape_class is not None:
        signal.signal(signal.SIGTERM, hand_over)


def unless_interrupted_again(environment: Environment, end: Callable[[], None]) -> None:
    """Call what ends a run; at a Ctrl-C meanwhile call it again, and have no user waited for.

    Whoever presses Ctrl-C twice does not want to wait for `--stop-timeout`, nor for a worker's last
    report, and still wants what was measured.
    """
    try:
        end()
    except KeyboardInterrupt:
        logger.warning("interrupted again: users and workers are not waited for")
        environment.stop_timeout = 0
        end()
