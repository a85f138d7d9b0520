"""What of a run's monitoring the options and variables ask for."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from poolkit.loadtest.telemetry import otlp
from poolkit.loadtest.telemetry.prometheus import Scrapes, address

if TYPE_CHECKING:
    from locust.env import Environment

    from poolkit.loadtest.recording import Recording

logger = logging.getLogger("poolkit.loadtest")


def start_telemetry(environment: Environment, recording: Recording, metrics_port: str) -> None:
    """Serve and send the metrics of a run as far as it is asked for.

    Called before the listeners of the outputs are added: Locust calls those of the end in reverse, so
    the last export has the whole run.

    Args:
        environment: Locust's.
        recording: the measurements.
        metrics_port: of the option, PORT or HOST:PORT; empty for no port.

    Raises:
        ConfigurationError: the port cannot be used.
    """
    if metrics_port:
        Scrapes(recording).serve(*address(metrics_port))
    variable = otlp.wanted(os.environ)
    if not variable:
        return
    if reason := otlp.why_not(os.environ):
        logger.warning("%s is set, but no metrics are sent: %s", variable, reason)
        return
    exports = otlp.Exports(recording)

    def on_quitting(**_: Any) -> None:
        exports.finish()

    environment.events.quitting.add_listener(on_quitting)  # type: ignore[no-untyped-call]
