"""Each gap of moto that `moto_gaps.py` fills is still there; a failure here is good news."""

import re

import boto3
import pytest
from botocore.exceptions import ClientError
from deploy.stacks_project import NETWORK, STACK_NAME
from moto import mock_aws

FAILING = """\
Resources:
  Bucket: {Type: AWS::S3::Bucket, Properties: {BucketName: x}}
"""


@pytest.fixture
def cloudformation(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("cloudformation", region_name="eu-central-1")


def make(cloudformation, template):
    named = {"StackName": "s", "ChangeSetName": "c"}
    cloudformation.create_change_set(**named, ChangeSetType="CREATE", TemplateBody=template)
    cloudformation.execute_change_set(**named)
    (stack,) = cloudformation.describe_stacks(StackName="s")["Stacks"]
    events = cloudformation.describe_stack_events(StackName="s")["StackEvents"]
    return stack, events


def test_outputs_events_and_duration(cloudformation):
    """A stack made by a change set is there at once, without outputs and resources' events."""
    stack, events = make(cloudformation, NETWORK)
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    assert "Outputs" not in stack
    assert {event["LogicalResourceId"] for event in events} == {"s"}


def test_names(cloudformation):
    """A name that the service's own description refuses is taken."""
    shape = cloudformation.meta.service_model.shape_for("StackNameOrId")
    name = "shop-high_traffic"
    assert not re.fullmatch(shape.metadata["pattern"], name)
    assert STACK_NAME in shape.metadata["pattern"]
    cloudformation.create_stack(StackName=name, TemplateBody=NETWORK)
    assert cloudformation.describe_stacks(StackName=name)["Stacks"]


@pytest.mark.filterwarnings("ignore:Tried to parse")
def test_proxy_targets(cloudformation):
    """The target of an RDS Proxy that cannot log in is made, as everything of an unknown type."""
    target = "{Type: AWS::RDS::DBProxyTargetGroup, Properties: {DBProxyName: p}}"
    stack, _ = make(cloudformation, f"Resources:\n  Target: {target}\n")
    assert stack["StackStatus"] == "CREATE_COMPLETE"


@pytest.mark.filterwarnings("ignore:Exception.InvalidBucketName")
def test_failures(cloudformation):
    """A failing resource fails the call."""
    with pytest.raises(ClientError, match="bucket is not valid"):
        make(cloudformation, FAILING)


def test_transforms(cloudformation):
    """A serverless function is a resource of an unknown type."""
    template = (
        "Transform: AWS::Serverless-2016-10-31\nResources:\n  F:\n"
        "    Type: AWS::Serverless::Function\n"
        "    Properties: {Runtime: python3.13, Handler: a.b, InlineCode: ''}\n"
    )
    with pytest.warns(UserWarning, match="AWS::Serverless::Function"):
        make(cloudformation, template)


@pytest.mark.parametrize(
    "method", ["cancel_update_stack", "rollback_stack", "continue_update_rollback"]
)
def test_rollback(cloudformation, method):
    """The calls are not there."""
    make(cloudformation, NETWORK)
    with pytest.raises((NotImplementedError, ClientError)):
        getattr(cloudformation, method)(StackName="s")


def test_protection(cloudformation):
    """A protected stack is deleted."""
    cloudformation.create_stack(
        StackName="s", TemplateBody=NETWORK, EnableTerminationProtection=True
    )
    cloudformation.delete_stack(StackName="s")
    assert cloudformation.describe_stacks()["Stacks"] == []


def test_plans_know_no_replacement(cloudformation):
    """Another CIDR replaces a VPC; moto says no more than that it changes."""
    make(cloudformation, NETWORK)
    cloudformation.create_change_set(
        StackName="s",
        ChangeSetName="d",
        ChangeSetType="UPDATE",
        TemplateBody=NETWORK.replace("CidrBlock: !Ref VpcCidr", "CidrBlock: 10.9.0.0/16"),
    )
    found = cloudformation.describe_change_set(StackName="s", ChangeSetName="d")
    (change,) = found["Changes"]
    assert change["ResourceChange"]["Action"] == "Modify"
    assert not change["ResourceChange"].get("Replacement")


def test_plans_know_no_changed_parameters(cloudformation):
    """A change set with another value of a parameter lists nothing."""
    make(cloudformation, NETWORK)
    cloudformation.create_change_set(
        StackName="s",
        ChangeSetName="d",
        ChangeSetType="UPDATE",
        TemplateBody=NETWORK,
        Parameters=[{"ParameterKey": "VpcCidr", "ParameterValue": "10.9.0.0/16"}],
    )
    assert cloudformation.describe_change_set(StackName="s", ChangeSetName="d")["Changes"] == []


@pytest.mark.usefixtures("cloudformation")
def test_static_parameters_need_no_reboot():
    """RDS reports no parameter's type, and every group as applied."""
    rds, name = boto3.client("rds", region_name="eu-central-1"), "of-x"
    rds.create_db_parameter_group(
        DBParameterGroupName=name, DBParameterGroupFamily="postgres17", Description="x"
    )
    rds.create_db_instance(
        DBInstanceIdentifier="x",
        DBInstanceClass="db.t4g.micro",
        Engine="postgres",
        MasterUsername="x",
        MasterUserPassword="12345678",
        AllocatedStorage=20,
        DBParameterGroupName=name,
    )
    more = {"ParameterName": "max_connections", "ParameterValue": "80"}
    rds.modify_db_parameter_group(
        DBParameterGroupName=name, Parameters=[more | {"ApplyMethod": "pending-reboot"}]
    )
    (instance,) = rds.describe_db_instances()["DBInstances"]
    assert instance["DBParameterGroups"][0]["ParameterApplyStatus"] == "in-sync"
    (parameter,) = rds.describe_db_parameters(DBParameterGroupName=name)["Parameters"]
    assert "ApplyType" not in parameter


PROTECTED = """\
Resources:
  Vpc: {Type: AWS::EC2::VPC, Properties: {CidrBlock: 10.0.0.0/16}}
  Subnet: {Type: AWS::EC2::Subnet, Properties: {VpcId: !Ref Vpc, CidrBlock: 10.0.0.0/24}}
  Balancer:
    Type: AWS::ElasticLoadBalancingV2::LoadBalancer
    Properties:
      Name: shop
      Subnets: [!Ref Subnet]
      LoadBalancerAttributes: [{Key: deletion_protection.enabled, Value: "true"}]
  Instance:
    Type: AWS::RDS::DBInstance
    Properties:
      DBInstanceClass: db.t4g.micro
      Engine: postgres
      AllocatedStorage: "20"
      MasterUsername: x
      ManageMasterUserPassword: true
      DeletionProtection: true
"""


def test_deletion_protection(cloudformation):
    """Neither a database nor a load balancer gets its own; the latter is deleted with it, too."""
    make(cloudformation, PROTECTED)
    rds = boto3.client("rds", region_name="eu-central-1")
    (database,) = rds.describe_db_instances()["DBInstances"]
    assert database["DeletionProtection"] is False
    elb = boto3.client("elbv2", region_name="eu-central-1")
    (balancer,) = elb.describe_load_balancers()["LoadBalancers"]
    named = {"LoadBalancerArn": balancer["LoadBalancerArn"]}
    protected = {"Key": "deletion_protection.enabled", "Value": "true"}
    assert protected not in elb.describe_load_balancer_attributes(**named)["Attributes"]
    elb.modify_load_balancer_attributes(**named, Attributes=[protected])
    elb.delete_load_balancer(**named)
    assert elb.describe_load_balancers()["LoadBalancers"] == []


PARAMETER_GROUP = """\
Resources:
  Group:
    Type: AWS::RDS::DBParameterGroup
    Properties: {Family: postgres17, Description: x}
  Instance:
    Type: AWS::RDS::DBInstance
    Properties:
      DBInstanceClass: db.t4g.micro
      Engine: postgres
      AllocatedStorage: "20"
      MasterUsername: x
      ManageMasterUserPassword: true
      DBParameterGroupName: !Ref Group
"""


def test_parameter_groups(cloudformation):
    """An RDS instance fails on the reference to its parameter group."""
    with pytest.raises(Exception, match="has no attribute 'startswith'"):
        make(cloudformation, PARAMETER_GROUP)


def test_aliases(cloudformation):
    """An alias is a resource of an unknown type."""
    template = (
        "Resources:\n  Live:\n    Type: AWS::Lambda::Alias\n"
        "    Properties: {FunctionName: f, FunctionVersion: '1', Name: live}\n"
    )
    with pytest.warns(UserWarning, match="AWS::Lambda::Alias"):
        make(cloudformation, template)


ROUTES = """\
Resources:
  Vpc: {Type: AWS::EC2::VPC, Properties: {CidrBlock: 10.0.0.0/16}}
  Routes: {Type: AWS::EC2::RouteTable, Properties: {VpcId: !Ref Vpc}}
"""


@pytest.mark.filterwarnings("ignore:Exception.DependencyViolationError")
def test_route_tables(cloudformation):
    """A stack with a VPC cannot be removed, because its route table stays."""
    make(cloudformation, ROUTES)
    with pytest.raises(ClientError, match="has dependencies"):
        cloudformation.delete_stack(StackName="s")


def test_secrets(cloudformation):
    """A secret is a resource of an unknown type."""
    template = (
        "Resources:\n  Login:\n    Type: AWS::SecretsManager::Secret\n"
        "    Properties: {SecretString: x}\n"
    )
    with pytest.warns(UserWarning, match="AWS::SecretsManager::Secret"):
        make(cloudformation, template)
    secrets = boto3.client("secretsmanager", region_name="eu-central-1")
    assert secrets.list_secrets()["SecretList"] == []


DATABASE = """\
Resources:
  Instance:
    Type: AWS::RDS::DBInstance
    Properties:
      DBInstanceClass: db.t4g.micro
      Engine: postgres
      AllocatedStorage: "20"
      MasterUsername: x
      ManageMasterUserPassword: true
Outputs:
  Secret: {Value: !GetAtt Instance.MasterUserSecret.SecretArn}
"""


def test_a_databases_secret(cloudformation):
    """The secret that RDS makes is no attribute of the instance in a template."""
    with pytest.raises(ClientError, match="does not support attribute type MasterUserSecret"):
        cloudformation.create_stack(StackName="s", TemplateBody=DATABASE)


SUBNET = """\
Resources:
  Vpc: {Type: AWS::EC2::VPC, Properties: {CidrBlock: 10.9.0.0/16}}
  Subnet: {Type: AWS::EC2::Subnet, Properties: {VpcId: !Ref Vpc, CidrBlock: 10.9.0.0/24}}
"""


def test_tasks(cloudformation):
    """RunTask of a task on Fargate fails in moto itself, because its network interface is unknown."""
    make(cloudformation, SUBNET)
    (subnet,) = boto3.client("ec2", region_name="eu-central-1").describe_subnets(
        Filters=[{"Name": "cidr-block", "Values": ["10.9.0.0/24"]}]
    )["Subnets"]
    ecs = boto3.client("ecs", region_name="eu-central-1")
    ecs.create_cluster(clusterName="c")
    ecs.register_task_definition(
        family="f",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
        containerDefinitions=[
            {"name": "x", "image": "missing", "command": ["false"], "cpu": 256, "memory": 512}
        ],
    )
    network = {"subnets": [subnet["SubnetId"]], "securityGroups": ["sg-1"]}
    with pytest.raises(AttributeError, match="private_dns_name"):
        ecs.run_task(
            cluster="c",
            taskDefinition="f",
            launchType="FARGATE",
            networkConfiguration={"awsvpcConfiguration": network},
        )


def test_lists(cloudformation):
    """A parameter with two values is described with brackets and quotes."""
    template = NETWORK.replace("Parameters:", "Parameters:\n  Ids: {Type: CommaDelimitedList}")
    ids = [{"ParameterKey": "Ids", "ParameterValue": "a,b"}]
    cloudformation.create_stack(StackName="s", TemplateBody=template, Parameters=ids)
    (stack,) = cloudformation.describe_stacks(StackName="s")["Stacks"]
    assert {"ParameterKey": "Ids", "ParameterValue": "['a', 'b']"} in stack["Parameters"]
