"""Alarms and graphs are of metrics that exist, with their dimensions and a statistic that means something.

CloudWatch accepts these mistakes: an alarm on a metric that nothing sends is silent for ever.
"""

import json
import re

import pytest
from infra.aws_metrics import METRICS, TREATMENTS
from infra.deployed import ENVIRONMENTS, INFRA, VARIANTS, deployment_of
from infra.transformed import declared, references, transformed

TEMPLATES = sorted(
    file.name
    for file in INFRA.glob("*.yaml")
    if "AWSTemplateFormatVersion" in file.read_text() and "CloudWatch" in file.read_text()
)


def alarms():
    """Return each alarm that a template may have, whatever its conditions, by template and name."""
    return {
        f"{template}:{name}": transformed(template).filled(each["Properties"])
        for template in TEMPLATES
        for name, each in declared(template)["Resources"].items()
        if each["Type"] == "AWS::CloudWatch::Alarm"
    }


ALARMS = alarms()


def watched(alarm):
    """Return what an alarm watches: namespace, name, dimensions and statistic of each metric."""
    if "Metrics" not in alarm:
        statistic = alarm.get("Statistic") or alarm["ExtendedStatistic"]
        yield alarm["Namespace"], alarm["MetricName"], names(alarm), statistic
    for each in alarm.get("Metrics", ()):
        text = each.get("Expression", "")
        text = text["Fn::Sub"] if isinstance(text, dict) and "Fn::Sub" in text else text
        if "MetricStat" in each:
            one, of = each["MetricStat"], each["MetricStat"]["Metric"]
            yield of["Namespace"], of["MetricName"], names(of), one["Stat"]
        elif str(text).startswith("SELECT"):
            yield queried(text)


def queried(query):
    """Return what a query of Metrics Insights watches; its dimensions are those that it names."""
    function, name, namespace, where = re.fullmatch(
        r"""SELECT (\w+)\((\w+)\) FROM "([^"]+)" WHERE (.*)""", query
    ).groups()
    return namespace, name, frozenset(re.findall(r"(\w+) =", where)), function.capitalize()


def names(metric):
    return frozenset(each["Name"] for each in metric.get("Dimensions", ()))


def is_prometheus(namespace, name):
    return namespace == "poolkit" and name.startswith("poolkit_")


@pytest.mark.parametrize("alarm", ALARMS)
def test_an_alarm_watches_a_metric_that_is_sent(alarm):
    """Namespace, name, set of dimensions and statistic are in AWS's own tables."""
    for namespace, name, dimensions, statistic in watched(ALARMS[alarm]):
        if is_prometheus(namespace, name):
            continue  # tests/infra/test_monitoring.py
        metric = METRICS.get((namespace, name))
        assert metric, f"{namespace} {name} is not in aws_metrics.py: add it with its source"
        # Which one it is can depend on a parameter.
        assert dimensions in metric.dimensions or not dimensions, dimensions
        assert re.sub(r"^p[0-9.]+$", "p", statistic) in metric.statistics, statistic


@pytest.mark.parametrize("alarm", ALARMS)
def test_a_missing_figure_is_treated_as_what_it_says(alarm):
    """A minute without errors is good; a service without a healthy task is not."""
    treatment = ALARMS[alarm].get("TreatMissingData")
    assert treatment, "CloudWatch's default keeps an alarm that has gone silent"
    if scales(alarm):
        assert treatment != "breaching", "a service does not scale on what nothing measures"
        return
    for namespace, name, *_ in watched(ALARMS[alarm]):
        if not is_prometheus(namespace, name):
            assert treatment in TREATMENTS[METRICS[namespace, name].missing]


def scales(alarm):
    """Return whether an alarm drives autoscaling and calls no one."""
    resources = declared(alarm.partition(":")[0])["Resources"]
    actions = references(ALARMS[alarm].get("AlarmActions", []))
    return any(
        resources[name]["Type"].endswith("::ScalingPolicy") for name in actions & resources.keys()
    )


@pytest.mark.parametrize("alarm", ALARMS)
def test_an_alarm_says_what_it_means(alarm):
    """Its description is what reaches people at night."""
    assert len(ALARMS[alarm]["AlarmDescription"].split()) >= 4


def test_an_alarm_on_what_is_missing_waits_for_the_first_deployment():
    """It is made after the service, whose creation ends when its tasks are healthy."""
    found = 0
    for template in TEMPLATES:
        stack = transformed(template)
        services = set(stack.of_type("AWS::ECS::Service"))
        for name, each in stack.of_type("AWS::CloudWatch::Alarm").items():
            if each["Properties"].get("TreatMissingData") == "breaching":
                needed = references(each["Properties"]) | {each.get("DependsOn")}
                assert services & needed, f"{template}:{name}"
                found += 1
    assert found


def searched(expression):
    """Return what a search finds: SEARCH('{namespace,dimension,...} MetricName="name" ...', 'Sum', 60)."""
    schema, name, statistic = re.fullmatch(
        r"""SEARCH\('\{([^}]*)\} MetricName="(\w+)"[^']*', '(\w+)', 60\)""", expression
    ).groups()
    namespace, *dimensions = schema.split(",")
    return namespace, name, frozenset(dimensions), statistic


def graphs(deployment):
    """Return what the dashboard draws: namespace, name, dimensions and statistic."""
    body = deployment.resource("dashboard", "Dashboard").get("DashboardBody")
    text = "".join(
        each if isinstance(each, str) else "later" for each in getattr(body, "parts", (body,))
    )
    for widget in json.loads(text)["widgets"]:
        properties = widget["properties"]
        before = ()
        for row in properties["metrics"]:
            if "expression" in row[0]:
                yield searched(row[0]["expression"])
                continue
            options = row[-1] if isinstance(row[-1], dict) else {}
            words = [each for each in row if isinstance(each, str)]
            words = list(before) if words == ["..."] else words
            before = words
            statistic = options.get("stat", properties.get("stat"))
            yield words[0], words[1], frozenset(words[2::2]), statistic


@pytest.mark.parametrize("environment", [*ENVIRONMENTS, *VARIANTS])
def test_a_graph_draws_a_metric_that_is_sent(environment):
    """As with alarms."""
    drawn = list(graphs(deployment_of(environment)))
    assert drawn
    for namespace, name, dimensions, statistic in drawn:
        if not is_prometheus(namespace, name):
            metric = METRICS[namespace, name]
            assert dimensions in metric.dimensions, (name, dimensions)
            assert re.sub(r"^p[0-9.]+$", "p", statistic) in metric.statistics, (name, statistic)


def test_the_dashboard_draws_what_alarms_of_the_services_watch():
    """An alarm is looked up where its metric is drawn."""
    drawn = {(namespace, name) for namespace, name, *_ in graphs(deployment_of("prod"))}
    for alarm, properties in ALARMS.items():
        if alarm.startswith(("lambda.yaml", "web.yaml")):
            for namespace, name, *_ in watched(properties):
                assert (namespace, name) in drawn, alarm


def test_each_service_that_people_call_has_the_alarms_of_an_outage():
    """Errors by it and by what stands before it, no healthy task, too few tasks, throttles."""
    watched_by = {
        template: {
            (namespace, name)
            for alarm, properties in ALARMS.items()
            if alarm.startswith(template)
            for namespace, name, *_ in watched(properties)
        }
        for template in ("web.yaml", "lambda.yaml")
    }
    balancer, function = "AWS/ApplicationELB", "AWS/Lambda"
    assert {
        (balancer, "HTTPCode_Target_5XX_Count"),
        (balancer, "HTTPCode_ELB_5XX_Count"),
        (balancer, "HealthyHostCount"),
        (balancer, "UnHealthyHostCount"),
        ("ECS/ContainerInsights", "RunningTaskCount"),
    } <= watched_by["web.yaml"]
    assert {
        (function, "Errors"),
        (function, "Throttles"),
        (function, "ProvisionedConcurrencySpilloverInvocations"),
        ("AWS/ApiGateway", "5xx"),
        ("poolkit", "ServerErrors"),
    } <= watched_by["lambda.yaml"]
