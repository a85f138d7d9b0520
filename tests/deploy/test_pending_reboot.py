"""A static parameter of a database: the plan, the tag, the status, the budget, and the reboot."""

import boto3
import pytest
from deploy.conftest import Run
from poolkit_command import ROOT

from poolkit.deploy.change_set import Change, ChangeSet
from poolkit.deploy.database import CLUSTER_GROUP, GROUP, RUNNING, Server, require_new_names
from poolkit.deploy.environment import Template
from poolkit.errors import DeployError

DATABASE = """\
Parameters:
  MaxConnections: {Type: Number, Default: 70}
  StatementTimeout: {Type: Number, Default: 1000}
  Class: {Type: String, Default: db.m7g.large}
Resources:
  ParameterGroup:
    Type: AWS::RDS::DBParameterGroup
    Properties:
      Description: shop
      Family: postgres17
      Parameters:
        max_connections: !Ref MaxConnections
        statement_timeout: !Ref StatementTimeout
  Instance:
    Type: AWS::RDS::DBInstance
    Properties:
      DBInstanceIdentifier: shop-database
      DBInstanceClass: !Ref Class
      Engine: postgres
      EngineVersion: "17"
      AllocatedStorage: "20"
      MasterUsername: shop
      ManageMasterUserPassword: true
      DBParameterGroupName: !Ref ParameterGroup
Outputs:
  GroupId: {Value: sg-1}
  Host: {Value: !GetAtt Instance.Endpoint.Address}
"""
SERVICE = """\
Parameters:
  GroupId: {Type: String}
  Host: {Type: String}
  Tasks: {Type: Number, Default: 1}
Resources:
  Task:
    Type: AWS::ECS::TaskDefinition
    Properties:
      Family: shop
      ContainerDefinitions:
        - Name: app
          Memory: 512
          Image: example.org/app:1
          Command: [gunicorn, -w, "2", app]
          Environment:
            - {Name: POOLKIT_TARGET, Value: web}
            - {Name: POOLKIT_ENVIRONMENT, Value: dev}
            - {Name: DATABASE_HOST, Value: !Ref Host}
  Cluster: {Type: AWS::ECS::Cluster, Properties: {ClusterName: shop}}
  Service:
    Type: AWS::ECS::Service
    Properties:
      Cluster: !Ref Cluster
      TaskDefinition: !Ref Task
      DesiredCount: !Ref Tasks
"""
ENVIRONMENT = """\
[stack]
name_prefix = "shop"
region = "eu-central-1"

[database]
StatementTimeout = 1000

[worker]
GroupId = "{database.GroupId}"
Host = "{database.Host}"
Tasks = 1
"""
NAME = "shop-database"
NEXT = "poolkit reboot --environment "

# Of the types that moto does not know, it says so and makes nothing.
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto")


@pytest.fixture
def database(shop, poolkit) -> Run:
    """Deploy a database with max_connections 70, and a service beside it."""
    for file in shop.glob("infra/*.yaml"):
        if file.stem not in {"database", "worker"}:
            file.unlink()
    (shop / "infra/database.yaml").write_text(DATABASE)
    (shop / "infra/worker.yaml").write_text(SERVICE)
    for file in shop.glob("infra/environments/*.toml"):
        file.write_text(ENVIRONMENT)

    def run(*words, environment="dev", target="database", **variables):
        options = ("--yes", "--no-lint", *words)
        return poolkit("deploy", target, "-e", environment, *options, **variables)

    return run


def first(database, environment="dev"):
    answer = database("--no-budget", environment=environment)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr
    return answer


def group_status():
    (instance,) = boto3.client("rds").describe_db_instances()["DBInstances"]
    (group,) = instance["DBParameterGroups"]
    return group["ParameterApplyStatus"]


def tags():
    (instance,) = boto3.client("rds").describe_db_instances()["DBInstances"]
    return {each["Key"]: each["Value"] for each in instance["TagList"]}


def test_the_plan_names_a_reboot_that_a_static_parameter_needs(database):
    """It names the parameter with both values, and changes nothing yet."""
    first(database)
    plan = database("--plan-only", "--no-budget", "--parameter", "MaxConnections=100")
    assert f"{NAME} needs a reboot: max_connections changes from 70 to 100" in plan.stdout
    assert NEXT + "dev" in plan.stdout
    assert group_status() == "in-sync"
    assert RUNNING not in tags()


@pytest.mark.parametrize(
    "parameter", ["StatementTimeout=2000", "MaxConnections=70"], ids=["dynamic", "same"]
)
def test_no_other_change_needs_a_reboot(database, parameter):
    """A dynamic parameter is applied at once, and the same value is no change."""
    assert "reboot" not in first(database).stdout
    done = database("--no-budget", "--parameter", parameter)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reboot" not in done.stdout
    assert group_status() == "in-sync"


def test_an_instance_that_changes_too_is_rebooted_by_aws(database):
    """CloudFormation's handler does that, unasked: the plan says so."""
    first(database)
    words = ("--parameter", "MaxConnections=100", "--parameter", "Class=db.m7g.xlarge")
    done = database("--no-budget", *words)
    assert f"{NAME} is rebooted in this deployment, by AWS: max_connections" in done.stdout
    assert group_status() == "in-sync"
    assert RUNNING not in tags()


def test_a_change_of_an_instance_that_waits_reboots_it(database):
    """The reboot is not of this change, which is why its plan must say so."""
    first(database)
    database("--no-budget", "--parameter", "MaxConnections=100")
    words = ("--parameter", "MaxConnections=100", "--parameter", "Class=db.m7g.xlarge")
    plan = database("--plan-only", "--no-budget", *words)
    assert f"{NAME} is rebooted in this deployment, by AWS: it waits" in plan.stdout


def test_from_the_change_to_the_reboot(database, poolkit):
    """Status names what waits and the command, and the command ends it."""
    first(database)
    assert "reboot" not in poolkit("status", "-e", "dev").stdout
    database("--no-budget", "--parameter", "MaxConnections=100")
    assert group_status() == "pending-reboot"
    assert tags()[RUNNING] == "70"
    status = poolkit("status", "-e", "dev")
    assert status.returncode == 0, status.stderr
    assert f"{NAME} waits for a reboot (pending-reboot)" in status.stdout
    assert "it has 70 of max_connections, and 100 after it" in status.stdout
    assert NEXT + "dev" in status.stdout

    refused = poolkit("reboot", "-e", "dev")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    done = poolkit("reboot", "-e", "dev", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{NAME}: rebooted" in done.stdout
    assert group_status() == "in-sync"
    assert RUNNING not in tags()
    assert "reboot" not in poolkit("status", "-e", "dev").stdout
    assert "no database of dev waits" in poolkit("reboot", "-e", "dev", "--yes").stdout


def test_a_second_change_keeps_the_number_that_the_server_has(database):
    """It is that of before the first one, until the reboot."""
    first(database)
    for number in (100, 200):
        database("--no-budget", "--parameter", f"MaxConnections={number}")
    assert tags()[RUNNING] == "70"


# A service with 2 processes of 15 connections is 30 a task, and twice that while it is replaced.
FITS_AFTER_THE_REBOOT = ("--parameter", "MaxConnections=200")


def test_the_budget_is_the_servers_until_it_is_rebooted(database, poolkit, shop):
    """A service that fits the new number alone is refused, and deployed after the reboot."""
    first(database)
    database("--no-budget", *FITS_AFTER_THE_REBOOT)
    raise_the_template(shop)
    refused = database("--parameter", "Tasks=2", target="worker")
    assert refused.returncode == 2, refused.stdout
    assert "65 available" in refused.stderr  # 70 less 5 reserved
    assert NEXT + "dev" in refused.stderr
    assert poolkit("reboot", "-e", "dev", "--yes").returncode == 0
    done = database("--parameter", "Tasks=2", target="worker")
    assert "waits for a reboot" not in done.stdout
    assert "does not fit" not in done.stderr.lower()


def raise_the_template(shop):
    """Write the number that the database now has into the environment's file."""
    for file in shop.glob("infra/environments/*.toml"):
        text = file.read_text().replace("[database]", "[database]\nMaxConnections = 200")
        file.write_text(text)


def test_deploying_all_stops_where_the_reboot_is_needed(database, shop):
    """The database is changed, and the service that needs the new number is not begun."""
    first(database)
    raise_the_template(shop)
    stopped = database("--parameter", "worker.Tasks=2", target="all")
    assert stopped.returncode == 1, stopped.stdout + stopped.stderr
    assert group_status() == "pending-reboot"
    assert NEXT + "dev" in stopped.stderr
    assert "changed before that: shop-dev-database" in stopped.stderr
    stacks = boto3.client("cloudformation").describe_stacks()["Stacks"]
    assert "shop-dev-worker" not in {each["StackName"] for each in stacks}


def test_a_lower_number_counts_at_once(database):
    """The server accepts fewer after its next reboot, whenever that is."""
    first(database)
    database("--no-budget", "--parameter", "MaxConnections=30")
    refused = database(target="worker")
    assert refused.returncode == 2, refused.stdout
    assert "25 available" in refused.stderr


def test_the_database_itself_is_deployed_while_it_waits(database):
    """Its number is the template's: a smaller fleet or a larger class may be the way out."""
    first(database)
    database("--no-budget", *FITS_AFTER_THE_REBOOT)
    assert database(*FITS_AFTER_THE_REBOOT).returncode == 0


def test_an_unknown_number_is_refused_outside_dev(database, poolkit):
    """Another tool changed the group: RDS does not report what the server still has."""
    first(database, "prod")
    rds = boto3.client("rds")
    (instance,) = rds.describe_db_instances()["DBInstances"]
    rds.modify_db_parameter_group(
        DBParameterGroupName=instance["DBParameterGroups"][0]["DBParameterGroupName"],
        Parameters=[
            {
                "ParameterName": "max_connections",
                "ParameterValue": "400",
                "ApplyMethod": "pending-reboot",
            }
        ],
    )
    refused = database(target="worker", environment="prod")
    assert refused.returncode == 2, refused.stdout
    assert "unknown number of max_connections" in refused.stderr
    assert NEXT + "prod" in refused.stderr
    assert "--allow-unknown-budget" in refused.stderr
    allowed = database("--allow-unknown-budget", target="worker", environment="prod")
    assert "unknown number of max_connections" in allowed.stdout


def test_the_status_of_stacks_needs_no_access_to_rds(database, poolkit):
    """A role that may not read RDS gets the table, and a line that says what is missing."""
    first(database)
    status = poolkit("status", "-e", "dev", AWS_ENDPOINT_URL_RDS="http://127.0.0.1:9")
    assert status.returncode == 0, status.stderr
    assert "shop-dev-database" in status.stdout
    assert "reboots of dev are not known" in status.stdout


# -- answers in AWS's documented form -------------------------------------------------------

INSTANCE = {
    "DBInstanceIdentifier": "reader",
    "DBInstanceArn": "arn:aws:rds:eu-central-1:123456789012:db:reader",
    "DBInstanceStatus": "available",
    "DBParameterGroups": [
        {"DBParameterGroupName": "default.aurora", "ParameterApplyStatus": "in-sync"}
    ],
    "TagList": [{"Key": RUNNING, "Value": "70"}],
}


@pytest.mark.parametrize("status", ["in-sync", "pending-reboot"])
def test_a_member_of_a_cluster_waits_for_its_clusters_group(status):
    """max_connections of Aurora stands in the cluster's parameter group."""
    members = [
        {
            "DBInstanceIdentifier": name,
            "IsClusterWriter": name == "writer",
            "DBClusterParameterGroupStatus": status if name == "reader" else "in-sync",
        }
        for name in ("writer", "reader")
    ]
    cluster = {"DBClusterParameterGroup": "of-the-cluster", "DBClusterMembers": members}
    server = Server.read("shop", "Reader", INSTANCE, cluster)
    assert server.is_pending is (status == "pending-reboot")
    assert (server.group, server.group_kind) == ("of-the-cluster", CLUSTER_GROUP)
    assert server.is_writer is False
    assert server.running == 70


def test_an_instance_alone_has_its_own_group():
    """It is its own writer."""
    server = Server.read("shop", "Instance", INSTANCE)
    assert (server.group, server.group_kind) == ("default.aurora", GROUP)
    assert server.is_writer
    assert not server.is_pending


# -- names ----------------------------------------------------------------------------------


def planned(because, type_="AWS::RDS::DBInstance", kind="replace"):
    change = Change(kind=kind, logical_id="Instance", type=type_, because=because)
    return ChangeSet(
        stack="shop-dev-database",
        target="database --environment dev",
        stack_id="arn:stack",
        id="arn:set",
        is_new=False,
        changes=(change,),
    )


@pytest.fixture
def template(tmp_path):
    file = tmp_path / "database.yaml"
    file.write_text(DATABASE)
    return Template.read("database", file)


@pytest.mark.parametrize("because", ["KmsKeyId", "", "DBName, StorageEncrypted"])
def test_what_is_replaced_and_keeps_its_name_is_refused(template, because):
    """CloudFormation would fail in the middle of the deployment."""
    with pytest.raises(DeployError, match="Instance, which keeps its name"):
        require_new_names(template, planned(because))


@pytest.mark.parametrize(
    "change_set",
    [
        planned("DBInstanceIdentifier, KmsKeyId"),
        planned("DBParameterGroupName", kind="may replace"),
        planned("Cpu", "AWS::ECS::TaskDefinition"),
    ],
    ids=["new name", "in place", "no name"],
)
def test_other_changes_are_not(template, change_set):
    """A new name, an upgrade in place, and resources that CloudFormation names."""
    require_new_names(template, change_set)


def test_the_kits_own_template_has_a_parameter_for_it():
    """Its name follows Generation, which the message names."""
    own = Template.read("database", ROOT / "infra/database.yaml")
    with pytest.raises(DeployError, match=r"--parameter database\.Generation=-2"):
        require_new_names(own, planned("KmsKeyId"))
