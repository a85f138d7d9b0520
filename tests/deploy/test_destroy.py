"""`poolkit destroy` removes only what was meant."""

import boto3
import pytest
from deploy.test_deploy import bucket, deploy, on_terminal, statuses

__all__ = ["bucket"]  # a fixture


def destroy(poolkit, target, name, environment="dev"):
    return poolkit("destroy", target, "-e", environment, "--yes-delete", name)


@pytest.mark.parametrize("name", ["shop-prod-network", ""])
def test_another_name_removes_nothing(poolkit, name):
    """The name that is asked for is the stack's own."""
    assert deploy(poolkit, "network").returncode == 0
    answer = destroy(poolkit, "network", name)
    assert answer.returncode == 2
    assert f"wanted the name shop-dev-network, found {name!r}" in answer.stderr
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
    answer = poolkit("destroy", "network", "-e", "dev")
    assert answer.returncode == 2
    assert "pass --yes-delete NAME" in answer.stderr


def test_what_others_use_is_not_removed(poolkit):
    """The network stays while the database refers to it."""
    assert deploy(poolkit, "network").returncode == 0
    assert deploy(poolkit, "database").returncode == 0
    answer = destroy(poolkit, "network", "shop-dev-network")
    assert answer.returncode == 2
    assert "shop-dev-database uses outputs of shop-dev-network; destroy database" in answer.stderr
    assert len(statuses()) == 2


def test_a_protected_stack_stays_and_the_way_out_is_shown(poolkit):
    """Termination protection is set by the environment, and lifted by hand alone."""
    assert deploy(poolkit, "network", environment="prod").returncode == 0
    assert "yes" in poolkit("status", "-e", "prod").stdout
    answer = destroy(poolkit, "network", "shop-prod-network", environment="prod")
    assert answer.returncode == 2
    assert "--no-enable-termination-protection --stack-name shop-prod-network" in answer.stderr
    boto3.client("cloudformation").update_termination_protection(
        StackName="shop-prod-network", EnableTerminationProtection=False
    )
    assert destroy(poolkit, "network", "shop-prod-network", environment="prod").returncode == 0


PROTECTED = """\
  Instance:
    Type: AWS::RDS::DBInstance
    Properties:
      DBInstanceIdentifier: shop
      DBInstanceClass: db.t4g.micro
      Engine: postgres
      AllocatedStorage: "20"
      MasterUsername: shop
      MasterUserPassword: for-moto-alone
Outputs:
"""


def test_a_protected_database_stays_with_its_stack(poolkit, shop):
    """RDS's own protection is seen before anything is removed."""
    template = shop / "infra/network.yaml"
    template.write_text(template.read_text().replace("Outputs:\n", PROTECTED))
    made = deploy(poolkit, "network")
    assert made.returncode == 0, made.stderr
    # A gap of moto's: the property of that name in a template is not handed on.
    boto3.client("rds").modify_db_instance(DBInstanceIdentifier="shop", DeletionProtection=True)
    answer = destroy(poolkit, "network", "shop-dev-network")
    assert answer.returncode == 2
    assert "the database shop has deletion protection" in answer.stderr
    assert list(statuses()) == ["shop-dev-network"]


def test_removing_nothing_is_a_success(poolkit):
    """What is not there needs no name."""
    answer = destroy(poolkit, "all", "shop-dev")
    assert (answer.returncode, answer.stdout) == (
        0,
        "nothing to remove: none of the stacks is there\n",
    )


def test_a_failed_removal_says_the_first_cause(poolkit):
    """Exit status 1; the stack is finished off once the cause is gone."""
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
