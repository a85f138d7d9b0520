"""Rules of the worker's and PgBouncer's templates, and of every queue and Fargate service."""

import itertools

import pytest
from infra.deployed import INFRA, deployment_of
from infra.transformed import declared

TEMPLATES = [
    file.name
    for file in sorted(INFRA.glob("*.yaml"))
    if "AWSTemplateFormatVersion" in file.read_text()
]
SERVED = ("web.yaml", "worker.yaml", "pgbouncer.yaml")
"""Templates whose services should always run; a load test's are there for one run."""


def resources(template, kind):
    """Return a template's resources of a type by name, whatever their conditions."""
    found = declared(template)["Resources"].items()
    return {name: each for name, each in found if each["Type"] == kind}


# -- queues ---------------------------------------------------------------------------------

QUEUES = [
    (template, name) for template in TEMPLATES for name in resources(template, "AWS::SQS::Queue")
]


@pytest.mark.parametrize(("template", "queue"), QUEUES)
def test_a_queue_refuses_plain_http(template, queue):
    """A policy of its own denies every action without TLS, and stays for as long as the queue."""
    policies = [
        each
        for each in resources(template, "AWS::SQS::QueuePolicy").values()
        if {"Ref": queue} in each["Properties"]["Queues"]
    ]
    (policy,) = policies
    assert policy["Properties"]["Queues"] == [{"Ref": queue}]
    (statement,) = policy["Properties"]["PolicyDocument"]["Statement"]
    assert statement == {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "sqs:*",
        "Resource": {"Fn::GetAtt": [queue, "Arn"]},
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    kept = resources(template, "AWS::SQS::Queue")[queue]["DeletionPolicy"]
    assert policy.get("DeletionPolicy", "Delete") == kept


def test_the_rule_covers_every_queue():
    """The worker's and the function's, each with a queue for dead letters."""
    assert {template for template, _ in QUEUES} >= {"lambda.yaml", "worker.yaml"}
    assert len(QUEUES) >= 4


# -- alarms for people ------------------------------------------------------------------------


@pytest.mark.parametrize("template", SERVED)
def test_a_service_that_runs_too_few_tasks_has_an_alarm(template):
    """Also with none, for which Container Insights has no figure."""
    for service in resources(template, "AWS::ECS::Service"):
        (alarm,) = (
            each
            for each in resources(template, "AWS::CloudWatch::Alarm").values()
            if each["Properties"].get("MetricName") == "RunningTaskCount"
            and {"Fn::GetAtt": [service, "Name"]}
            in [one["Value"] for one in each["Properties"]["Dimensions"]]
        )
        watched = alarm["Properties"]
        assert watched["ComparisonOperator"] == "LessThanThreshold"
        assert watched["TreatMissingData"] == "breaching"
        assert watched["Threshold"] in ({"Ref": "MinTasks"}, {"Ref": "Tasks"})
        for cluster in resources(template, "AWS::ECS::Cluster").values():
            assert {"Name": "containerInsights", "Value": "enabled"} in cluster["Properties"][
                "ClusterSettings"
            ]


def test_a_service_that_may_have_no_task_has_no_such_alarm():
    """With MinTasks 0 a missing figure is what an empty queue looks like."""
    alarm = declared("worker.yaml")["Resources"]["TooFewTasksAlarm"]
    condition = declared("worker.yaml")["Conditions"][alarm["Condition"]]
    assert condition == {"Fn::Not": [{"Fn::Equals": [{"Ref": "MinTasks"}, "0"]}]}


@pytest.mark.parametrize("template", ["web.yaml", "pgbouncer.yaml"])
def test_a_load_balancer_without_a_healthy_task_has_an_alarm(template):
    """UnHealthyHostCount has no figure when no task is registered."""
    groups = resources(template, "AWS::ElasticLoadBalancingV2::TargetGroup")
    alarms = [
        each["Properties"]
        for each in resources(template, "AWS::CloudWatch::Alarm").values()
        if each["Properties"].get("MetricName") == "HealthyHostCount"
    ]
    assert len(alarms) == len(groups) == 1
    assert alarms[0]["TreatMissingData"] == "breaching"
    assert alarms[0]["Threshold"] == 1


# -- the image's machine ----------------------------------------------------------------------

IMAGES = ("web.yaml", "worker.yaml", "migrate.yaml", "pgbouncer.yaml")


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
@pytest.mark.parametrize("template", IMAGES)
def test_an_image_of_either_instruction_set_can_be_deployed(template, architecture):
    """Architecture has the words of `poolkit package --architecture`; ECS has its own."""
    parameter = declared(template)["Parameters"]["Architecture"]
    assert parameter["Default"] == "arm64"
    assert set(parameter["AllowedValues"]) == {"arm64", "x86_64"}
    condition = declared(template)["Conditions"]["OnArm"]
    assert condition == {"Fn::Equals": [{"Ref": "Architecture"}, "arm64"]}
    tasks = resources(template, "AWS::ECS::TaskDefinition").values()
    assert tasks
    for task in tasks:
        _, arm, other = task["Properties"]["RuntimePlatform"]["CpuArchitecture"]["Fn::If"]
        chosen = arm if architecture == "arm64" else other
        assert chosen == {"arm64": "ARM64", "x86_64": "X86_64"}[architecture]


# -- scaling --------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ["prod", "high_traffic"])
def test_tasks_in_work_count_for_scaling_in_and_not_for_scaling_out(environment):
    """Messages in flight keep tasks; only messages that wait add some."""
    deployment = deployment_of(environment)
    metrics = {
        name: {
            each["MetricStat"]["Metric"]["MetricName"]
            for each in deployment.resource("worker", name).get("Metrics")
            if "MetricStat" in each
        }
        for name in ("OverloadAlarm", "IdleAlarm")
    }
    waiting = {"ApproximateNumberOfMessagesVisible", "RunningTaskCount"}
    assert metrics["OverloadAlarm"] == waiting
    assert metrics["IdleAlarm"] == waiting | {"ApproximateNumberOfMessagesNotVisible"}


def test_no_service_scales_on_an_age():
    """The age of the oldest message counts those in flight, and a service keeps its most tasks."""
    for template in TEMPLATES:
        policies = resources(template, "AWS::ApplicationAutoScaling::ScalingPolicy")
        for alarm in resources(template, "AWS::CloudWatch::Alarm").values():
            actions = alarm["Properties"]["AlarmActions"]
            if isinstance(actions, list) and actions[0].get("Ref") in policies:
                assert "Age" not in str(alarm["Properties"].get("MetricName", ""))
                assert "Age" not in str(alarm["Properties"].get("Metrics", ""))


def test_steps_have_neither_a_gap_nor_an_overlap():
    """Application Auto Scaling refuses both, and two steps without the same bound."""
    for template in TEMPLATES:
        found = resources(template, "AWS::ApplicationAutoScaling::ScalingPolicy").values()
        for policy in found:
            settings = policy["Properties"].get("StepScalingPolicyConfiguration")
            if settings is None:
                continue
            bounds = [
                (each.get("MetricIntervalLowerBound"), each.get("MetricIntervalUpperBound"))
                for each in settings["StepAdjustments"]
            ]
            for (_, upper), (lower, _) in itertools.pairwise(bounds):
                assert upper == lower
            assert all(each != (None, None) for each in bounds)
            # A bound on either side of the threshold needs an open end on that side.
            assert not any((low or 0) < 0 for low, _ in bounds) or bounds[0][0] is None
            assert not any((up or 0) > 0 for _, up in bounds) or bounds[-1][1] is None
