"""A run's figures in Prometheus and OpenTelemetry, read as their own tools read them."""

import contextlib
import http.server
import re
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
from held_connections import connected
from processes import ROOT, run_python
from prometheus_client.parser import text_string_to_metric_families

from poolkit.loadtest.figures import MetricAccumulator
from poolkit.loadtest.latency.connects import ClientConnects
from poolkit.loadtest.latency.counters import Latencies
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.recording import Series
from poolkit.loadtest.telemetry.figures import MOST_NAMES, OTHER_NAMES, LoadMetrics

REQUESTS = 40
LOCUSTFILE = """
from locust import FastHttpUser, constant, task
from poolkit import loadtest

loadtest.register()

class Visitor(FastHttpUser):
    wait_time = constant(0)
    connection_timeout = network_timeout = 60.0

    @task
    def visit(self):
        for number in range({requests}):
            self.client.get("/first" if number % 4 else "/second")
        self.wait_time = lambda: 3600
"""


def samples_of(text):
    """Return the value of every sample, by name and labels, as Prometheus reads a scrape."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(address):
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return samples_of(answer.read().decode())


@pytest.fixture
def busy_database(database):
    """A database with three connections of the target `web`."""
    with connected(database, "web:1", 3):
        yield database


@pytest.fixture
def collector():
    """An OpenTelemetry collector: its address, and the metrics of every export."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )

    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/metrics"
            received.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", received=received)
    server.shutdown()
    server.server_close()


def metrics_of(export):
    """Return the metrics of an export by name."""
    (resource,) = export.resource_metrics
    return {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}


@pytest.mark.process
def test_a_scrape_and_an_export_have_the_requests_of_the_run(
    locust, server, collector, free_port, busy_database
):
    """By name and outcome; what is sent to the collector is no request of the test."""
    port = free_port()
    file = locust.folder / "forty.py"
    file.write_text(LOCUSTFILE.format(requests=REQUESTS))
    run = locust(
        *("-f", str(file), "--headless", "--users", "1", "--run-time", "10m"),
        *("--metrics-port", str(port), "--json-file", "result"),
        url=busy_database.monitor_url(""),
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_METRIC_EXPORT_INTERVAL="500",
        OTEL_RESOURCE_ATTRIBUTES="team=platform",
    )
    run.wait_until(lambda: len(server.asked) == REQUESTS)
    found = {}

    def is_scraped():
        with contextlib.suppress(urllib.error.URLError):
            found.update(scrape(f"http://127.0.0.1:{port}/metrics"))
        return sum(v for k, v in found.items() if k[0] == "poolkit_load_requests_total") == REQUESTS

    run.wait_until(is_scraped)
    first = (("method", "GET"), ("name", "/first"))
    assert found["poolkit_load_requests_total", *first, ("outcome", "answered")] == REQUESTS * 3 / 4
    assert found["poolkit_load_latency_seconds_count", *first] == REQUESTS * 3 / 4
    assert found["poolkit_load_latency_seconds_bucket", ("le", "+Inf"), *first] == REQUESTS * 3 / 4
    assert 0 < found["poolkit_load_latency_seconds_sum", *first] < 60
    assert found[("poolkit_load_users",)] == 1
    assert found["poolkit_load_client_connections_opened_total", ("tls", "false")] == 1
    idle = (("state", "idle"), ("target", "web"))
    run.wait_until(
        lambda: (
            scrape(f"http://127.0.0.1:{port}/metrics").get(
                ("poolkit_load_database_connections", *idle)
            )
            == 3
        )
    )
    documented = (ROOT / "docs/loadtest-output.md").read_text()
    names = {re.sub("_(bucket|count|sum)$", "", key[0]) for key in found}
    assert [n for n in names if f"`{n.removeprefix('poolkit_load_')}`" not in documented] == []
    run.wait_until(lambda: len(collector.received) > 1)
    assert run.stop() == 0, run.text
    assert "Traceback" not in run.text
    last = metrics_of(collector.received[-1])
    (resource,) = collector.received[-1].resource_metrics
    attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (attributes["service.name"], attributes["team"]) == ("locust", "platform")
    requests = last["poolkit_load_requests"].sum
    assert requests.is_monotonic
    assert sum(point.as_double or point.as_int for point in requests.data_points) == REQUESTS
    latency = last["poolkit_load_latency"]
    assert latency.unit == "s"
    assert sum(point.count for point in latency.histogram.data_points) == REQUESTS
    assert all(sum(p.bucket_counts) == p.count for p in latency.histogram.data_points)
    client = run.document()["client"]
    assert (client["requests"], client["connections"]) == (REQUESTS, 1)


@pytest.mark.process
def test_the_last_export_has_the_end_of_the_run(locust, collector):
    """The requests of the last second, which no export before it had."""
    file = locust.folder / "forty.py"
    text = LOCUSTFILE.format(requests=REQUESTS)
    file.write_text(text.replace("self.wait_time = lambda: 3600", "self.environment.runner.quit()"))
    run = locust(
        *("-f", str(file), "--headless", "--users", "1", "--run-time", "10m"),
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_METRIC_EXPORT_INTERVAL="3600000",
    )
    assert run.wait() == 0, run.text
    (export,) = collector.received
    requests = metrics_of(export)["poolkit_load_requests"].sum.data_points
    assert sum(point.as_double or point.as_int for point in requests) == REQUESTS


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "variables", "status", "text"),
    [
        (["--metrics-port", "nine"], {}, 2, "--metrics-port is 'nine'; wanted a port"),
        (["--metrics-port", "192.0.2.1:9646"], {}, 2, "--metrics-port 192.0.2.1:9646 cannot be"),
        (
            [],
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            0,
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but no metrics are sent: the protocol is grpc",
        ),
    ],
    ids=["no port", "not of this machine", "gRPC"],
)
def test_what_cannot_be_served_or_sent_is_one_line(locust, words, variables, status, text):
    """A port is refused before the load; an export is optional, and the load goes on."""
    run = locust("--headless", "--users", "1", "--run-time", "1s", *words, **variables)
    assert run.wait() == status, run.text
    assert text in run.text
    assert "Traceback" not in run.text


MISSING = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ("opentelemetry", "prometheus_client"):
            return self.finder.find_spec(name, path, target)

import locust
sys.meta_path[:] = map(Without, sys.meta_path)
for name in [one for one in sys.modules if one.startswith(("opentelemetry", "prometheus_client"))]:
    del sys.modules[name]
from poolkit.loadtest.telemetry import otlp, prometheus
print(otlp.why_not({}))
try:
    prometheus.address("9646")
except Exception as error:
    print(error)
"""


@pytest.mark.process
def test_a_package_that_is_missing_is_named_with_its_command():
    """Neither is needed by a run that does not ask for it."""
    done = run_python("-c", MISSING)
    assert done.returncode == 0, done.stderr
    otlp, prometheus = done.stdout.splitlines()
    assert "pip install" in otlp
    assert "opentelemetry-exporter-otlp-proto-http" in otlp
    assert "pip install prometheus-client" in prometheus


def recording(latencies):
    measured = MetricAccumulator()
    measured.requests = latencies.total()
    return SimpleNamespace(
        latencies=latencies,
        started=1.0,
        measured=measured,
        loop=LoopReport,
        series=Series(),
        client=ClientConnects,
        limits=None,
    )


def counts(load, now=100.0):
    """Return the requests by name."""
    (metric,) = [
        one for one in load.metrics(load.copy(), now) if one.name == "poolkit_load_requests"
    ]
    found = {}
    for labels, value in metric.samples:
        found[labels["name"]] = found.get(labels["name"], 0) + value
    return found


def test_thousands_of_names_are_a_bounded_number_of_series():
    """The first names keep theirs, the others count together, and no counter ever falls."""
    latencies = Latencies()
    load = LoadMetrics(recording(latencies))
    for number in range(10):
        latencies.record("GET", f"/{number}", 5.0)
    before = counts(load)
    assert before == {f"/{number}": 1 for number in range(10)}
    for number in range(2000):
        for _ in range(2):
            latencies.record("GET", f"/{number}", 700.0, outcome="failed")
    after = counts(load)
    assert len(after) == MOST_NAMES + 1
    assert sum(after.values()) == 10 + 4000
    assert all(after[name] >= count for name, count in before.items())
    latencies.record("GET", "/1999", 1.0)
    last = counts(load)
    assert all(last[name] >= count for name, count in after.items())
    assert last[OTHER_NAMES] == 4000 - 2 * MOST_NAMES + 1


def test_a_figure_that_is_not_known_has_no_sample():
    """No database, no request and no client are not zero."""
    load = LoadMetrics(recording(Latencies()))
    names = {metric.name for metric in load.metrics(load.copy(), 100.0)}
    assert names == {"poolkit_load_answered_per_second", "poolkit_load_saturated"}
