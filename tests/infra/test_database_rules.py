"""Rules of the templates that AWS has and no linter knows: names, bounds, classes, restores."""

import functools
import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path

import botocore
import pytest
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER
from infra.deployed import ENVIRONMENTS, INFRA, Deployment, deployment_of

from poolkit.budget.limits import class_size
from poolkit.budget.read.values import Reference
from poolkit.deploy.environment import Template

REGION = "eu-central-1"
FILES = sorted({*INFRA.glob("*.yaml")} - {INFRA / "compose.yaml"})
PARAMETER_GROUPS = ("AWS::RDS::DBParameterGroup", "AWS::RDS::DBClusterParameterGroup")
SAME_AS = {
    "AWS::Serverless::Function": "AWS::Lambda::Function",
    "AWS::Serverless::HttpApi": "AWS::ApiGatewayV2::Api",
}
"""SAM's types, whose properties are those of the type that they become."""


@functools.cache
def template(file):
    return Template.read(file.stem, file)


@functools.cache
def schema(kind):
    """Return CloudFormation's schema of a type, or None where cfn-lint lacks it."""
    try:
        kind = SAME_AS.get(kind, kind)
        return PROVIDER_SCHEMA_MANAGER.get_resource_schema(REGION, kind).schema
    except Exception:  # noqa: BLE001 - its own exception for an unknown type is private
        return None


def resources():
    """Give every resource of every template: template, logical id, type and properties."""
    for file in FILES:
        for logical_id, declared in template(file).section("Resources").items():
            yield file.stem, logical_id, declared["Type"], declared.get("Properties") or {}


# -- names and replacements: see also test_names.py -----------------------------------------


@pytest.mark.parametrize("kind", ["rds", "aurora-serverless"])
def test_another_generation_is_another_name(kind):
    """Database, proxy and the database's log groups have it, so that they can be replaced."""
    given = {"database": {"Kind": kind, "Generation": "-2"}, "proxy": {"Generation": "-2"}}
    stacks = Deployment("high_traffic", given).stacks
    resources = [*stacks["database"].resources.values(), *stacks["proxy"].resources.values()]
    keys = ("DBInstanceIdentifier", "DBClusterIdentifier", "DBProxyName", "LogGroupName")
    names = {
        json.dumps(each.get(key), default=str)
        for each in resources
        for key in keys
        if each.get(key) is not None and not isinstance(each.get(key), Reference)
    }
    assert len(names) >= 3
    assert all("-2" in name for name in names), names


# -- bounds of parameters -------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """What AWS takes: a range of numbers, or a list of values."""

    least: float | None = None
    most: float | None = None
    values: tuple = ()


def definition(found, path):
    """Follow property names into a schema; {} where it ends."""
    node = found
    for step in path:
        while "$ref" in node:
            node = functools.reduce(lambda a, b: a[b], node["$ref"][2:].split("/"), found)
        node = node.get("items", node) if step == "[]" else node.get("properties", {}).get(step, {})
    while "$ref" in node:
        node = functools.reduce(lambda a, b: a[b], node["$ref"][2:].split("/"), found)
    return node


@functools.cache
def api(service):
    """Give botocore's description of a service, {} where it has no such one."""
    folder = Path(botocore.__file__).parent / "data" / service
    files = sorted(folder.glob("*/service-2.json.gz"))
    return json.loads(gzip.decompress(files[-1].read_bytes())) if files else {}


DOCUMENTED = {
    "AWS::RDS::DBProxyTargetGroup": ("rds", "ModifyDBProxyTargetGroupRequest"),
    "AWS::RDS::DBInstance": ("rds", "CreateDBInstanceMessage"),
    "AWS::RDS::DBCluster": ("rds", "CreateDBClusterMessage"),
    "AWS::RDS::DBProxy": ("rds", "CreateDBProxyRequest"),
    "AWS::Lambda::Function": ("lambda", "CreateFunctionRequest"),
    "AWS::Serverless::Function": ("lambda", "CreateFunctionRequest"),
    "AWS::Lambda::EventSourceMapping": ("lambda", "CreateEventSourceMappingRequest"),
    "AWS::ECS::Service": ("ecs", "CreateServiceRequest"),
    "AWS::Logs::LogGroup": ("logs", "PutRetentionPolicyRequest"),
    "AWS::ApplicationAutoScaling::ScalableTarget": (
        "application-autoscaling",
        "RegisterScalableTargetRequest",
    ),
    "AWS::CloudWatch::Alarm": ("cloudwatch", "PutMetricAlarmInput"),
}
"""The request that makes a resource, whose members have the properties' names."""
RENAMED = {"ConnectionPoolConfigurationInfo": "ConnectionPoolConfig"}
RANGE = re.compile(
    r"(?:Must be|must be|Constraints?:|value)\W+(?:a value |an integer |a number )?"
    r"(?:from|between) ([\d,]+) (?:to|and) ([\d,]+)"
)


def documented(kind, path):
    """Give the member's shape and the text of its documentation."""
    service, name = DOCUMENTED.get(kind, ("", ""))
    shapes = api(service).get("shapes", {}) if service else {}
    node, text = {"shape": name}, ""
    for step in path:
        members = shapes.get(node.get("shape"), {}).get("members", {})
        by_name = {key.lower(): value for key, value in members.items()}
        node = by_name.get(RENAMED.get(step, step).lower(), {})
        text = re.sub("<[^>]*>", " ", node.get("documentation", ""))
    return shapes.get(node.get("shape"), {}), text


def bounds(kind, path):
    """Give what CloudFormation's schema and the service's own description allow, together."""
    found = []
    if whole := schema(kind):
        node = definition(whole, path)
        values = tuple(map(str, node.get("enum", ())))
        found.append(Bounds(node.get("minimum"), node.get("maximum"), values))
    shape, text = documented(kind, path)
    if shape.get("type") in ("integer", "long", "double", "float"):
        found.append(Bounds(shape.get("min"), shape.get("max")))
    # One sentence is for one engine or another; only a single range is clear.
    if len(ranges := set(RANGE.findall(" ".join(text.split())))) == 1:
        least, most = (float(each.replace(",", "")) for each in ranges.pop())
        found.append(Bounds(least, most))
    return found


def parameters_in(node, path=()):
    """Give the parameters that are whole values in a property, with the path to each."""
    if isinstance(node, list):
        for each in node:
            yield from parameters_in(each, (*path, "[]"))
    elif isinstance(node, dict) and set(node) == {"Ref"}:
        yield path, node["Ref"]
    elif isinstance(node, dict) and set(node) == {"Fn::If"}:
        for each in node["Fn::If"][1:]:
            yield from parameters_in(each, path)
    elif isinstance(node, dict):
        for key, value in node.items():
            if not key.startswith("Fn::"):
                yield from parameters_in(value, (*path, key))


def switched(file, parameter):
    """Give the values of a parameter that a condition compares with: "none" may remove a resource."""
    text = json.dumps(template(file).section("Conditions"))
    name = re.escape(parameter)
    return set(re.findall(rf'"Fn::Equals": \[{{"Ref": "{name}"}}, "([^"]*)"\]', text))


def uses():
    """Give each parameter that is a property's whole value, with its declaration."""
    for name, logical_id, kind, properties in resources():
        declared = template(INFRA / f"{name}.yaml").section("Parameters")
        for path, parameter in parameters_in(properties):
            if parameter in declared:
                yield f"{name}.{logical_id}", kind, path, parameter, declared[parameter]


def test_a_parameter_allows_what_aws_takes_and_nothing_else():
    """Its bounds and values are within those of the property that it becomes."""
    checked, wrong = set(), []
    for where, kind, path, name, declared in uses():
        for limits in bounds(kind, path):
            place = f"{where}.{'.'.join(path)} of parameter {name}"
            allowed = [str(each) for each in declared.get("AllowedValues", ())]
            numbers = [float(each) for each in allowed if re.fullmatch(r"[\d.]+", each)]
            least = min(numbers, default=declared.get("MinValue"))
            most = max(numbers, default=declared.get("MaxValue"))
            if limits.values and allowed:
                checked.add(name)
                taken = {*limits.values, *switched(INFRA / f"{where.split('.')[0]}.yaml", name)}
                if extra := {each.lower() for each in allowed} - {v.lower() for v in taken}:
                    wrong.append(f"{place}: AWS refuses {', '.join(sorted(extra))}")
            if declared["Type"] != "Number" and not numbers:
                continue
            for bound, own, is_wrong in (
                (limits.least, least, lambda own, bound: own < bound),
                (limits.most, most, lambda own, bound: own > bound),
            ):
                if bound is None:
                    continue
                checked.add(name)
                if own is None:
                    wrong.append(f"{place}: has no bound, AWS has {bound:g}")
                elif is_wrong(own, bound):
                    wrong.append(f"{place}: {own:g} is allowed, AWS has {bound:g}")
    assert {"BorrowTimeout", "BackupRetentionDays", "LogRetentionDays"} <= checked
    assert wrong == []


def test_every_number_of_the_database_has_both_bounds():
    """CloudFormation refuses a wrong number before anything is made."""
    for name, declared in template(INFRA / "database.yaml").section("Parameters").items():
        if declared["Type"] == "Number" and "AllowedValues" not in declared:
            assert {"MinValue", "MaxValue"} <= declared.keys(), name


# -- the database ---------------------------------------------------------------------------


def variant(**database):
    """Give production with other parameters of the database."""
    return Deployment("prod", {"database": database})


KINDS = {"rds": ("Instance", "DBName"), "aurora-serverless": ("Cluster", "DatabaseName")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["16", "17", "18"])
def test_the_parameter_group_is_of_the_version(kind, version):
    """RDS refuses a server with the parameter group of another major version."""
    found = variant(Kind=kind, EngineMajorVersion=version)
    database = found.resource("database", KINDS[kind][0])
    (group,) = found.of_type(*PARAMETER_GROUPS)
    assert str(database.get("EngineVersion")) == version
    engine = database.get("Engine")
    assert group.get("Family") == f"{engine}{version}"
    assert group.get("DBParameterGroupName") is group.get("DBClusterParameterGroupName") is None


def test_a_major_upgrade_is_allowed_by_a_parameter():
    """It is refused until an operator says so."""
    for given in ("false", "true"):
        instance = variant(AllowMajorVersionUpgrade=given).resource("database", "Instance")
        assert str(instance.get("AllowMajorVersionUpgrade")).lower() == given


RESTORES = {
    "snapshot": {"SnapshotIdentifier": "before-the-accident"},
    "latest": {"RestoreSource": "db-ABC123"},
    "time": {"RestoreSource": "db-ABC123", "RestoreTime": "2026-11-28T09:00:00Z"},
}
STARTS_FROM = {
    ("rds", "snapshot"): {"DBSnapshotIdentifier"},
    ("rds", "latest"): {"SourceDbiResourceId", "UseLatestRestorableTime"},
    ("rds", "time"): {"SourceDbiResourceId", "RestoreTime"},
    ("aurora-serverless", "snapshot"): {"SnapshotIdentifier"},
    ("aurora-serverless", "latest"): {"SourceDbClusterResourceId", "UseLatestRestorableTime"},
    ("aurora-serverless", "time"): {"SourceDbClusterResourceId", "RestoreToTime"},
}


@pytest.mark.parametrize(("kind", "how"), STARTS_FROM)
def test_a_restored_database_has_what_its_source_has(kind, how):
    """Names and encryption are inherited, and RDS or CloudFormation refuse or ignore them."""
    logical_id, name = KINDS[kind]
    database = variant(Kind=kind, **RESTORES[how]).resource("database", logical_id)
    sources = {each for found in STARTS_FROM.values() for each in found}
    assert {each for each in sources if database.get(each) is not None} == STARTS_FROM[kind, how]
    for inherited in (name, "MasterUsername", "StorageEncrypted", "KmsKeyId"):
        assert database.get(inherited) is None
    assert database.get("ManageMasterUserPassword") is True


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_database_starts_from_nothing(kind):
    """It is encrypted, and has an owner and a first database."""
    logical_id, name = KINDS[kind]
    database = variant(Kind=kind).resource("database", logical_id)
    assert not any(database.get(each) for found in STARTS_FROM.values() for each in found)
    assert database.get("StorageEncrypted") is True
    assert database.get(name)
    assert database.get("MasterUsername")


def test_dev_leaves_the_final_snapshot_alone():
    """Automated backups that outlive the database cost money that a sandbox should not."""
    for environment in ENVIRONMENTS:
        instance = deployment_of(environment).resource("database", "Instance")
        assert instance.get("DeleteAutomatedBackups") is (environment == "dev")


def test_extended_support_is_chosen(any_deployment):
    """RDS's default keeps an old version for a price per vCPU hour."""
    for database in any_deployment.of_type("AWS::RDS::DBInstance", "AWS::RDS::DBCluster"):
        if database.get("DBInstanceClass") != "db.serverless":
            support = database.get("EngineLifecycleSupport")
            assert support == "open-source-rds-extended-support-disabled"


@pytest.mark.parametrize("kind", KINDS)
def test_extended_support_is_not_named_where_it_is_wanted(kind):
    """It is RDS's default, and an older stack may neither set nor change the property."""
    database = variant(Kind=kind, ExtendedSupport="true").resource("database", KINDS[kind][0])
    assert database.get("EngineLifecycleSupport") is None


# -- RDS Proxy ------------------------------------------------------------------------------


def metrics(deployment):
    """Give every metric that alarms and the dashboard read: name, statistic, dimensions."""
    for alarm in deployment.of_type("AWS::CloudWatch::Alarm"):
        if alarm.get("MetricName"):
            names = {each["Name"] for each in alarm.get("Dimensions") or []}
            yield alarm.get("MetricName"), alarm.get("Statistic"), names
        for each in alarm.get("Metrics") or []:
            if stat := each.get("MetricStat"):
                names = {one["Name"] for one in stat["Metric"].get("Dimensions", [])}
                yield stat["Metric"]["MetricName"], stat["Stat"], names
    body = deployment.resource("dashboard", "Dashboard").get("DashboardBody")
    parts = getattr(body, "parts", (body,))
    text = "".join(part if isinstance(part, str) else "later" for part in parts)
    for widget in json.loads(text)["widgets"]:
        shown, named = widget["properties"], []
        for line in shown["metrics"]:
            options = line[-1] if isinstance(line[-1], dict) else {}
            if line[0] != "...":  # which repeats the line before
                named = [each for each in line if isinstance(each, str)]
            if named:  # else it is an expression
                yield named[1], options.get("stat", shown.get("stat")), set(named[2::2])


def test_a_proxys_metrics_are_summed():
    """Each of its hosts reports its own number (RDS User Guide, "Monitoring RDS Proxy metrics")."""
    found = [each for each in metrics(deployment_of("high_traffic")) if "ProxyName" in each[2]]
    assert len(found) >= 3
    assert {statistic for _, statistic, _ in found} == {"Sum"}


def test_a_proxy_runs_no_query_first(any_deployment):
    """The documented form of several settings is MySQL's, which PostgreSQL refuses."""
    for group in any_deployment.of_type("AWS::RDS::DBProxyTargetGroup"):
        assert "InitQuery" not in group.get("ConnectionPoolConfigurationInfo")


def test_a_proxy_keeps_no_more_than_it_opens(any_deployment):
    """RDS refuses a share of idle connections above the share of all."""
    for group in any_deployment.of_type("AWS::RDS::DBProxyTargetGroup"):
        pool = group.get("ConnectionPoolConfigurationInfo")
        assert float(pool["MaxIdleConnectionsPercent"]) <= float(pool["MaxConnectionsPercent"])


# -- alarms ---------------------------------------------------------------------------------


def test_little_memory_is_a_share_of_the_class(deployment):
    """The alarm is raised at 4 to 6 percent: below that the system takes what it needs itself."""
    instance = deployment.resource("database", "Instance").get("DBInstanceClass")
    alarm = deployment.resource("database", "MemoryAlarm")
    megabytes = class_size(instance).gib * 1024
    assert 0.04 <= float(alarm.get("Threshold")) / megabytes <= 0.06


def test_burstable_classes_have_an_alarm_on_their_credits(deployment):
    """Other classes have no such metric, and no such alarm."""
    instance = deployment.resource("database", "Instance").get("DBInstanceClass")
    names = {alarm.get("MetricName") for alarm in deployment.of_type("AWS::CloudWatch::Alarm")}
    assert ("CPUCreditBalance" in names) is instance.startswith("db.t")


def test_transaction_ids_are_read_where_they_are_reported(any_deployment):
    """RDS and Aurora report them by instance."""
    alarm = any_deployment.resource("database", "TransactionIdsAlarm")
    assert [each["Name"] for each in alarm.get("Dimensions")] == ["DBInstanceIdentifier"]
    assert 200_000_000 < int(alarm.get("Threshold")) < 2_000_000_000


def test_the_storage_alarm_comes_after_rds_should_have_grown_it(deployment):
    """RDS grows below 10 percent, to MaxAllocatedStorage, which is 10 percent more or above."""
    alarm = deployment.resource("database", "StorageAlarm")
    assert float(alarm.get("Threshold")) < 10
    instance = deployment.resource("database", "Instance")
    allocated = float(instance.get("AllocatedStorage"))
    assert float(instance.get("MaxAllocatedStorage")) >= 1.1 * allocated


def test_what_rds_does_is_notified_where_there_is_a_topic():
    """Failures and failovers have no metric."""
    topic = "arn:aws:sns:eu-central-1:123456789012:alarms"
    (events,) = variant(AlarmTopicArn=topic).of_type("AWS::RDS::EventSubscription")
    assert events.get("SnsTopicArn") == topic
    assert {"failure", "failover"} <= set(events.get("EventCategories"))
    without = variant(AlarmTopicArn="")
    silent = variant(AlarmTopicArn=topic, EventNotifications="false")
    for each in (without, silent):
        assert each.of_type("AWS::RDS::EventSubscription") == []
