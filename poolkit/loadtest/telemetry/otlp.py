"""The metrics of a run as OpenTelemetry metrics, sent over OTLP (HTTP and protobuf).

It is configured by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT (or
OTEL_EXPORTER_OTLP_METRICS_ENDPOINT) switches it on; headers, certificates, timeout, compression,
OTEL_METRIC_EXPORT_INTERVAL, OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES hold too. Locust's own
`--otel` sends traces, logs and two metrics named `locust...`; both may be on at once.
"""

from __future__ import annotations

import os
import time
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import gevent

from poolkit.config.metrics import BUCKETS
from poolkit.errors import how_to_install
from poolkit.loadtest.event_loop import InThread, pause_thread
from poolkit.loadtest.locust_internals import not_counted_as_client
from poolkit.loadtest.telemetry.figures import Buckets, LoadMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.loadtest.recording import Recording
    from poolkit.loadtest.telemetry.figures import Metric

ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_MODULES = ("opentelemetry.sdk.metrics", "opentelemetry.exporter.otlp.proto.http.metric_exporter")
_EVERY_MS = 60_000
"""OpenTelemetry's default of OTEL_METRIC_EXPORT_INTERVAL."""
_LAST_WITHIN_S = 5.0
"""A collector that is gone must not delay the end of a run by more."""


def wanted(environ: Mapping[str, str]) -> str:
    """Return the variable that asks for an export; empty if none does."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    exporters = environ.get("OTEL_METRICS_EXPORTER", "otlp").split(",")
    if "otlp" not in [one.strip().lower() for one in exporters]:
        return ""
    return next((name for name in ENDPOINTS if environ.get(name)), "")


def why_not(environ: Mapping[str, str]) -> str:
    """Return why the export that is asked for is impossible; empty if it is possible."""
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), "http/protobuf")
    if protocol.strip().lower() != "http/protobuf":
        # gRPC waits outside of gevent: each export would stop all users.
        return (
            f"the protocol is {protocol}, and poolkit sends http/protobuf only; name the "
            f"collector's HTTP port, usually 4318, and set {_PROTOCOLS[0]}=http/protobuf"
        )
    if not _is_installed():
        return (
            "the OpenTelemetry SDK and its HTTP exporter are not installed: "
            f"{how_to_install('otel')}, or pip install opentelemetry-sdk "
            "opentelemetry-exporter-otlp-proto-http"
        )
    return ""


def _is_installed() -> bool:
    try:
        return all(find_spec(module) for module in _MODULES)
    except ModuleNotFoundError:
        return False


class Exports:
    """Sends the metrics of a run at intervals and at the end.

    A collector that does not answer never stops a load test: the exporter logs it, and the next
    export has all that this one had.

    Args:
        recording: the measurements.
    """

    def __init__(self, recording: Recording) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415  (not everywhere)
            OTLPMetricExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415

        self._recording = recording
        self._metrics = LoadMetrics(recording)
        self._thread = InThread()
        self._exporter = OTLPMetricExporter()
        name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "locust"}
        self._resource = Resource.create(name)
        self._exporting = gevent.spawn(self._export_at_intervals)

    def _export_at_intervals(self) -> None:
        every_s = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") or _EVERY_MS) / 1000
        while True:
            gevent.sleep(every_s)
            self.export()

    def finish(self) -> None:
        """Send the last figures."""
        gevent.kill(self._exporting)
        with gevent.Timeout(_LAST_WITHIN_S, False):
            self.export()
        self._exporter.shutdown()

    def export(self) -> None:
        """Send the figures of this moment."""
        requests, now = self._metrics.copy(pause=partial(gevent.sleep, 0)), time.time()
        metrics = self._thread.call(
            lambda: self._metrics.metrics(requests, now, pause=pause_thread)
        )
        data = metrics_data(metrics, self._resource, self._recording.started, now)
        with not_counted_as_client():
            self._exporter.export(data)


def metrics_data(metrics: Sequence[Metric], resource: Any, started: float, now: float) -> Any:
    """Return metrics as OpenTelemetry's `MetricsData`; moments are Unix times in seconds.

    The names are those of the Prometheus endpoint without the unit, which OpenTelemetry has apart:
    a collector that passes them on to Prometheus adds it again.
    """
    from opentelemetry.sdk.metrics import export  # noqa: PLC0415  (not everywhere)
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

    moments = {
        "start_time_unix_nano": int(started * 1e9),
        "time_unix_nano": int(now * 1e9),
    }
    cumulative = export.AggregationTemporality.CUMULATIVE
    found = []
    for metric in metrics:
        points: list[Any] = []
        for labels, value in metric.samples:
            of: dict[str, Any] = {"attributes": dict(labels), **moments}
            if isinstance(value, Buckets):
                # The extremes are not known by these counts; no value is what OTLP has for that.
                points.append(
                    export.HistogramDataPoint(
                        **of,
                        count=sum(value.counts),
                        sum=value.total_s,
                        bucket_counts=value.counts,
                        explicit_bounds=BUCKETS,
                        min=None,  # type: ignore[arg-type]
                        max=None,  # type: ignore[arg-type]
                    )
                )
            else:
                points.append(export.NumberDataPoint(**of, value=value))
        data: Any
        if metric.kind == "histogram":
            data = export.Histogram(points, cumulative)
        elif metric.kind == "counter":
            data = export.Sum(points, cumulative, is_monotonic=True)
        else:
            data = export.Gauge(points)
        unit = "s" if metric.name.endswith("_seconds") else ""
        name = metric.name.removesuffix("_seconds")
        found.append(export.Metric(name, metric.text, unit, data))
    scope = export.ScopeMetrics(InstrumentationScope("poolkit.loadtest"), found, "")
    return export.MetricsData([export.ResourceMetrics(resource, [scope], "")])
