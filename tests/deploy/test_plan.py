"""The plan as AWS's answers lead to it: what is replaced stands out, and data is not lost."""

import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from deploy.stacks_project import FILES
from rich.console import Console

from poolkit.deploy.change_set import Change, ChangeSet, print_plan
from poolkit.deploy.deployment import Deployment, DeployOptions
from poolkit.deploy.progress import cause_message, first_cause
from poolkit.errors import DeployError
from poolkit.project import Project


def resource_change(action, logical_id, type_, replacement=None, *properties):
    """Give a ResourceChange as DescribeChangeSet documents it."""
    found = {"Action": action, "LogicalResourceId": logical_id, "ResourceType": type_}
    if replacement:
        found["Replacement"] = replacement
    found["Details"] = [{"Target": {"Attribute": "Properties", "Name": n}} for n in properties]
    return found


CHANGES = [
    resource_change("Add", "Alarm", "AWS::CloudWatch::Alarm"),
    resource_change("Modify", "Service", "AWS::ECS::Service", "False", "DesiredCount"),
    resource_change("Modify", "Task", "AWS::ECS::TaskDefinition", "True", "Cpu"),
    resource_change("Modify", "Instance", "AWS::RDS::DBInstance", "True", "Engine", "Port"),
    resource_change("Modify", "Proxy", "AWS::RDS::DBProxy", "Conditional", "Auth"),
    resource_change("Remove", "Queue", "AWS::SQS::Queue"),
    resource_change("Dynamic", "Nested", "AWS::CloudFormation::Stack"),
]


def change_set(*changes):
    return ChangeSet(
        stack="shop-prod-web",
        target="web --environment prod",
        stack_id="arn:stack",
        id="arn:set",
        is_new=False,
        changes=tuple(map(Change.read, changes)),
    )


def printed(found):
    out = io.StringIO()
    print_plan(Console(file=out, width=120, highlight=False), found)
    return out.getvalue()


def test_replacements_come_first_and_in_capitals():
    """A reader of the first lines has seen the dangerous ones."""
    lines = printed(change_set(*CHANGES)).splitlines()
    actions = [line.split("  ")[0].strip() for line in lines[3:10]]
    replaced = ["REPLACE", "REPLACE", "MAY REPLACE", "MAY REPLACE"]
    assert actions == [*replaced, "remove", "modify", "add"]
    assert "Engine, Port" in lines[3]
    assert "2 to replace, 2 to may replace, 1 to remove, 1 to modify, 1 to add" in lines[10]


def test_what_holds_data_and_would_lose_it_is_named():
    """A replaced database and a removed queue; not a replaced task definition."""
    assert [change.logical_id for change in change_set(*CHANGES).losses] == ["Instance", "Queue"]
    assert "Instance (AWS::RDS::DBInstance) holds data" in printed(change_set(*CHANGES))


@pytest.mark.parametrize(
    ("change", "is_renamed"),
    [
        (("Modify", "A", "AWS::ElasticLoadBalancingV2::LoadBalancer", "True", "Scheme"), True),
        (("Modify", "A", "AWS::ElasticLoadBalancingV2::LoadBalancer", "False", "Tags"), False),
        (("Modify", "A", "AWS::ApiGatewayV2::Api", "Conditional", "Name"), True),
        (("Remove", "A", "AWS::CloudFront::Distribution"), True),
        (("Remove", "A", "AWS::EC2::EIP"), True),
        (("Add", "A", "AWS::EC2::EIP"), False),
        (("Modify", "A", "AWS::ECS::TaskDefinition", "True", "Cpu"), False),
    ],
)
def test_a_public_name_that_would_change_needs_a_second_agreement(tmp_path, change, is_renamed):
    """--yes alone does not replace it; --allow-new-name does."""
    found = change_set(resource_change(*change))
    assert bool(found.new_names) is is_renamed
    assert ("another public name or address" in printed(found)) is is_renamed
    if is_renamed:
        with pytest.raises(DeployError, match="pass --allow-new-name"):
            deployment_of(tmp_path, yes=True).agrees(found)
    assert deployment_of(tmp_path, yes=True, allow_new_name=True).agrees(found)


def test_an_update_is_undone_by_rolling_back_and_a_creation_by_removing():
    """The command is printed after Ctrl-C, while AWS goes on."""
    update = change_set()
    assert update.undo == "poolkit deploy web --environment prod --rollback"
    assert replace(update, is_new=True).undo == "poolkit destroy web --environment prod"


def test_a_change_of_outputs_alone_is_printed():
    """An empty table would look like nothing at all."""
    assert "no resource changes" in printed(change_set())


def deployment_of(folder, **options):
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    chosen = DeployOptions(target="web", environment="dev", **options)
    return Deployment(chosen, Project.find(folder))


@pytest.mark.parametrize("allowed", [False, True])
def test_yes_alone_does_not_agree_to_the_loss_of_data(tmp_path, allowed):
    """CI needs --allow-data-loss as well, which is not passed by habit."""
    deployment = deployment_of(tmp_path, yes=True, allow_data_loss=allowed)
    if allowed:
        assert deployment.agrees(change_set(*CHANGES))
    else:
        with pytest.raises(DeployError, match="Instance would lose its data"):
            deployment.agrees(change_set(*CHANGES))


def event(logical_id, status, reason="", type_="AWS::SQS::Queue", physical="id", *, day=21):
    return {
        "Timestamp": datetime(2026, 11, day, tzinfo=UTC),
        "StackId": "arn:stack",
        "PhysicalResourceId": physical,
        "LogicalResourceId": logical_id,
        "ResourceType": type_,
        "ResourceStatus": status,
        "ResourceStatusReason": reason,
    }


STACK = "AWS::CloudFormation::Stack"


class Nested:
    """Answers with one nested stack's events, newest first, as the paginator does."""

    def __init__(self, *events):
        self.events = events

    def get_paginator(self, name):
        assert name == "describe_stack_events"
        return self

    def paginate(self, StackName):  # noqa: N803 - boto3's name
        assert StackName == "arn:nested"
        return [{"StackEvents": list(self.events)[::-1]}]


def test_the_first_cause_is_found_inside_a_nested_stack():
    """The outer stack's event says no more than that the nested one failed."""
    inner = [
        event("Topic", "CREATE_FAILED", "Resource creation cancelled"),
        event("Key", "CREATE_FAILED", "no permission\nto make it", "AWS::KMS::Key"),
    ]
    outer = [
        event("Web", "CREATE_FAILED", "Embedded stack was not made", STACK, "arn:nested"),
        event("s", "ROLLBACK_IN_PROGRESS", "failed: [Web]", STACK, "arn:stack"),
    ]
    cause = first_cause(Nested(*inner), outer)
    assert cause_message(cause) == "Key (AWS::KMS::Key) CREATE_FAILED: no permission to make it"


def test_what_failed_in_a_nested_stack_months_ago_is_not_the_cause():
    """Its events are all that it ever had; those before this operation say nothing of it."""
    inner = [
        event("Role", "UPDATE_FAILED", "repaired since", "AWS::IAM::Role", day=1),
        event("Key", "UPDATE_FAILED", "no permission", "AWS::KMS::Key"),
    ]
    outer = [
        event("s", "UPDATE_IN_PROGRESS", "", STACK, "arn:stack", day=20),
        event("Web", "UPDATE_FAILED", "Embedded stack was not updated", STACK, "arn:nested"),
    ]
    assert first_cause(Nested(*inner), outer)["LogicalResourceId"] == "Key"


def test_without_a_failed_resource_there_is_no_cause():
    """A stack that was rolled back by hand has no failed resource."""
    assert first_cause(None, [event("s", "ROLLBACK_IN_PROGRESS", "", STACK, "arn:stack")]) is None
