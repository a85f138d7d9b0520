"""The metrics of a run in Prometheus' text format, beside Locust's page or on a port of their own."""

from __future__ import annotations

import time
from functools import partial
from importlib.util import find_spec
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import gevent
from gevent.pywsgi import WSGIServer

from poolkit.config.metrics import BUCKETS
from poolkit.errors import ConfigurationError, how_to_install
from poolkit.loadtest.event_loop import InThread, pause_thread
from poolkit.loadtest.telemetry.figures import Buckets, LoadMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from poolkit.loadtest.recording import Recording
    from poolkit.loadtest.telemetry.figures import Metric

OPTION = "--metrics-port"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The format that every version of Prometheus reads."""
_BOUNDS = (*map(str, BUCKETS), "+Inf")


def can_write() -> bool:
    """Return whether prometheus-client is installed."""
    return find_spec("prometheus_client") is not None


def address(text: str) -> tuple[str, int]:
    """Return host and port of the option's value: PORT or HOST:PORT.

    A port alone listens on this machine only, like every server of poolkit.

    Raises:
        ConfigurationError: it is neither, or prometheus-client is not installed.
    """
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(
            f"{OPTION} is {text!r}; wanted a port such as 9646, or an address such as 0.0.0.0:9646"
        )
    if not can_write():
        raise ConfigurationError(
            f"{OPTION} needs prometheus-client, which is not installed: "
            f"{how_to_install('loadtest')}, or pip install prometheus-client"
        )
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


class Scrapes:
    """Answers scrapes of a run.

    The work is done in a thread, in small parts: a scrape would else be measured as latency.

    Args:
        recording: the measurements.
    """

    def __init__(self, recording: Recording) -> None:
        self._metrics = LoadMetrics(recording)
        self._thread = InThread()

    def text(self) -> bytes:
        """Return the answer to a scrape."""
        requests = self._metrics.copy(pause=partial(gevent.sleep, 0))
        return self._thread.call(
            lambda: exposition(self._metrics.metrics(requests, time.time(), pause=pause_thread))
        )

    def serve(self, host: str, port: int) -> WSGIServer:
        """Serve `/metrics` on a port of its own until the process ends.

        Raises:
            ConfigurationError: the port is taken, or the host is not one of this machine.
        """

        def application(
            environ: dict[str, Any], start_response: Callable[..., object]
        ) -> Iterable[bytes]:
            if environ["PATH_INFO"] != "/metrics":
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"the metrics are at /metrics\n"]
            start_response("200 OK", [("Content-Type", CONTENT_TYPE)])
            return [self.text()]

        server = WSGIServer((host, port), application, log=None)
        try:
            server.start()
        except OSError as error:
            raise ConfigurationError(
                f"{OPTION} {host}:{port} cannot be used: {error.strerror or error}; name another port"
            ) from None
        return server


def exposition(metrics: Iterable[Metric]) -> bytes:
    """Return metrics in Prometheus' text format."""
    # It is not on every machine that sends load.
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415
    from prometheus_client.core import (  # noqa: PLC0415
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.registry import Collector  # noqa: PLC0415

    kinds: dict[str, Any] = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }

    class Collected(Collector):
        def collect(self) -> Iterable[Any]:
            for metric in metrics:
                family = kinds[metric.kind](metric.name, metric.text, labels=metric.labels)
                for labels, value in metric.samples:
                    values = [labels[name] for name in metric.labels]
                    if isinstance(value, Buckets):
                        # In Prometheus each bucket includes the smaller ones.
                        cumulative = map(float, accumulate(value.counts))
                        buckets = list(zip(_BOUNDS, cumulative, strict=True))
                        family.add_metric(values, buckets, value.total_s)
                    else:
                        family.add_metric(values, value)
                yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected())
    return generate_latest(registry)
