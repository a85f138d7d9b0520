"""A run's limits from its server, its order, and the levels that an aborted one leaves out."""

from dataclasses import dataclass, field

import pytest

from poolkit.compare.plan.options import Options
from poolkit.compare.plan.plan import SPARE_CONNECTIONS, PlannedStep, make_plan, with_server_limits
from poolkit.compare.plan.targets import Deployed, Target
from poolkit.compare.results.run_folder import Window
from poolkit.compare.run.measure import MeasurementState
from poolkit.compare.run.run import Queue, summary


def test_a_function_fits_into_the_usable_connections(new_postgres):
    """Of 30 connections superusers and reserved roles have 12 to themselves here, not 3."""
    target = Target(
        name="f", kind="lambda", preset="lambda", locustfile="-", reserved_concurrency="fit"
    )
    reserves = {"superuser_reserved_connections": "8", "reserved_connections": "4"}
    with new_postgres(max_connections=30, settings=reserves) as server:
        options = Options(users=(30,), database_url=server.monitor_url())
        options, (deployed,) = with_server_limits(options, (Deployed(target=target, url="x"),), [])
    assert (options.max_connections, options.usable_connections) == (30, 18)
    assert (deployed.max_connections, deployed.usable_connections) == (30, 18)
    (planned,) = make_plan([target], options).record.targets
    assert planned.ceiling == 18 - SPARE_CONNECTIONS


@dataclass
class Made:
    """A stand-in for a measurement."""

    step: PlannedStep
    state: MeasurementState = field(default_factory=MeasurementState)
    prepared: bool = False

    def prepare(self):
        assert not self.prepared, "its Locust would be started twice"
        self.prepared = True


@pytest.fixture
def queue():
    """The queue of two targets, at two levels, in two rounds."""
    targets = [
        Target(name=name, kind="web", preset="web", locustfile="load.py") for name in ("a", "b")
    ]
    plan = make_plan(targets, Options(users=(1, 2), repeat=2))
    return Queue([Made(step) for step in plan.steps()])


def measure_all(queue, aborted=()):
    """Go through the queue; return the titles and numbers of the measurements."""
    seen = []
    while (made := queue.next()) is not None:
        assert made.prepared == bool(seen), "all but the first are prepared, by the one before"
        seen.append((made.step.title, queue.number))
        if made.step.title in aborted:
            made.state.aborted_by = "http.p95"
        queue.prepare_next()
    return seen


def test_everything_is_measured_once_and_prepared_by_the_one_before(queue):
    """Eight measurements, numbered from one."""
    seen = measure_all(queue)
    assert [number for _, number in seen] == list(range(1, 9))
    assert len({title for title, _ in seen}) == 8


def test_loads_above_an_aborted_one_are_left_out_in_later_rounds_too(queue):
    """The other target goes on, and the aborted level has its second round."""
    seen = [title for title, _ in measure_all(queue, aborted=("a, 1 user, round 1",))]
    assert seen == [
        *("a, 1 user, round 1", "b, 1 user, round 1", "b, 2 users, round 1"),
        *("a, 1 user, round 2", "b, 1 user, round 2", "b, 2 users, round 2"),
    ]


def test_an_aborted_last_load_leaves_nothing_to_prepare(queue):
    """Neither a level that was left out, nor one for a second time."""
    every = {f"{name}, {load}, round 1" for name in "ab" for load in ("1 user", "2 users")}
    seen = [title for title, _ in measure_all(queue, aborted=every)]
    both = ("a, 1 user, round {}", "b, 1 user, round {}")
    assert seen == [title.format(round_) for round_ in (1, 2) for title in both]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"sessions_from": 8, "sessions_to": 9}, "1 connection opened in 6 s"),
        ({"sessions_from": 8, "sessions_to": 2}, "an unknown number of connections opened in 6 s"),
        ({"sessions_from": None, "sessions_to": 2}, "an unknown number of connections opened"),
        (
            {"sessions_from": 8, "sessions_to": 8, "cold_starts": 10},
            "0 connections opened in 6 s; 10 cold starts, with those of the warm-up",
        ),
    ],
)
def test_the_summary_of_a_measurement_has_no_unknown_figure(counts, said):
    """A counter that was reset gives an unknown number; cold starts count the whole time."""
    window = Window(started=0, warm_from=1, from_=4, to=10, stopped=11, **counts)
    assert summary(window).startswith(said)
