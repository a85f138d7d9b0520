"""The metrics of a run, defined once for every format. Nothing here imports Locust.

Names follow those of `poolkit.prometheus`: `poolkit_load_...`, times in seconds. A figure that is not
known has no sample. All counters begin again with each test.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from poolkit.activity.by_target import STATES
from poolkit.config.metrics import BUCKETS
from poolkit.loadtest.latency.histogram import LatencyHistogram, bucket_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from poolkit.loadtest.latency.connects import ClientConnects
    from poolkit.loadtest.latency.counters import Name, RequestCounters
    from poolkit.loadtest.recording import Recording

MOST_NAMES: Final = 50
"""Names with metrics of their own: those with the most requests. Each has a histogram."""
OTHER_NAMES: Final = "(other)"
"""The name under which all other requests count."""
_LAST_BUCKETS: Final = [bucket_of(bound * 1000) for bound in BUCKETS]
_QUANTILES: Final = {"0.5": "http.p50", "0.9": "http.p90", "0.95": "http.p95", "0.99": "http.p99"}


class Buckets(NamedTuple):
    """Durations by bucket: `counts` has one more place than `BUCKETS`, for the rest."""

    counts: Sequence[int]
    total_s: float


class Sample(NamedTuple):
    """A value under its labels."""

    labels: Mapping[str, str]
    value: float | Buckets


class Metric(NamedTuple):
    """A metric with its samples."""

    name: str
    """As of a counter without `_total`, which Prometheus adds."""
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    samples: Sequence[Sample]
    labels: Sequence[str] = ()


class LoadMetrics:
    """Makes the metrics of a run, for a scrape or an export.

    The first `MOST_NAMES` names keep metrics of their own until the next test. If they were chosen
    anew each time, a name that leaves would let the counter of the others fall.

    Args:
        recording: the measurements.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._names: list[Name] = []
        self._started: float | None = None

    def copy(self, *, pause: Callable[[], None] = lambda: None) -> Requests:
        """Return the requests of one moment, which stay as they are while the load goes on.

        Args:
            pause: called between two parts of the search for names, of which there may be thousands.
        """
        recording = self._recording
        if self._started != recording.started:
            self._started, self._names = recording.started, []
        latencies = recording.latencies
        if len(self._names) < MOST_NAMES:
            known = set(self._names)
            found = [one for one in latencies.names(MOST_NAMES, pause=pause) if one not in known]
            self._names += found[: MOST_NAMES - len(known)]

        def copied(counters: RequestCounters) -> tuple[LatencyHistogram, LatencyHistogram]:
            answered, failed = LatencyHistogram(), LatencyHistogram()
            answered.add(counters.of("answered"))
            failed.add(counters.of("failed"))
            return answered, failed

        return Requests(
            copied(latencies.total()), {name: copied(latencies.of(name)) for name in self._names}
        )

    def metrics(
        self, requests: Requests, now: float, *, pause: Callable[[], None] = lambda: None
    ) -> list[Metric]:
        """Return every metric that has a value; may be called in a thread.

        Args:
            requests: the result of `copy`.
            now: Unix time in seconds.
            pause: called between two names.
        """
        recording = self._recording
        groups = (
            _of_requests(requests, pause),
            _of_run(recording, now),
            _of_arrivals(recording),
            _of_client(recording.client()),
            _of_database(recording),
        )
        return [metric for group in groups for metric in group if metric.samples]


class Requests(NamedTuple):
    """Copies of the latencies of answered and of failed requests: of all, and by name."""

    total: tuple[LatencyHistogram, LatencyHistogram]
    by_name: Mapping[Name, tuple[LatencyHistogram, LatencyHistogram]]


def _of_requests(requests: Requests, pause: Callable[[], None]) -> Iterator[Metric]:
    counts, times = [], []

    def add(method: str, name: str, answered: Buckets, failed: int) -> None:
        labels = {"method": method, "name": name}
        times.append(Sample(labels, answered))
        counts.append(Sample({**labels, "outcome": "answered"}, sum(answered.counts)))
        counts.append(Sample({**labels, "outcome": "failed"}, failed))

    # What the names leave of the sums are the requests of all other names.
    everything = _buckets(requests.total[0])
    left, left_s, left_failed = [*everything.counts], everything.total_s, requests.total[1].count
    for name, (all_answered, all_failed) in requests.by_name.items():
        answered, failed = _buckets(all_answered), all_failed.count
        add(*name, answered, failed)
        left = [before - count for before, count in zip(left, answered.counts, strict=True)]
        left_s, left_failed = max(0.0, left_s - answered.total_s), left_failed - failed
        pause()
    if sum(left) or left_failed:
        add("", OTHER_NAMES, Buckets(left, left_s), left_failed)
    yield Metric(
        "poolkit_load_requests",
        "counter",
        "Requests that were answered, and requests that failed.",
        counts,
        ("method", "name", "outcome"),
    )
    yield Metric(
        "poolkit_load_latency_seconds",
        "histogram",
        "Latencies of the answered requests, in an open loop from their scheduled moments.",
        times,
        ("method", "name"),
    )


def _of_run(recording: Recording, now: float) -> Iterator[Metric]:
    found = recording.measured.figures(now)
    quantiles = [
        Sample({"quantile": quantile}, value / 1000)
        for quantile, metric in _QUANTILES.items()
        if (value := found[metric]) is not None
    ]
    yield Metric(
        "poolkit_load_latency_quantile_seconds",
        "gauge",
        "Percentiles of all latencies of the run, to three digits, as thresholds have them.",
        quantiles,
        ("quantile",),
    )
    for name, figure, text in (
        ("errors_ratio", "http.errors", "The share of requests that failed or had no answer."),
        ("answered_per_second", "http.rate", "Requests answered per second of the run."),
    ):
        if (value := found[figure]) is not None:
            yield Metric(f"poolkit_load_{name}", "gauge", text, [Sample({}, value)])


def _of_arrivals(recording: Recording) -> Iterator[Metric]:
    load = recording.loop()
    points = recording.series.points
    values: dict[str, tuple[Literal["counter", "gauge"], str, float | None]] = {
        "users": ("gauge", "Users that run.", points[-1].users if points else None),
        "saturated": (
            "gauge",
            "1 if the load generator did not keep its schedule.",
            bool(load.saturated_by),
        ),
    }
    if load.loop == "open":
        values |= {
            "arrivals": ("counter", "Tasks that were scheduled.", load.arrivals),
            "arrivals_late": ("counter", "Tasks begun 50 ms late or more, or never.", load.late),
            "arrivals_dropped": ("gauge", "Tasks scheduled and not begun.", load.dropped),
            "arrivals_wanted_per_second": ("gauge", "The arrival rate at present.", load.rate),
        }
    for name, (kind, text, value) in values.items():
        samples = [] if value is None else [Sample({}, float(value))]
        yield Metric(f"poolkit_load_{name}", kind, text, samples)


def _of_client(client: ClientConnects) -> Iterator[Metric]:
    if client.to_json() is None:
        return
    opened = {"false": client.opened - client.tls, "true": client.tls}
    yield Metric(
        "poolkit_load_client_connections_opened",
        "counter",
        "Connections that the load generator's HTTP clients opened.",
        [Sample({"tls": tls}, count) for tls, count in opened.items()],
        ("tls",),
    )
    for name, text, value in (
        ("connect_failures", "Connects that failed.", client.failed),
        ("requests", "Requests sent over these connections.", client.requests),
        ("requests_resent", "Requests sent again, after a connection was closed.", client.resent),
    ):
        yield Metric(f"poolkit_load_client_{name}", "counter", text, [Sample({}, value)])
    yield Metric(
        "poolkit_load_client_connect_seconds",
        "histogram",
        "How long connects took: name resolution, TCP, and the TLS handshake.",
        [Sample({}, _buckets(client.times))],
    )


def _of_database(recording: Recording) -> Iterator[Metric]:
    points, connections = recording.series.points, recording.measured.connections
    targets = points[-1].targets if points else None
    if targets is not None:
        yield Metric(
            "poolkit_load_database_connections",
            "gauge",
            "Connections of each target, by state.",
            [
                Sample({"target": one.target, "state": state}, getattr(one, state))
                for one in targets
                for state in STATES
            ],
            ("target", "state"),
        )
    values = (
        ("connections_peak", "gauge", "The most connections at once.", connections.peak),
        ("opened", "counter", "Connections opened, by the server's counter.", connections.opened),
    )
    kind: Literal["counter", "gauge"]
    for name, kind, text, value in values if connections.samples else ():  # type: ignore[assignment]
        if value is not None:
            yield Metric(f"poolkit_load_database_{name}", kind, text, [Sample({}, value)])
    if recording.limits is not None:
        yield Metric(
            "poolkit_load_database_connections_usable",
            "gauge",
            "max_connections less the connections that are reserved.",
            [Sample({}, recording.limits.usable)],
        )


def _buckets(histogram: LatencyHistogram) -> Buckets:
    """Return a histogram's counts between the bounds of `BUCKETS`, and the sum of its times."""
    counts = [0] * (len(BUCKETS) + 1)
    for bucket, count in histogram.buckets_in_use():
        counts[bisect_left(_LAST_BUCKETS, bucket)] += count
    return Buckets(counts, (histogram.mean or 0.0) * sum(counts) / 1000)
