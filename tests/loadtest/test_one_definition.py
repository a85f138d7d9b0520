"""One threshold, three places that judge by it: the same rows give the same figures and verdicts.

`poolkit compare` reads a run folder, its abort reads the same file while it grows, and Locust's plugin
receives events, in one process or from several workers. Each is driven as in a run.
"""

import argparse
import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from compare.conftest import FROM, TO, MadeUp, make_run
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from poolkit.activity.server import Backend, Sample, ServerLimits
from poolkit.compare.results.results import compute
from poolkit.compare.results.run_folder import ConnectionRow, Level, Request, SampleRow
from poolkit.compare.run.attribution import Attribution
from poolkit.compare.run.load import LiveFigures
from poolkit.compare.run.samplers import connection_row, held_by_target
from poolkit.compare.run.window_figures import WRITTEN_S, WindowFigures
from poolkit.thresholds import METRICS, Threshold, check_all, should_abort

TICK_S = 1 / 64
"""Moments are multiples of it, which a float and six decimals have exactly."""
LAST = round((TO - FROM) / TICK_S)
ERRORS = {"answered": "", "failed": "503", "timed_out": "unanswered", "dropped": "unsent"}
MAX_CONNECTIONS = 50
PLAIN = Level(users=20, rate_per_user=2.0)
# Making a failing run small would take longer than a test may.
FILES_ARE_SLOW = settings(
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HERE = [name for name, metric in METRICS.items() if not metric.at_end]
IN_ALL_THREE = [name for name in HERE if name.startswith(("http", "db"))]
LIMITS = {"ms": ("100ms", "1s", "5s"), "share": ("1%", "20%"), "per_s": ("0.4/s", "2/s")}
THRESHOLDS = [
    f"{name} {operator} {limit}"
    for name in IN_ALL_THREE
    for operator in ("<=", ">")
    for limit in LIMITS.get(METRICS[name].kind, ("0.5", "1", "4", "20"))
]


def moment(tick):
    return FROM + tick * TICK_S


@dataclass(frozen=True)
class Row:
    """One request; moments are in ticks from the begin of the measured time."""

    scheduled: int
    started: int
    ended: int
    outcome: str

    @property
    def has_ended(self):
        """Whether Locust fires an event for it."""
        return self.outcome in ("answered", "failed")

    @property
    def request(self):
        """The row of requests.csv."""
        return Request(
            due=moment(self.scheduled),
            started=moment(self.started),
            latency_ms=(self.ended - self.scheduled) * TICK_S * 1000,
            service_ms=(self.ended - self.started) * TICK_S * 1000,
            method="GET",
            name="/",
            status=0,
            error=ERRORS[self.outcome],
        )


@st.composite
def rows(draw, until):
    """A request that ends before a tick; one without an answer is given up then."""
    scheduled = draw(st.integers(-128, LAST - 1))
    started = draw(st.integers(scheduled, min(scheduled + 64, until - 1)))
    outcome = draw(st.sampled_from(["answered"] * 5 + ["failed", "timed_out", "dropped"]))
    ended = draw(st.integers(started, min(started + 400, until - 1)))
    if outcome == "dropped":
        return Row(scheduled, until, until, outcome)
    return Row(scheduled, started, until if outcome == "timed_out" else ended, outcome)


@st.composite
def samples(draw):
    """A sample every half second; the server's counter grows, or was reset."""
    found, sessions = [], draw(st.integers(0, 1000))
    was_reset = draw(st.integers(0, 60))
    for number, tick in enumerate(range(-64, LAST + 1, 32)):
        sessions = 0 if number == was_reset else sessions + draw(st.integers(0, 3))
        # Locust takes a name that no connection carries for a mistyped one.
        states = draw(st.lists(st.sampled_from(STATES), min_size=tick == 0, max_size=6))
        backends = [backend(pid, "web", state) for pid, state in enumerate(states)]
        backends = (*backends, backend(99, "other", "idle"))
        found.append(Sample(time=moment(tick), backends=backends, sessions=sessions, xacts=0))
    return found


STATES = ("active", "idle", "idle in transaction", "idle in transaction (aborted)", "fastpath")


def backend(pid, target, state):
    return Backend(
        target=target, instance="1", pid=pid, state=state, age_s=1, state_age_s=1, wait_event=""
    )


def attributed(samples):
    """Each sample with its backends and their owners, as on a shared server: by name."""
    attribution = Attribution(preset="web", pgappname="", is_own_server=False, is_running=True)
    for sample in samples:
        found = attribution.of(sample)
        yield sample, found, held_by_target(found) if attribution.is_known else None


# -- the three places -----------------------------------------------------------------------


def in_compare(folder, rows, samples):
    """The figures and statuses that the report of a run folder has."""
    run = make_run(folder, {"web": MadeUp(preset="web", kind="web")}, thresholds=THRESHOLDS)
    run.write_plan(replace(run.plan(), max_connections=MAX_CONNECTIONS))
    target = run.target("web")
    with target.writer(Request) as write:
        for row in rows:
            write(row.request)
    with target.writer(SampleRow) as of_samples, target.writer(ConnectionRow) as of_backends:
        for sample, found, _ in attributed(samples):
            counts = {"backends": len(sample.backends), "sessions": sample.sessions, "xacts": 0}
            of_samples(SampleRow(time=sample.time, **counts))
            for one in found:
                of_backends(connection_row(sample.time, one))
    before = [sample.sessions for sample in samples if sample.time < FROM]
    inside = [sample.sessions for sample in samples if sample.time <= TO]
    target.write_window(replace(target.window(), sessions_from=before[-1], sessions_to=inside[-1]))
    found = compute(run)
    return found.targets[0].figures, {v.threshold: v.status for v in found.verdicts}, target.path


def in_abort(requests_csv, level, samples):
    """The figures, statuses and ended runs of the abort, asked when all rows are written."""
    before = [sample.sessions for sample in samples if sample.time < FROM]
    figures = WindowFigures(
        FROM, TO, target="web", max_connections=MAX_CONNECTIONS, sessions=before[-1]
    )
    live = LiveFigures(requests_csv, level)
    live.window = figures
    live.update()
    for sample, _, held in attributed(samples):
        figures.take_sample(sample, held)
    found = figures.so_far(TO + 60 + WRITTEN_S)
    verdicts = check_all(parsed(), "web", found)
    aborted = {
        threshold
        for threshold in parsed()
        if should_abort([replace(threshold, abort=True)], "web", found, 60) is not None
    }
    return found, {v.threshold: v.status for v in verdicts}, aborted


def parsed():
    return [Threshold.parse(text) for text in THRESHOLDS]


class Clock:
    """The time that Locust's side reads."""

    def __init__(self):
        self.now = 0.0

    def time(self):
        return self.now

    monotonic = time


class FakeSampler:
    """The server's samples, handed to the recording's own sink."""

    def __init__(self, _, *, interval_s, sink):
        self.sink = sink

    def start(self):
        return ServerLimits(
            max_connections=MAX_CONNECTIONS, superuser_reserved=3, reserved=0, version="18"
        )

    def wait_for(self, *_):
        return True, None

    def stop(self):
        """There is nothing to stop."""


@pytest.fixture(scope="module")
def locust_modules():
    """What of the plugin a run uses, with a clock; Locust patches no standard library here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCUST_SKIP_MONKEY_PATCH", "1")
        from poolkit.loadtest import recording, threshold_checks
        from poolkit.loadtest.latency import collection
        from poolkit.loadtest.open_loop import users

        clock = Clock()
        for module in (recording, threshold_checks, collection, users):
            patch.setattr(module, "time", clock)
        patch.setattr(recording, "ActivitySampler", FakeSampler)
        yield SimpleNamespace(
            clock=clock,
            collection=collection,
            Recording=recording.Recording,
            ThresholdChecks=threshold_checks.ThresholdChecks,
        )


def in_locust(modules, rows, samples, workers):
    """The figures and statuses of a Locust run whose users sent these requests."""
    from locust.env import Environment

    modules.clock.now = moment(-128)
    options = argparse.Namespace(poolkit_target="web", poolkit_junit="", json=False)
    master = Environment(parsed_options=options)
    parts = [Environment() for _ in range(workers)] or [master]
    runner = SimpleNamespace(
        environment=master, quit=int, user_count=0, clients=SimpleNamespace(all=[])
    )
    source = modules.collection.WorkersLatencies(master, runner) if workers else None
    for number, part in enumerate(parts):
        taken = taker(modules.clock, rows[number :: len(parts)])
        if workers:
            reports = modules.collection.WorkerReports(part, wire(master, part), taken)
            part.events.test_start.add_listener(lambda on_start=reports.on_start, **_: on_start())
        else:
            source = modules.collection.OwnLatencies(part, taken)
    recording = modules.Recording(runner, "postgresql://h/d", source, reported=bool(workers))
    recording.start()
    checks = modules.ThresholdChecks(master, recording, parsed())

    def play(since, until):
        for sample in samples:
            if since <= sample.time < until:
                recording._sampler.sink(sample)
        for number, row in enumerate(rows):
            if since <= moment(row.ended) < until and row.has_ended:
                modules.clock.now = moment(row.ended)
                fire(parts[number % len(parts)], row.request)

    play(moment(-128), FROM)
    modules.clock.now = FROM
    for part in dict.fromkeys([*parts, master]):
        part.events.test_start.fire(environment=part)
    recording.begin_again()
    play(FROM, TO + TICK_S)
    modules.clock.now = TO
    for part in dict.fromkeys([*parts, master]):
        part.events.test_stopping.fire(environment=part)
        part.events.test_stop.fire(environment=part)
    recording.take_rest()
    recording.stop()
    statuses = {verdict.threshold: verdict.status for verdict in checks.so_far()}
    return recording.measured.figures(TO, "web"), statuses


def taker(clock, rows):
    """What an open loop answers when it is asked for requests without an answer."""
    from poolkit.loadtest.open_loop.users import CutOff

    def take():
        if clock.now < TO:
            return CutOff()
        left = [row for row in rows if not row.has_ended]
        rows.clear()
        waits = {
            outcome: [row.request.latency_ms for row in left if row.outcome == outcome]
            for outcome in ("timed_out", "dropped")
        }
        return CutOff(timed_out_ms=waits["timed_out"], dropped_ms=waits["dropped"])

    return take


def wire(master, part):
    """A worker's connection to the master."""

    def send(kind, data):
        arrived = json.loads(json.dumps(data))
        master.events.worker_report.fire(client_id=str(id(part)), data=arrived)

    def register_message(_name, _listener):
        """The master asks for nothing here: each worker reports when the test stops."""

    return SimpleNamespace(
        client_id=str(id(part)), register_message=register_message, send_message=send, stop=int
    )


def fire(environment, request):
    """What a user's client fires when a request has ended."""
    import gevent

    from poolkit.loadtest.open_loop.users import UserTask

    task = gevent.getcurrent().poolkit_task = UserTask()
    task.begin(request.due)
    environment.events.request.fire(
        request_type=request.method,
        name=request.name,
        response_time=request.service_ms,
        exception=ValueError() if request.error else None,
        start_time=request.started,
    )


# -- the property ---------------------------------------------------------------------------


@settings(FILES_ARE_SLOW, max_examples=40)
@given(st.lists(rows(until=LAST), max_size=60), samples(), st.sampled_from([0, 2, 3]))
def test_a_threshold_has_one_verdict_in_compare_in_abort_and_in_locust(
    tmp_path_factory, locust_modules, rows, samples, workers
):
    """Also when several workers measure parts of the requests."""
    folder = tmp_path_factory.mktemp("run")
    compared, statuses, target = in_compare(folder, rows, samples)
    of_abort, statuses_of_abort, aborted = in_abort(
        target / Request.FILE, level=PLAIN, samples=samples
    )
    of_locust, statuses_of_locust = in_locust(locust_modules, rows, samples, workers)
    same = {name: compared[name] for name in IN_ALL_THREE}
    assert same == {name: of_abort[name] for name in IN_ALL_THREE}
    assert same == {name: of_locust[name] for name in IN_ALL_THREE}
    assert statuses == statuses_of_abort == statuses_of_locust
    assert set(statuses.values()) <= {"passed", "failed", "unknown"}
    assert aborted == {threshold for threshold, status in statuses.items() if status == "failed"}


@settings(FILES_ARE_SLOW, max_examples=30)
@given(st.lists(rows(until=LAST + 300), max_size=60), samples())
def test_requests_answered_after_the_load_are_judged_alike(tmp_path_factory, rows, samples):
    """`poolkit compare` waits for the last answers, and its abort counts them by the same rule."""
    compared, statuses, target = in_compare(tmp_path_factory.mktemp("run"), rows, samples)
    found, of_abort, _ = in_abort(target / Request.FILE, PLAIN, samples)
    assert {name: compared[name] for name in IN_ALL_THREE} == {
        name: found[name] for name in IN_ALL_THREE
    }
    assert statuses == of_abort
