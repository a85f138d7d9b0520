"""The worker's autoscaling, simulated minute by minute with the alarms and policies of the template."""

import dataclasses
import functools
import math
from collections import Counter

import pytest
from infra.deployed import ROOT
from infra.simulation import autoscaling, worker_scaling

Message, Simulation, evaluate = autoscaling.Message, autoscaling.Simulation, autoscaling.evaluate
ON_AGE, TEMPLATE, Shape = worker_scaling.ON_AGE, worker_scaling.TEMPLATE, worker_scaling.Shape
scaling_of, shapes, simulate = (
    worker_scaling.scaling_of,
    worker_scaling.shapes,
    worker_scaling.simulate,
)

AFTER_A_BURST = ("nothing", "small", "long", "failing", "crashing")
"""Traffic that needs no more than MinTasks, and begins with MaxTasks."""
FOREVER = tuple(name for name in AFTER_A_BURST if name != "nothing")
RETURN_WITHIN = 30  # minutes
ENOUGH_WITHIN = 15


def traffic(scaling, name):
    return shapes(scaling.maximum * scaling.concurrency)[name]


@functools.cache
def outcome_of(environment, name, template=TEMPLATE):
    scaling = scaling_of(environment, template)
    return simulate(scaling, traffic(scaling, name))


def test_what_is_simulated_is_in_the_template():
    """Two alarms drive two policies, between the tasks that an environment names."""
    scaling = scaling_of("prod")
    assert {alarm.policy for alarm in scaling.alarms} == set(scaling.policies)
    assert (scaling.minimum, scaling.maximum, scaling.concurrency) == (2, 10, 4)
    assert scaling_of("dev").maximum == 1


# -- back to MinTasks -----------------------------------------------------------------------


@pytest.mark.parametrize("name", AFTER_A_BURST)
@pytest.mark.parametrize(
    ("environment", "zeros", "fills_empty"),
    # SQS may publish no data point where no message is in flight; see `evaluate` on the other.
    [
        ("staging", True, True),
        ("prod", True, True),
        ("prod", False, True),
        ("prod", False, False),
        ("high_traffic", False, False),
    ],
)
def test_small_traffic_returns_to_the_fewest_tasks(environment, name, zeros, fills_empty):
    """Whatever small traffic follows a burst, the additional tasks end within half an hour."""
    scaling = scaling_of(environment)
    outcome = simulate(scaling, traffic(scaling, name), zeros=zeros, fills_empty=fills_empty)
    assert outcome.minutes_until(scaling.minimum) <= RETURN_WITHIN
    assert set(outcome.tasks()[RETURN_WITHIN:]) == {scaling.minimum}
    assert outcome.interrupted == 0


@pytest.mark.parametrize("name", FOREVER)
def test_scaling_on_the_age_of_messages_would_keep_all_tasks(name):
    """The same simulation finds the fault of a policy that counts messages in flight as waiting."""
    assert outcome_of("prod", name, ON_AGE).tasks()[-1] == scaling_of("prod", ON_AGE).maximum


def test_a_burst_every_few_minutes_does_not_keep_all_tasks():
    """Tasks for the burst come and go, and cost less than half of the most."""
    scaling = scaling_of("prod")
    outcome = outcome_of("prod", "periodic")
    assert outcome.task_hours() < 0.5 * scaling.maximum * traffic(scaling, "periodic").hours
    assert max(outcome.waits) < 180


# -- enough tasks in time -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["burst", "long burst"])
@pytest.mark.parametrize("environment", ["prod", "high_traffic"])
def test_a_burst_gets_most_of_the_tasks_and_gives_them_back(environment, name):
    """Nearly all tasks run within a quarter of an hour, and the fewest half an hour after the end."""
    scaling = scaling_of(environment)
    outcome = outcome_of(environment, name)
    begun = next(each.minute for each in outcome.minutes if each.visible)
    assert outcome.minutes_until(math.ceil(0.9 * scaling.maximum), begun) <= ENOUGH_WITHIN
    ended = max(each.minute for each in outcome.minutes if each.visible + each.in_flight)
    assert outcome.minutes_until(scaling.minimum, ended) <= RETURN_WITHIN
    assert outcome.interrupted == 0


def test_a_day_has_no_long_wait_and_costs_little_more_than_it_needs():
    """Tasks follow the curve: few wait, and the night has the fewest tasks."""
    scaling = scaling_of("prod")
    shape = traffic(scaling, "day")
    outcome = outcome_of("prod", "day")
    waits = sorted(outcome.waits)
    assert waits[int(0.99 * len(waits))] < 60
    work = Counter(int(message.sent // 3600) for message in shape.messages)
    needed = [work[hour] * 3 / 3600 / scaling.concurrency for hour in range(24)]
    fewest = sum(max(each, scaling.minimum) for each in needed)
    assert outcome.task_hours() < 1.4 * fewest
    assert outcome.tasks()[-1] == scaling.minimum


def test_an_outage_of_the_database_adds_no_worker():
    """Failing tasks wait with their worker: more workers would only add connections."""
    scaling = scaling_of("prod")
    outcome = outcome_of("prod", "outage")
    assert set(outcome.tasks()) == {scaling.minimum}


def test_short_tasks_may_have_a_larger_backlog():
    """BacklogPerProcess keeps the service from growing for a queue that is empty in seconds."""
    messages = [Message(float(at), 0.05) for at in range(0, 3600, 60) for _ in range(300)]
    shape = Shape("batches", messages, 1, loaded=False)
    most = [
        max(simulate(scaling_of("prod", BacklogPerProcess=backlog), shape).tasks())
        for backlog in (1, 25)
    ]
    assert most[0] > most[1] == 2


# -- tasks in work --------------------------------------------------------------------------


def test_a_stopped_task_ends_its_work():
    """The longest task ends before StopTimeout, so scaling in interrupts no message."""
    scaling = scaling_of("prod")
    shape = Shape(
        "the longest tasks",
        [Message(float(at), 105.0) for at in range(0, 7200, 60)],
        2,
        loaded=True,
    )
    assert simulate(scaling, shape).interrupted == 0
    assert simulate(dataclasses.replace(scaling, stop_timeout=30), shape).interrupted > 0


# -- from and to no task --------------------------------------------------------------------


@pytest.mark.parametrize("fills_empty", [True, False])
def test_the_first_message_starts_a_task_and_the_last_one_ends_it(fills_empty):
    """With MinTasks 0 a single message is enough, and no task stops while one is worked on."""
    scaling = scaling_of("prod", MinTasks=0)
    messages = [Message(1800.0, 3.0), *(Message(1800.0 + 60 * n, 100.0) for n in range(60))]
    options = {"fills_empty": fills_empty, "zeros": fills_empty}
    outcome = Simulation(scaling, messages, tasks=0, **options).run(3)
    assert outcome.minutes_until(1, 30) <= 5
    assert set(outcome.tasks()[36:89]) <= {1, 2}
    assert outcome.minutes_until(0, 92) <= 15
    assert outcome.tasks()[-1] == 0


def test_a_queue_that_was_silent_for_hours_wakes_late():
    """SQS publishes again up to a quarter of an hour after the first message."""
    scaling = scaling_of("prod", MinTasks=0)
    outcome = Simulation(scaling, [Message(8 * 3600.0, 3.0)], tasks=0).run(9)
    assert 15 <= outcome.minutes_until(1, 8 * 60) <= 20


@pytest.mark.parametrize("fills_empty", [True, False])
def test_without_container_insights_it_scales_on_the_messages_alone(fills_empty):
    """Without RunningTaskCount tasks still come for a burst, and go when the queue is empty."""
    scaling = scaling_of("prod")
    outcome = simulate(scaling, traffic(scaling, "burst"), insights=False, fills_empty=fills_empty)
    assert max(outcome.tasks()) == scaling.maximum
    assert outcome.tasks()[-1] == scaling.minimum


# -- the documents ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", shapes(40))
def test_the_documented_numbers_are_the_simulations(name):
    """docs/infrastructure.md has a row for each shape of traffic, with the numbers of prod."""
    shape = shapes(40)[name]
    cells = [
        f"{max(each.tasks())}, {each.tasks()[-1]}, {each.task_hours():.1f}"
        for each in (outcome_of("prod", name), outcome_of("prod", name, ON_AGE))
    ]
    row = f"| {shape.what} | {' | '.join(cells)} | {shape.hours} |"
    assert row in (ROOT / "docs" / "infrastructure.md").read_text()


# -- the simulation itself ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("FILL(m, 0)", [0, 2, 0, 4]),
        ("FILL(m, REPEAT)", [None, 2, 2, 4]),
        ("FILL(FILL(m, REPEAT), 0)", [0, 2, 2, 4]),
        ("m * 2 + 1", [None, 5, None, 9]),
        ("IF(m > 2, 1, 0)", [None, 0, None, 1]),
        ("1 / (m - 2)", [None, None, None, 0.5]),
        ("SUM([m, full])", [None, 3, None, 5]),
    ],
)
def test_metric_math(expression, expected):
    """A missing point makes the result missing, unless it is filled."""
    assert evaluate(expression, {"m": [None, 2.0, None, 4.0], "full": [1.0] * 4}, 4) == expected


def test_metric_math_that_fills_no_empty_metric():
    """Then the sum has the points of the others."""
    series = {"m": [None, None], "full": [1.0, 2.0]}
    assert evaluate("FILL(m, 0)", series, 2, fills_empty=False) == [None, None]
    assert evaluate("SUM([FILL(m, 0), full])", series, 2, fills_empty=False) == [1, 2]


def test_an_unknown_function_is_refused():
    """A template that uses more than is simulated fails, rather than being simulated wrongly."""
    with pytest.raises(ValueError, match="ANOMALY"):
        evaluate("ANOMALY_DETECTION_BAND(m)", {"m": [1.0]}, 1)
