"""Connections between security groups: allowed on both sides, and described as EC2 takes it."""

import re

import pytest
from infra.deployed import ENVIRONMENTS, deployment_of
from infra.test_policies import as_list

GROUP = "AWS::EC2::SecurityGroup"
SIDES = {"Ingress": "SourceSecurityGroupId", "Egress": "DestinationSecurityGroupId"}

DESCRIPTION = re.compile(r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{0,255}")
"""What EC2 takes (API Reference, CreateSecurityGroup, and IpRange)."""


@pytest.fixture(params=[*ENVIRONMENTS, "aurora"], scope="module")
def any_environment(request):
    return deployment_of(request.param)


def key(value):
    """Give the stack and the name of the group that a value refers to."""
    assert hasattr(value, "logical_id"), f"{value!r} is no group of these stacks"
    return value.stack, value.logical_id


def rules(deployment):
    """Give each rule of each group: its side, the group, the rule."""
    for group in deployment.of_type(GROUP):
        for side in SIDES:
            for rule in as_list(group.properties.get(f"SecurityGroup{side}", [])):
                yield side, (group.stack.name, group.logical_id), rule
    for side in SIDES:
        for each in deployment.of_type(f"{GROUP}{side}"):
            yield side, key(each.get("GroupId")), each.properties


def between(deployment):
    """Give what each side allows, from a group to a group: protocol and ports."""
    found = {side: set() for side in SIDES}
    for side, group, rule in rules(deployment):
        if (other := rule.get(SIDES[side])) is None:
            continue
        pair = (key(other), group) if side == "Ingress" else (group, key(other))
        ports = tuple(str(rule[name]) for name in ("IpProtocol", "FromPort", "ToPort"))
        found[side].add((*pair, ports))
    return found


def test_what_one_group_sends_the_other_accepts(any_environment):
    """A rule on one side alone would time out without a message."""
    found = between(any_environment)
    assert found["Ingress"]
    assert found["Ingress"] ^ found["Egress"] == set()


def test_no_group_keeps_the_rule_that_allows_everything(any_environment):
    """A group without rules for outgoing traffic gets one to every address."""
    for group in any_environment.of_type(GROUP):
        assert group.properties.get("SecurityGroupEgress"), group.logical_id


def test_descriptions_are_those_that_ec2_takes(any_environment):
    """No apostrophe, among others; cfn-lint does not know this."""
    texts = [each.get("GroupDescription") for each in any_environment.of_type(GROUP)]
    texts += [rule.get("Description", "") for _, _, rule in rules(any_environment)]
    assert [text for text in texts if not DESCRIPTION.fullmatch(text)] == []


def containers_and_functions(deployment):
    """Give the groups of every service and function, with its stack."""
    for service in deployment.of_type("AWS::ECS::Service"):
        network = service.get("NetworkConfiguration", "AwsvpcConfiguration")
        yield service, [key(each) for each in network["SecurityGroups"]]
    for function in deployment.of_type("AWS::Lambda::Function"):
        if network := function.properties.get("VpcConfig"):
            yield function, [key(each) for each in network["SecurityGroupIds"]]


def test_every_workload_reaches_the_endpoints(any_environment):
    """Images, secrets, queues and logs come through them: there is no other way out."""
    allowed = between(any_environment)["Egress"]
    found = list(containers_and_functions(any_environment))
    assert len(found) >= 4
    for resource, groups in found:
        to = {target for source, target, ports in allowed if source in groups and "443" in ports}
        assert ("network", "EndpointSecurityGroup") in to, resource.logical_id


def test_every_client_reaches_what_it_connects_to(any_environment):
    """Database, proxy and PgBouncer accept the groups of whatever has their host."""
    servers = {
        "Instance": ("database", "DatabaseSecurityGroup"),
        "Cluster": ("database", "DatabaseSecurityGroup"),
        "Proxy": ("proxy", "ProxySecurityGroup"),
        "LoadBalancer": ("pgbouncer", "LoadBalancerSecurityGroup"),
    }
    hosts = {
        each.template: each.variables["DATABASE_HOST"]
        for each in any_environment.deployables()
        if "DATABASE_HOST" in each.variables
    }
    allowed, found = between(any_environment)["Egress"], set()
    for resource, groups in containers_and_functions(any_environment):
        if (host := hosts.get(resource.stack.name)) is None:
            continue
        if resource.stack.name == "loadtest" and "Worker" in resource.logical_id:
            continue  # only the master watches the database
        _, name = key(host)
        target = servers[name]
        assert any(source in groups and to == target for source, to, _ in allowed), (
            resource.stack.name,
            resource.logical_id,
        )
        found.add(resource.stack.name)
    assert {"lambda", "web", "worker", "loadtest"} <= found
