"""Permissions that AWS would not grant as they are written: wrong resources, names, sizes.

The resources that each action knows are those of the Service Authorization Reference, as cfn-lint
ships them.
"""

import fnmatch
import functools
import json
import re
from importlib.resources import files

import botocore
import botocore.session
import pytest
from infra.deployed import ENVIRONMENTS, INFRA, Deployment, deployment_of
from infra.test_bootstrap import GITHUB, role_statements, statements_of, with_github
from infra.test_network_rules import template
from infra.test_policies import as_list

from poolkit.deploy.environment import PREPARED

ROOT = INFRA.parent
LONGEST = template("access")["Parameters"]["StackFamily"]["MaxLength"]
FAMILY = "f" * LONGEST

RANDOM = 13
"""What CloudFormation appends to a name: a hyphen and twelve characters."""

LIMITS = {"AWS::IAM::Role": 64, "AWS::IAM::ManagedPolicy": 128, "AWS::S3::Bucket": 63}
"""The longest names of types that the access stack's roles know by their names."""

KINDS = {"AWS::IAM::Role": "role/", "AWS::IAM::ManagedPolicy": "policy/", "AWS::S3::Bucket": ":::"}

WORKS_WITH_A_RESOURCE = {"codedeploy:PutLifecycleEventHookExecutionStatus"}
"""The AWS SAM Developer Guide names the deployment group here ("Deploying gradually")."""


def deployments():
    return [with_github(), *map(deployment_of, (*ENVIRONMENTS, "aurora", "iam"))]


def policies(resource):
    """Give the policies of a role, or of a managed policy."""
    if resource.type == "AWS::IAM::Role":
        return [each["PolicyDocument"] for each in resource.properties.get("Policies", [])]
    if resource.type == "AWS::IAM::ManagedPolicy":
        return [{"Statement": statements_of(resource)}]
    return []


def all_policies():
    for deployment in deployments():
        for stack in deployment.stacks.values():
            for name, resource in stack.resources.items():
                for policy in policies(resource):
                    yield f"{stack.name}.{name}", resource, policy


def plain(value):
    """Give a value as an ARN would have it: account, partition and references are words."""
    if isinstance(value, str):
        return value
    parts = getattr(value, "parts", None)
    if parts is not None:
        return "".join(map(plain, parts))
    text = str(value)
    if "AWS::Partition" in text:
        return "aws"
    return "123456789012" if "AWS::AccountId" in text else "known-later"


@functools.cache
def reference(service):
    known = json.loads((files("cfnlint") / "data/AdditionalSpecs/Policies.json").read_text())
    return known[service]


def resource_patterns(service, kinds):
    formats = {name.lower(): each for name, each in reference(service)["Resources"].items()}
    for kind in kinds:
        for text in formats[kind.lower()]["ARNFormats"]:
            yield re.sub(r"\\?\$\\?\{\w+\\?\}", "[^:]*", text)


def refused(action, resources):
    """Return whether the action knows no kind of resource in the list."""
    service, _, name = action.partition(":")
    known = reference(service)["Actions"].get(name.lower())
    assert known is not None, f"{action} is no action"
    if "*" in resources or action in WORKS_WITH_A_RESOURCE:
        return False
    # Another resource's ARN; and a transform's, which CloudFormation's User Guide has for macros.
    if any(not each.startswith("arn:") or ":transform/" in each for each in resources):
        return False
    arns = [each.replace("*", "x") for each in resources]
    kinds = known.get("Resources", ())
    return not any(
        re.fullmatch(pattern, arn) for pattern in resource_patterns(service, kinds) for arn in arns
    )


def test_an_allowed_action_knows_its_resource():
    """An action without resources needs "*", and any other one an ARN of its kind."""
    found, wrong = 0, set()
    for name, _, policy in all_policies():
        for statement in policy["Statement"]:
            if statement["Effect"] != "Allow":
                continue
            resources = [plain(each) for each in as_list(statement["Resource"])]
            for action in as_list(statement["Action"]):
                if "*" in action:
                    assert resources == ["*"] or action == "s3:*", (name, action)
                    continue
                found += 1
                if refused(action, resources):
                    wrong.add((name, action, *resources))
    assert found > 200
    assert sorted(wrong) == []


@pytest.mark.parametrize(
    ("action", "resource", "wanted"),
    [
        ("ecs:DeregisterTaskDefinition", "arn:aws:ecs:eu-west-1:1:task-definition/a:*", True),
        ("ecs:DeregisterTaskDefinition", "*", False),
        ("ecs:DescribeTasks", "arn:aws:ecs:eu-west-1:1:cluster/a", True),
        ("ecs:DescribeTasks", "arn:aws:ecs:eu-west-1:1:task/a/*", False),
    ],
)
def test_a_wrong_resource_is_found(action, resource, wanted):
    """The rule above refuses what IAM would never match."""
    assert refused(action, [resource]) is wanted


def test_policies_are_within_iams_limits():
    """10240 characters in a role, 6144 in a managed policy, with the longest names."""
    limits = {"AWS::IAM::Role": 10_240, "AWS::IAM::ManagedPolicy": 6_144}
    found = {}
    for stack in with_github().stacks.values():
        for name, resource in stack.resources.items():
            if written := policies(resource):
                text = json.dumps(written, default=plain).replace("poolkit-prod", FAMILY)
                # IAM counts no white space; a reference is an ARN.
                text = re.sub(r"\s", "", text).replace("known-later", "k" * 90)
                found[f"{stack.name}.{name}"] = len(text), limits[resource.type]
    assert {"access.ExecutionRole", "access.DeployPolicy"} <= found.keys()
    assert {name: sizes for name, sizes in found.items() if sizes[0] > sizes[1]} == {}


# -- names that CloudFormation makes --------------------------------------------------------


def made_name(stack, logical_id, limit):
    """Return the name of a resource without one of its own.

    AWS documents no rule. Names that are public show this one: where it is too long, what the random
    end leaves of the limit is halved, and the stack's half is the longer one.
    """
    if len(stack) + 1 + len(logical_id) + RANDOM <= limit:
        return f"{stack}-{logical_id}-{'x' * (RANDOM - 1)}"
    room = limit - RANDOM - 1
    return f"{stack[: (room + 1) // 2]}-{logical_id[: room // 2]}-{'x' * (RANDOM - 1)}"


@pytest.mark.parametrize(
    ("stack", "logical_id", "kind", "wanted"),
    [
        ("SomeAnalyticsStackInFull01", "A" * 40, "AWS::IAM::Role", "SomeAnalyticsStackInFull0"),
        ("SomeAnalyticsStackInFull01", "A" * 40, "AWS::S3::Bucket", "SomeAnalyticsStackInFull0"),
        (
            "poolkit-high-traffic-migrate",
            "TaskRole",
            "AWS::IAM::Role",
            "poolkit-high-traffic-migrate",
        ),
    ],
)
def test_a_long_name_is_cut(stack, logical_id, kind, wanted):
    """25 characters of the stack's name are left where the whole is too long."""
    made = made_name(stack, logical_id, LIMITS[kind])
    assert made.startswith(f"{wanted}-")
    assert len(made) <= LIMITS[kind]


def own_resources():
    """Give what the stacks make that the access stack's roles know by its name."""
    for deployment in deployments():
        for stack in deployment.stacks.values():
            for name, resource in stack.resources.items():
                if resource.type in LIMITS and stack.name != "bootstrap":
                    yield stack.name, name, resource.type


def patterns_of(role, kind):
    """Give the ends of the ARNs that a role may change, of one kind of resource."""
    for statement in role_statements(role):
        if statement["Effect"] == "Allow":
            for resource in as_list(statement["Resource"]):
                text = plain(resource).replace("poolkit-prod", FAMILY)
                if KINDS[kind] in text and FAMILY in text:
                    yield text.rpartition(KINDS[kind])[2]


def test_roles_recognise_what_the_longest_names_become():
    """CloudFormation may change the environment's roles, policies and buckets, whatever the prefix."""
    found = set(own_resources())
    assert {kind for _, _, kind in found} == set(LIMITS)
    for stack, name, kind in found - {each for each in found if each[0] in PREPARED}:
        made = made_name(f"{FAMILY}-{stack}", name, LIMITS[kind])
        assert any(
            fnmatch.fnmatchcase(made, each) for each in patterns_of("ExecutionRole", kind)
        ), made


@pytest.mark.parametrize("stack", ["access", "migrate"])
def test_roles_that_are_named_are_not_cut(stack):
    """What is denied in the access stack, and passed to migrations, keeps the stack's whole name."""
    for of, name, kind in set(own_resources()):
        if of == stack:
            made = made_name(f"{FAMILY}-{stack}", name, LIMITS[kind])
            assert made.startswith(f"{FAMILY}-{stack}-"), made


@pytest.mark.parametrize(
    ("table", "parameter", "value", "is_allowed"),
    [
        ("access", "StackFamily", "shop-prod", True),
        ("access", "StackFamily", "shop-high-traffic", True),
        ("access", "StackFamily", "Shop-prod", False),
        ("access", "StackFamily", "shop--prod", False),
        ("access", "StackFamily", "aws-shop-prod", False),
        ("bootstrap", "NamePrefix", "shop", True),
        ("bootstrap", "NamePrefix", "shop-", False),
        ("bootstrap", "NamePrefix", "my--shop", False),
    ],
)
def test_names_are_those_that_every_service_takes(table, parameter, value, is_allowed):
    """Buckets have no capitals; ECR and RDS refuse two hyphens, and one at the end."""
    declared = template(table)["Parameters"][parameter]
    assert bool(re.fullmatch(declared["AllowedPattern"], value)) is is_allowed


def test_every_environment_has_a_name_that_is_short_enough():
    """The longest of the sample's is high_traffic."""
    for name in ENVIRONMENTS:
        family = Deployment(name, GITHUB).tables["access"]["StackFamily"].value
        assert len(family) <= LONGEST


# -- the tasks ------------------------------------------------------------------------------


def test_a_container_has_no_more_files_than_fargate_documents():
    """Amazon ECS API Reference, Ulimit: nofile has a hard limit of 65535 on Fargate."""
    found = [
        limit
        for name in ENVIRONMENTS
        for container in deployment_of(name).containers()
        for limit in container.definition.get("Ulimits", [])
    ]
    assert found
    for limit in found:
        assert limit["Name"] == "nofile"
        assert limit["SoftLimit"] <= limit["HardLimit"] <= 65535


# -- what poolkit asks of AWS ---------------------------------------------------------------

SERVICES = {
    name: name for name in ("acm", "cloudformation", "ecr", "ecs", "logs", "rds", "s3", "ssm")
} | {"elbv2": "elasticloadbalancing"}
"""The prefixes of IAM's actions, by the names of boto3's clients."""

BY_HAND = {
    *("rds:ModifyDBInstance", "rds:ModifyDBCluster"),
    "elasticloadbalancing:ModifyLoadBalancerAttributes",
}
"""Only `poolkit destroy --lift-protection` does this, which no pipeline does."""


@functools.cache
def operations():
    """Give IAM's actions by the names of boto3's methods."""
    session, found = botocore.session.get_session(), {}
    for client, service in SERVICES.items():
        for operation in session.get_service_model(client).operation_names:
            action = "GetObject" if operation == "HeadObject" else operation
            found.setdefault(botocore.xform_name(operation), set()).add(f"{service}:{action}")
    return found


def called():
    """Give the actions of each call of AWS that a deployment makes; several where a name is shared."""
    for file in (ROOT / "poolkit/deploy").rglob("*.py"):
        if "rehearsal" in file.parts or file.name == "bootstrap.py":
            continue
        text = file.read_text()
        names = set(re.findall(r"\.(\w+_\w+)\(|get_paginator\(\"(\w+)\"\)", text))
        for name in {either for pair in names for either in pair} & operations().keys():
            yield name, operations()[name]


def test_the_deploy_role_may_do_what_poolkit_calls():
    """A call that is missing would be found by the first pipeline in an account."""
    policies_of_role = [
        with_github().resource("access", name) for name in ("PlanPolicy", "DeployPolicy")
    ]
    allowed = {
        action
        for statement in [
            *(each for policy in policies_of_role for each in statements_of(policy)),
            *role_statements("DeployRole"),
        ]
        if statement["Effect"] == "Allow"
        for action in as_list(statement["Action"])
    }
    found = dict(called())
    assert {"create_change_set", "run_task", "batch_get_image", "put_parameter"} <= found.keys()
    lacking = {
        name: actions for name, actions in found.items() if not actions & (allowed | BY_HAND)
    }
    assert lacking == {}
