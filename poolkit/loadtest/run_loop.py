"""The loop of a run: an open one with an arrival rate, or a closed one.

The rate is that of `--arrival-rate`, of a shape, or of the form of Locust's page. The first test
decides which of the two loops it is: an open one changes the user classes of the process for good.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from locust.runners import MasterRunner

from poolkit.errors import ConfigurationError
from poolkit.loadtest.event_loop import end_test
from poolkit.loadtest.locust_internals import listen_first
from poolkit.loadtest.open_loop.arrivals import ArrivalRate
from poolkit.loadtest.open_loop.distributed import MasterLoop
from poolkit.loadtest.open_loop.loop import ClosedLoop, OpenLoop
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.open_loop.users import CutOff
from poolkit.loadtest.preflight import class_refusal
from poolkit.loadtest.shapes import ArrivalRateShape

if TYPE_CHECKING:
    from argparse import Namespace

    from locust.env import Environment
    from locust.runners import Runner

logger = logging.getLogger("poolkit.loadtest")


class RunLoop:
    """The loop of the master, or of the only process of a run."""

    def __init__(self, environment: Environment, options: Namespace, runner: Runner) -> None:
        self.opened: MasterLoop | OpenLoop | None = None
        """The arrivals of an open loop; None in a closed one, and before the first test."""
        self._closed: ClosedLoop | None = None
        self._is_closed = False
        self._environment, self._options, self._runner = environment, options, runner
        shape = environment.shape_class
        if isinstance(shape, ArrivalRateShape):
            # Nothing until its first rate. A worker gets its rate with its share, but has to know
            # that its users follow one.
            options.poolkit_arrival_rate = "1"
            self._open(ArrivalRate.constant(0.0, options.poolkit_arrivals))
            shape.change_rate = self._change_rate
        elif options.poolkit_arrival_rate:
            rate = self._parsed(options.poolkit_arrival_rate, has_run_time=bool(options.run_time))
            self._open(rate)
            if rate.ends:
                # Locust's own line says that there is no time limit.
                logger.info(
                    "the test ends with the last stage of --arrival-rate, after %g s", rate.seconds
                )
        elif environment.web_ui is None:
            self._close()
        else:
            # The form of the page may have a rate.
            listen_first(environment.events.test_start, self._close)

    def report(self) -> LoopReport:
        """Return the outcome of the load so far."""
        return LoopReport() if self.opened is None else self.opened.report()

    def take_cut_off(self) -> CutOff:
        """Return the requests that were cut off in this process since the last call."""
        loop = self._closed if self.opened is None else self.opened
        return CutOff() if loop is None or isinstance(loop, MasterLoop) else loop.take_cut_off()

    def take_form(self, text: str, *, has_run_time: bool) -> None:
        """Take the rate of the page's form, for a new test or for the present one.

        Args:
            text: the rate; empty for a closed loop.
            has_run_time: whether the test has a time limit.

        Raises:
            ConfigurationError: the rate is refused.
        """
        text = text.strip()
        if text == (self._options.poolkit_arrival_rate or ""):
            return  # the form was sent to change something else
        if not text:
            raise ConfigurationError(
                "this Locust process runs an open loop, so give it an arrival rate; restart it for a "
                "closed loop"
            )
        if self._is_closed:
            raise ConfigurationError(
                "this Locust process runs a closed loop; restart it to send an arrival rate"
            )
        if self._environment.shape_class is not None:
            raise ConfigurationError("a shape sets the load, so leave the arrival rate out")
        rate = self._parsed(text, has_run_time=has_run_time)
        if reason := class_refusal(self._environment, rate):
            raise ConfigurationError(reason)
        if self.opened is None:
            self._open(rate)
        else:
            self.opened.change_rate(rate)

    def _parsed(self, text: str, *, has_run_time: bool) -> ArrivalRate:
        rate = ArrivalRate.parse(text, self._options.poolkit_arrivals)
        # A longer run goes on at the last rate, and one without a time limit ends with its stages.
        return replace(rate, ends=not has_run_time and not math.isinf(rate.seconds))

    def _open(self, rate: ArrivalRate) -> None:
        options, runner = self._options, self._runner
        if isinstance(runner, MasterRunner):
            self.opened = MasterLoop(
                self._environment, runner, rate, max_users=options.poolkit_max_users
            )
        else:
            self.opened = OpenLoop(
                self._environment,
                rate,
                max_users=options.poolkit_max_users,
                on_start_within_s=options.poolkit_on_start_within,
                answer_within_s=options.poolkit_answer_within,
            )
        self.opened.on_end = partial(end_test, self._environment)

    def _close(self, **_: Any) -> None:
        if self.opened is None and not self._is_closed:
            self._is_closed = True
            if not isinstance(self._runner, MasterRunner):
                self._closed = ClosedLoop(self._environment)
                self._closed.follow()

    def _change_rate(self, per_s: float) -> None:
        """Begin another constant rate, if it is another one."""
        assert self.opened is not None  # noqa: S101  (a shape calls this)
        rate = ArrivalRate.constant(per_s, self.opened.rate.kind)
        if rate != self.opened.rate:
            self.opened.change_rate(rate)
