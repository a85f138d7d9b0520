"""`poolkit destroy` removes only what was meant."""

import re

import boto3
import pytest
from deploy.test_deploy import bucket, deploy, on_terminal, statuses
from poolkit_command import refused, succeeded

from poolkit.deploy.aws import Aws
from poolkit.deploy.removal import protected_resources

__all__ = ["bucket"]  # a fixture


def destroy(poolkit, target, name, environment="dev"):
    return poolkit("destroy", target, "-e", environment, "--yes-delete", name)


@pytest.mark.parametrize("name", ["shop-prod-network", ""])
def test_another_name_removes_nothing(poolkit, name):
    """The name to type is the stack's own."""
    assert deploy(poolkit, "network").returncode == 0
    refused(destroy(poolkit, "network", name), f"wanted the name shop-dev-network, found {name!r}")
    assert list(statuses()) == ["shop-dev-network"]


@pytest.mark.parametrize(("typed", "left"), [("shop-dev-network\n", 0), ("network\n", 1)])
def test_the_name_is_typed_on_a_terminal(poolkit, shop, aws, typed, left):
    """Typed in full the stack goes; typed otherwise it stays."""
    assert deploy(poolkit, "network").returncode == 0
    code, shown = on_terminal(["destroy", "network", "-e", "dev"], shop, aws, typed)
    assert "Type shop-dev-network to remove it" in shown
    assert code == (2 if left else 0)
    assert len(statuses()) == left


def test_without_a_terminal_the_name_must_be_given(poolkit):
    """CI gets an error that names the option."""
    refused(poolkit("destroy", "network", "-e", "dev"), "pass --yes-delete NAME")


def test_what_others_use_is_not_removed(poolkit):
    """The network stays while the database refers to it."""
    assert deploy(poolkit, "network").returncode == 0
    assert deploy(poolkit, "database").returncode == 0
    answer = destroy(poolkit, "network", "shop-dev-network")
    refused(
        answer, "shop-dev-database uses outputs of shop-dev-network. Next: poolkit destroy data"
    )
    assert len(statuses()) == 2


def test_a_protected_stack_stays_until_that_is_lifted(poolkit):
    """Termination protection is set by the environment; one more option removes both."""
    assert deploy(poolkit, "network", environment="prod").returncode == 0
    assert "yes" in poolkit("status", "-e", "prod").stdout
    words = ("destroy", "network", "-e", "prod", "--yes-delete")
    message = "termination protection of the stack. Next: poolkit destroy network --environment pr"
    refused(poolkit(*words, "shop-prod-network"), message, "--lift-protection")
    # Nothing is lifted before the name is typed.
    refused(poolkit(*words, "shop", "--lift-protection"), "wanted the name shop-prod-network")
    assert "yes" in poolkit("status", "-e", "prod").stdout
    succeeded(poolkit(*words, "shop-prod-network", "--lift-protection"), "lifted: termination")
    assert statuses() == {}


DATABASE = """\
  Instance:
    Type: AWS::RDS::DBInstance
    Properties:
      DBInstanceIdentifier: shop
      DBInstanceClass: db.t4g.micro
      Engine: postgres
      AllocatedStorage: "20"
      MasterUsername: shop
      MasterUserPassword: for-moto-alone
      DeletionProtection: true
Outputs:
"""
LOAD_BALANCER = """\
  Subnet:
    Type: AWS::EC2::Subnet
    Properties: {VpcId: !Ref Vpc, CidrBlock: 10.7.0.0/24}
  Balancer:
    Type: AWS::ElasticLoadBalancingV2::LoadBalancer
    Properties:
      Name: shop
      Subnets: [!Ref Subnet]
      LoadBalancerAttributes:
        - {Key: deletion_protection.enabled, Value: "true"}
Outputs:
"""


def with_resource(shop, resource):
    template = shop / "infra/network.yaml"
    template.write_text(template.read_text().replace("Outputs:\n", resource))
    return template


@pytest.mark.parametrize(
    ("resource", "named", "lifted"),
    [
        (DATABASE, r"deletion protection of the database shop", ("tion: true", "tion: false")),
        (LOAD_BALANCER, r"deletion protection of the load balancer arn:", ('"true"', '"false"')),
    ],
    ids=["database", "load balancer"],
)
def test_what_aws_would_refuse_to_remove_keeps_its_stack_whole(
    poolkit, shop, resource, named, lifted
):
    """A resource's own protection is seen before anything is removed, and lifted by deploying."""
    template = with_resource(shop, resource)
    assert deploy(poolkit, "network").returncode == 0
    answer = destroy(poolkit, "network", "shop-dev-network")
    assert answer.returncode == 2
    assert re.search(named, answer.stderr)
    assert statuses() == {"shop-dev-network": "CREATE_COMPLETE"}

    template.write_text(template.read_text().replace(*lifted))
    assert deploy(poolkit, "network").returncode == 0
    assert not re.search(named, destroy(poolkit, "network", "shop-dev-network").stderr)


def test_a_database_removed_by_hand_protects_nothing(poolkit, shop):
    """The stack still lists it, but AWS does not find it."""
    with_resource(shop, DATABASE.replace("tion: true", "tion: false"))
    assert deploy(poolkit, "network").returncode == 0
    boto3.client("rds").delete_db_instance(DBInstanceIdentifier="shop", SkipFinalSnapshot=True)
    assert list(protected_resources(Aws("eu-central-1"), "shop-dev-network")) == []


class Listing:
    """Answers with a stack's resources, as ListStackResources documents it."""

    def __init__(self, **statuses):
        self.statuses = statuses

    def get_paginator(self, name):
        return self

    def paginate(self, StackName):  # noqa: N803 - boto3's name
        kind = {"ResourceType": "AWS::RDS::DBInstance"}
        summaries = [
            kind | {"LogicalResourceId": name, "PhysicalResourceId": name, "ResourceStatus": status}
            for name, status in self.statuses.items()
        ]
        return [{"StackResourceSummaries": summaries}]


@pytest.mark.parametrize(
    ("status", "named"),
    [("CREATE_COMPLETE", ["deletion protection of the database shop"]), ("DELETE_COMPLETE", [])],
)
def test_what_a_stack_has_removed_is_not_its_own_any_more(poolkit, shop, status, named):
    """After a failed creation its database is still listed; a new one may have the name since."""
    with_resource(shop, DATABASE)
    assert deploy(poolkit, "network").returncode == 0
    aws = Aws("eu-central-1")
    aws.cloudformation = Listing(shop=status)
    found = protected_resources(aws, "shop-dev-network")
    assert [each.label for each in found] == named


def test_removing_nothing_is_a_success(poolkit):
    """Without a stack there is no name to type."""
    answer = destroy(poolkit, "all", "shop-dev")
    assert answer.returncode == 0
    assert answer.stdout.startswith("nothing to remove")


def test_a_failed_removal_says_the_first_cause(poolkit):
    """Exit status 1; another removal succeeds once the cause is gone."""
    assert deploy(poolkit, "network").returncode == 0
    ec2 = boto3.client("ec2")
    (vpc,) = ec2.describe_vpcs(Filters=[{"Name": "cidr", "Values": ["10.7.0.0/16"]}])["Vpcs"]
    subnet = ec2.create_subnet(VpcId=vpc["VpcId"], CidrBlock="10.7.1.0/24")["Subnet"]
    answer = destroy(poolkit, "network", "shop-dev-network")
    assert answer.returncode == 1
    assert "ended in DELETE_FAILED. First cause: Vpc (AWS::EC2::VPC)" in answer.stderr
    assert "has dependencies and cannot be deleted" in answer.stderr
    again = deploy(poolkit, "network")
    assert "is in DELETE_FAILED: its deletion failed" in again.stderr
    ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    assert destroy(poolkit, "network", "shop-dev-network").returncode == 0
