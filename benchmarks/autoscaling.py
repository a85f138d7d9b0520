"""A small CloudWatch, Application Auto Scaling and SQS, for the scaling of `infra/worker.yaml`.

The alarms, the policies and their numbers are read from a template. What AWS does with them is
modelled after its documentation:

* Amazon SQS, "Available CloudWatch metrics": a count is published each minute while the queue is
  active; the oldest message is the oldest that was not deleted, in flight or not, without those
  that were received more than three times. Messages in flight are published "if there are any";
  real queues also publish zeros, so both are simulated (`zeros`).
* Amazon ECS, "Container Insights": a service without a running task has no RunningTaskCount.
* CloudWatch, "Using metric math" and "Alarms and missing data". An alarm with a scaling policy
  invokes it each minute for as long as it is in ALARM.
* Application Auto Scaling, "Step scaling policies": bounds, rounding, and both kinds of cooldown.
* ECS stops any task it likes, here the one with the longest work left, which has 120 s to end.
"""

import ast
import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import ClassVar

import yaml

MINUTE = 60
METRIC_DELAY = 1
"""Minutes until a data point can be evaluated."""
INACTIVE_AFTER = 6 * 3600
"""s without a message or a reader, after which a queue publishes nothing (SQS guide)."""
ACTIVE_AGAIN_AFTER = 15 * MINUTE
"""s until an inactive queue publishes again, at most."""
TASK_START = 75
"""s from a larger DesiredCount to a worker that consumes: Fargate, the image, Celery."""
MAX_RECEIVES = 5
LATEST_IN_AGE = 3
"""Receives up to which a message counts for ApproximateAgeOfOldestMessage."""


# -- the template ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Alarm:
    name: str
    queries: tuple
    result: str
    evaluation_periods: int
    datapoints_to_alarm: int
    threshold: float
    comparison: str
    missing: str
    policy: str


@dataclass(frozen=True)
class Policy:
    name: str
    adjustment_type: str
    cooldown: float
    minimum_magnitude: int
    steps: tuple


@dataclass(frozen=True)
class Scaling:
    minimum: int
    maximum: int
    concurrency: int
    stop_timeout: int
    visibility_timeout: int
    alarms: tuple
    policies: dict


class _Loader(yaml.SafeLoader):
    parameters: ClassVar = {}


def _tagged(loader, suffix, node):
    if suffix == "Ref":
        return loader.parameters.get(node.value, node.value)
    if suffix == "Sub" and isinstance(node, yaml.ScalarNode):
        text = node.value
        for name, value in loader.parameters.items():
            text = text.replace(f"${{{name}}}", str(value))
        return text
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)


_Loader.add_multi_constructor("!", _tagged)


def read_scaling(file, given=()):
    """Return the scaling of a worker's template, with its defaults or the given parameters."""
    plain = type("Plain", (_Loader,), {"parameters": {}})
    declared = yaml.load(file.read_text(), plain)["Parameters"]
    defaults = {name: each["Default"] for name, each in declared.items() if "Default" in each}
    parameters = {**defaults, **dict(given)}
    filled = type("Filled", (_Loader,), {"parameters": parameters})
    resources = yaml.load(file.read_text(), filled)["Resources"]
    policies = {
        name: _policy(name, each["Properties"]["StepScalingPolicyConfiguration"])
        for name, each in resources.items()
        if each["Type"] == "AWS::ApplicationAutoScaling::ScalingPolicy"
    }
    alarms = tuple(
        _alarm(name, each["Properties"])
        for name, each in resources.items()
        if each["Type"] == "AWS::CloudWatch::Alarm"
        and each["Properties"]["AlarmActions"][0] in policies
    )
    target = resources["ScalableTarget"]["Properties"]
    (container, *_) = resources["TaskDefinition"]["Properties"]["ContainerDefinitions"]
    return Scaling(
        minimum=int(target["MinCapacity"]),
        maximum=int(target["MaxCapacity"]),
        concurrency=int(parameters["Concurrency"]),
        stop_timeout=int(container["StopTimeout"]),
        visibility_timeout=int(resources["Queue"]["Properties"]["VisibilityTimeout"]),
        alarms=alarms,
        policies=policies,
    )


def _policy(name, settings):
    return Policy(
        name,
        settings["AdjustmentType"],
        settings.get("Cooldown", 300),
        settings.get("MinAdjustmentMagnitude", 0),
        tuple(settings["StepAdjustments"]),
    )


def _alarm(name, properties):
    if "Metrics" in properties:
        queries = tuple(properties["Metrics"])
        (result,) = (each["Id"] for each in queries if each.get("ReturnData", True))
    else:
        metric = {"Namespace": properties["Namespace"], "MetricName": properties["MetricName"]}
        stat = {"Metric": metric, "Period": properties["Period"], "Stat": properties["Statistic"]}
        queries, result = ({"Id": "metric", "MetricStat": stat},), "metric"
    periods = {each["MetricStat"]["Period"] for each in queries if "MetricStat" in each}
    if periods != {MINUTE}:
        raise ValueError(f"{name} must have periods of {MINUTE} s, not {periods}")
    return Alarm(
        name,
        queries,
        result,
        properties["EvaluationPeriods"],
        properties.get("DatapointsToAlarm", properties["EvaluationPeriods"]),
        float(properties["Threshold"]),
        properties["ComparisonOperator"],
        properties.get("TreatMissingData", "missing"),
        properties["AlarmActions"][0],
    )


# -- metric math: series of a value or None for each minute -----------------------------------


def evaluate(expression, series, length, *, fills_empty=True):
    """Return the series of an expression of CloudWatch's metric math.

    AWS does not document what FILL makes of a metric without any point, nor what SUM of several
    does where one has none. Either FILL fills it and SUM needs each of them (`fills_empty`), or
    FILL leaves it empty and SUM adds those that are there.

    Raises:
        ValueError: the expression has a function or an operator that is not known here.
    """
    return _value(ast.parse(expression, mode="eval").body, _Math(series, length, fills_empty))


@dataclass(frozen=True)
class _Math:
    series: dict
    length: int
    fills_empty: bool

    def fill(self, points, others):
        if not self.fills_empty and all(each is None for each in points):
            return points
        return [b if a is None else a for a, b in zip(points, others, strict=True)]

    def sum(self, several):
        rows = [[each for each in row if each is not None] for row in zip(*several, strict=True)]
        least = len(several) if self.fills_empty else 1
        return [sum(row) if len(row) >= least else None for row in rows]


_OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    # CloudWatch has no data point where it would divide by zero.
    ast.Div: lambda a, b: a / b if b else None,
    ast.Gt: lambda a, b: float(a > b),
    ast.GtE: lambda a, b: float(a >= b),
    ast.Lt: lambda a, b: float(a < b),
    ast.LtE: lambda a, b: float(a <= b),
    ast.Eq: lambda a, b: float(a == b),
}


def _value(node, math):  # noqa: PLR0911  (a row for each kind of expression)
    match node:
        case ast.Constant(value=number):
            return [float(number)] * math.length
        case ast.Name(id=name):
            return math.series[name]
        case ast.Call(func=ast.Name(id="FILL"), args=[filled, other]):
            points = _value(filled, math)
            if isinstance(other, ast.Name) and other.id == "REPEAT":
                return list(itertools.accumulate(points, _repeat))
            return math.fill(points, _value(other, math))
        case ast.Call(func=ast.Name(id="SUM"), args=[ast.List(elts=several)]):
            return math.sum([_value(each, math) for each in several])
        case ast.Call(func=ast.Name(id="IF"), args=[wanted, yes, no]):
            chosen = zip(*(_value(each, math) for each in (wanted, yes, no)), strict=True)
            return [None if w is None else (y if w else n) for w, y, n in chosen]
        case (
            ast.BinOp(left=left, op=op, right=right)
            | ast.Compare(left=left, ops=[op], comparators=[right])
        ) if type(op) in _OPERATORS:
            apply = _OPERATORS[type(op)]
            pairs = zip(_value(left, math), _value(right, math), strict=True)
            return [None if a is None or b is None else apply(a, b) for a, b in pairs]
    raise ValueError(f"not known in metric math here: {ast.unparse(node)}")


def _repeat(last, value):
    return last if value is None else value


_ALSO_READ = 5
"""Points that CloudWatch reads beyond those it evaluates; REPEAT fills from these."""

# -- alarms -----------------------------------------------------------------------------------

_COMPARISONS = {
    "GreaterThanThreshold": lambda value, threshold: value > threshold,
    "GreaterThanOrEqualToThreshold": lambda value, threshold: value >= threshold,
    "LessThanThreshold": lambda value, threshold: value < threshold,
    "LessThanOrEqualToThreshold": lambda value, threshold: value <= threshold,
}


@dataclass
class AlarmState:
    alarm: Alarm
    fills_empty: bool = True
    state: str = "INSUFFICIENT_DATA"
    latest: float | None = None

    def update(self, history):
        """Evaluate the alarm over the newest data points of each metric."""
        length = self.alarm.evaluation_periods + _ALSO_READ
        series = {}
        for query in self.alarm.queries:
            if "Expression" in query:
                series[query["Id"]] = evaluate(
                    query["Expression"], series, length, fills_empty=self.fills_empty
                )
            else:
                points = history[query["MetricStat"]["Metric"]["MetricName"]][-length:]
                series[query["Id"]] = [None] * (length - len(points)) + points
        points = series[self.alarm.result][-self.alarm.evaluation_periods :]
        self.latest = next((each for each in reversed(points) if each is not None), None)
        if all(each is None for each in points):
            match self.alarm.missing:
                case "missing":
                    self.state = "INSUFFICIENT_DATA"
                case "ignore":
                    pass
                case treated:
                    self.state = "ALARM" if treated == "breaching" else "OK"
            return
        is_breaching = _COMPARISONS[self.alarm.comparison]
        breaching = sum(
            self.alarm.missing == "breaching"
            if each is None
            else is_breaching(each, self.alarm.threshold)
            for each in points
        )
        unknown = sum(each is None for each in points)
        if breaching >= self.alarm.datapoints_to_alarm:
            self.state = "ALARM"
        elif not (
            self.alarm.missing in {"ignore", "missing"}
            and breaching + unknown >= self.alarm.datapoints_to_alarm
        ):
            self.state = "OK"


# -- scaling policies -------------------------------------------------------------------------


@dataclass
class Capacity:
    """The scalable target's DesiredCount, and what its policies make of it."""

    scaling: Scaling
    desired: int
    out_until: float = -math.inf
    out_from: int = 0
    in_until: float = -math.inf

    def invoke(self, policy, above, now):
        """Apply a step policy to the distance of the newest data point from the threshold."""
        step = next((each for each in policy.steps if _is_within(each, above)), None)
        if step is None:
            return
        if step["ScalingAdjustment"] > 0:
            # What was added since the cooldown began is a part of what this step adds.
            base = self.out_from if now < self.out_until else self.desired
            wanted = self._bounded(base + _adjustment(policy, step, base))
            if wanted > self.desired:
                self.desired, self.out_from = wanted, base
                self.out_until = now + policy.cooldown
                self.in_until = -math.inf
        elif now >= self.in_until:
            wanted = self._bounded(self.desired + _adjustment(policy, step, self.desired))
            if wanted < self.desired:
                self.desired = wanted
                self.in_until = now + policy.cooldown

    def _bounded(self, tasks):
        return min(max(tasks, self.scaling.minimum), self.scaling.maximum)


def _is_within(step, above):
    lower = step.get("MetricIntervalLowerBound", -math.inf)
    upper = step.get("MetricIntervalUpperBound", math.inf)
    # Above the threshold the lower bound belongs to the step, below it the upper one.
    return lower <= above < upper if above >= 0 else lower < above <= upper


def _adjustment(policy, step, tasks):
    change = step["ScalingAdjustment"]
    if policy.adjustment_type == "PercentChangeInCapacity":
        change = tasks * change / 100
        # Away from zero below 1, else towards it.
        change = math.copysign(max(1, math.floor(abs(change))), change) if change else 0
        change = math.copysign(max(abs(change), policy.minimum_magnitude), change)
    elif policy.adjustment_type == "ExactCapacity":
        change -= tasks
    return int(change)


# -- the queue and its workers ----------------------------------------------------------------


@dataclass(order=True)
class Message:
    sent: float
    seconds: float = field(compare=False)
    """How long a process works on it."""
    retries: int = field(default=0, compare=False)
    """Tries that fail; a worker holds the message before the next one, which is a new message."""
    hold: float = field(default=60, compare=False)
    crashes: bool = field(default=False, compare=False)
    """It ends its worker's process, and comes back after the visibility timeout."""
    receives: int = field(default=0, compare=False)


@dataclass(eq=False)
class _Task:
    ready: float
    free: list
    stopping: float = math.inf
    work: dict = field(default_factory=dict)


@dataclass
class Minute:
    minute: int
    desired: int
    running: int
    visible: int
    in_flight: int


@dataclass
class Outcome:
    minutes: list
    waits: list
    """s between sent and first received, for each message."""
    interrupted: int
    """Messages whose worker was killed in the middle of them."""
    dead: int

    def tasks(self):
        return [each.desired for each in self.minutes]

    def task_hours(self):
        return sum(each.running for each in self.minutes) / 60

    def minutes_until(self, tasks, start=0):
        """Return the minutes from `start` until the service has grown or shrunk to `tasks`."""
        later = self.minutes[start:]
        grows = later[0].desired < tasks
        for each in later:
            if (each.desired >= tasks) if grows else (each.desired <= tasks):
                return each.minute - start
        return math.inf


class Simulation:
    """A worker service for some hours, second by second."""

    def __init__(self, scaling, messages, *, tasks, insights=True, zeros=True, fills_empty=True):
        self.scaling = scaling
        self.capacity = Capacity(scaling, tasks)
        self.alarms = [AlarmState(each, fills_empty) for each in scaling.alarms]
        self.insights = insights
        self.zeros = zeros
        # Copies, which the simulation changes.
        self.arrivals = deque(replace(each) for each in sorted(messages))
        self.visible = deque()
        self.held = []  # (when it comes back, number, message)
        self.numbers = itertools.count()
        self.tasks = [self._task(0) for _ in range(tasks)]
        self.last_activity = 0.0
        self.active_since = -math.inf
        names = ("Visible", "NotVisible")
        self.history = {f"ApproximateNumberOfMessages{name}": [] for name in names}
        self.history |= {"ApproximateAgeOfOldestMessage": [], "RunningTaskCount": []}
        self.outcome = Outcome([], [], 0, 0)

    def run(self, hours):
        for second in range(int(hours * 3600)):
            self._deliver(second)
            if second % MINUTE == 0:
                self._publish(second)
                self._scale(second)
        return self.outcome

    def _task(self, ready):
        return _Task(ready, [ready] * self.scaling.concurrency)

    def _deliver(self, now):
        while self.arrivals and self.arrivals[0].sent <= now:
            self.visible.append(self.arrivals.popleft())
        while self.held and self.held[0][0] <= now:
            self._take_back(heapq.heappop(self.held)[2], now)
        for task in list(self.tasks):
            if task.stopping <= now:
                self._end(task, now)
            elif task.ready <= now and task.stopping == math.inf:
                for slot, free in enumerate(task.free):
                    task.free[slot] = self._work(task, slot, free, now)

    def _work(self, task, slot, free, now):
        """Let a process take messages until it is busy beyond this second."""
        free = max(free, now)
        if free < now + 1:
            task.work.pop(slot, None)
        while free < now + 1 and self.visible:
            message = self.visible.popleft()
            message.receives += 1
            if message.receives == 1:
                self.outcome.waits.append(max(0, free - message.sent))
            end = free + message.seconds
            if message.crashes:
                back = free + self.scaling.visibility_timeout
                heapq.heappush(self.held, (back, next(self.numbers), message))
            elif message.retries:
                again = Message(end, message.seconds, message.retries - 1, message.hold)
                heapq.heappush(self.held, (end + message.hold, next(self.numbers), again))
            task.work[slot] = (end, message)
            free = end
        return free

    def _take_back(self, message, now):
        if message.crashes and message.receives >= MAX_RECEIVES:
            self.outcome.dead += 1
            return
        if not message.crashes:
            message.sent = now
        self.visible.append(message)

    def _end(self, task, now):
        """End a task whose time to stop is over; what it still works on comes back."""
        self.tasks.remove(task)
        for end, message in task.work.values():
            if end > now and not message.crashes:
                self.outcome.interrupted += 1
                back = now + self.scaling.visibility_timeout
                heapq.heappush(self.held, (back, next(self.numbers), message))

    def _publish(self, now):
        running = [each for each in self.tasks if each.ready <= now and each.stopping == math.inf]
        working = [
            message for task in self.tasks for end, message in task.work.values() if end > now
        ]
        # A message that crashed its worker is held from the start; one that fails, when it has.
        held = [message for _, _, message in self.held if message.sent <= now]
        working = [each for each in working if not each.crashes] + held
        is_active = bool(running or self.visible or working)
        if is_active:
            if now - self.last_activity > INACTIVE_AFTER:
                self.active_since = now
            self.last_activity = now
        silent = now - self.active_since < ACTIVE_AGAIN_AFTER
        silent = silent or now - self.last_activity > INACTIVE_AFTER
        ages = [
            now - each.sent
            for each in (*itertools.islice(self.visible, 1), *working)
            if each.receives <= LATEST_IN_AGE
        ]
        points = {
            "ApproximateNumberOfMessagesVisible": float(len(self.visible)),
            "ApproximateNumberOfMessagesNotVisible": (
                float(len(working)) if working or self.zeros else None
            ),
            "ApproximateAgeOfOldestMessage": max(ages, default=None),
        }
        for name, value in points.items():
            self.history[name].append(None if silent else value)
        self.history["RunningTaskCount"].append(
            float(len(running)) if running and self.insights else None
        )
        self.outcome.minutes.append(
            Minute(
                now // MINUTE,
                self.capacity.desired,
                len(running),
                len(self.visible),
                len(working),
            )
        )

    def _scale(self, now):
        longest = max(each.evaluation_periods for each in self.scaling.alarms) + _ALSO_READ
        late = {
            name: points[-longest - METRIC_DELAY : -METRIC_DELAY]
            for name, points in self.history.items()
        }
        for each in self.alarms:
            each.update(late)
            if each.state == "ALARM" and each.latest is not None:
                above = each.latest - each.alarm.threshold
                self.capacity.invoke(self.scaling.policies[each.alarm.policy], above, now)
        kept = [each for each in self.tasks if each.stopping == math.inf]
        for _ in range(self.capacity.desired - len(kept)):
            self.tasks.append(self._task(now + TASK_START))
        spare = len(kept) - self.capacity.desired
        if spare > 0:
            for task in sorted(kept, key=_last_end, reverse=True)[:spare]:
                task.stopping = now + self.scaling.stop_timeout


def _last_end(task):
    return max((end for end, _ in task.work.values()), default=0)
