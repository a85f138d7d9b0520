"""Rules of the services on Fargate: what a release must pass, sizes, and what carries their metrics."""

import itertools

import pytest
import yaml
from infra.deployed import ENVIRONMENTS, INFRA, deployment_of
from infra.transformed import declared, references, transformed

FARGATE = {
    256: {512, 1024, 2048},
    512: set(range(1024, 4096 + 1, 1024)),
    1024: set(range(2048, 8192 + 1, 1024)),
    2048: set(range(4096, 16384 + 1, 1024)),
    4096: set(range(8192, 30720 + 1, 1024)),
    8192: set(range(16384, 61440 + 1, 4096)),
    16384: set(range(32768, 122880 + 1, 8192)),
}
"""MiB by CPU units. Amazon ECS Developer Guide, "Amazon ECS task definition parameters for Fargate",
Task size. CloudFormation sends any other pair to ECS, which refuses it in the middle of a stack."""

SIZED = [
    (file.name, name)
    for file in sorted(INFRA.glob("*.yaml"))
    if "AWSTemplateFormatVersion" in file.read_text()
    for name in declared(file.name)["Parameters"]
    if name.endswith("Cpu")
]


def passes(rule, values):
    """Return whether a rule of a template lets these parameters through."""

    def evaluate(value):
        if not isinstance(value, dict):
            return value
        ((key, content),) = value.items()
        if key == "Ref":
            return values[content]
        first, second = (evaluate(each) for each in content)
        return first == second if key == "Fn::Equals" else second in first

    return not evaluate(rule["RuleCondition"]) or all(
        evaluate(each["Assert"]) for each in rule["Assertions"]
    )


@pytest.mark.parametrize(("template", "cpu"), SIZED)
def test_a_size_that_fargate_refuses_is_refused_before_anything_is_made(template, cpu):
    """And no other: each pair of allowed values passes the Rules if Fargate takes it."""
    document, memory = declared(template), cpu.replace("Cpu", "Memory")
    rules = [each for each in document["Rules"].values() if {cpu} & refs(each)]
    allowed = [document["Parameters"][name]["AllowedValues"] for name in (cpu, memory)]
    for pair in itertools.product(*allowed):
        taken = all(passes(rule, dict(zip((cpu, memory), pair, strict=True))) for rule in rules)
        assert taken is (int(pair[1]) in FARGATE[int(pair[0])]), pair


def refs(value):
    """Return the names in `Ref`, also in conditions of rules."""
    if isinstance(value, list):
        return set().union(*map(refs, value))
    if isinstance(value, dict):
        return ({value["Ref"]} if "Ref" in value else set()) | refs(list(value.values()))
    return set()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_release_that_answers_503_is_undone(environment):
    """ECS watches what the tasks answer, and what the load balancer answers without a task."""
    deployment = deployment_of(environment)
    table = {name: str(each.value) for name, each in deployment.tables["web"].items()}
    stack = transformed("web.yaml", **table)
    watched = stack.properties("Service")["DeploymentConfiguration"]["Alarms"]
    assert (watched["Enable"], watched["Rollback"]) == (True, True)
    metrics = {stack.properties(name)["MetricName"] for name in references(watched["AlarmNames"])}
    assert metrics == {"HTTPCode_Target_5XX_Count", "HTTPCode_ELB_5XX_Count"}


def test_a_task_without_a_database_never_becomes_healthy(deployment):
    """It ends at its start, and the circuit breaker undoes the deployment."""
    web = deployment.container("web")
    assert web.variables["POOLKIT_FAIL_FAST"] == "true"
    assert web.definition["Essential"] is True


def test_nothing_that_watches_a_deployment_waits_for_its_service(deployment):
    """An alarm that needs the service could not be named by it."""
    stack = transformed("web.yaml")
    watched = stack.properties("Service")["DeploymentConfiguration"]["Alarms"]
    needed, waiting = set(), references(watched["AlarmNames"])
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting |= (references(stack.resources[name]) & stack.resources.keys()) - needed
    assert "Service" not in needed


@pytest.mark.parametrize("template", ["web.yaml", "worker.yaml"])
def test_each_task_writes_its_metrics_to_a_stream_of_its_own(template):
    """`{TaskId}` is an attribute that the collector's resourcedetection processor finds.

    Without it every task writes to the stream `metrics-undefined`.
    """
    stack = transformed(template, MetricsImageUri="collector")
    (task,) = (
        each
        for each in stack.of_type("AWS::ECS::TaskDefinition").values()
        if "metrics" in {one["Name"] for one in each["Properties"]["ContainerDefinitions"]}
    )
    (collector,) = (
        each for each in task["Properties"]["ContainerDefinitions"] if each["Name"] == "metrics"
    )
    (variable,) = (
        each for each in collector["Environment"] if each["Name"] == "AOT_CONFIG_CONTENT"
    )
    settings = yaml.safe_load(variable["Value"]["Fn::Sub"].replace("${", "$ {"))
    for pipeline in settings["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= settings[kind].keys(), "a part that is not configured"
    stream = settings["exporters"]["awsemf"]["log_stream_name"]
    assert "{TaskId}" in stream
    assert settings["processors"]["resourcedetection"]["detectors"] == ["ecs"]
    assert "resourcedetection" in settings["service"]["pipelines"]["metrics"]["processors"]


@pytest.mark.parametrize(
    ("given", "filtered"),
    [("", False), ("arn:aws:wafv2:eu-central-1:123456789012:regional/webacl/a/b", True)],
)
def test_a_web_acl_filters_requests_where_one_is_named(given, filtered):
    """By parameter, because an account has one for several services."""
    stack = transformed("web.yaml", WebAclArn=given)
    assert bool(stack.of_type("AWS::WAFv2::WebACLAssociation")) is filtered
