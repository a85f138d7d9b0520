"""Every status of a stack leads on: what a command names is accepted, and no way is a circle."""

import json
import re

import boto3
import botocore.session
import pytest
from deploy.test_deploy import bucket, deploy, statuses
from moto.cloudformation.models import CloudFormationBackend, cloudformation_backends
from poolkit_command import refused, succeeded

from poolkit.deploy.rehearsal import moto_stacks
from poolkit.deploy.statuses import STATUSES, status_of

__all__ = ["bucket"]  # a fixture

STACK = "shop-dev-network"
EVERY = (
    botocore.session.get_session().get_service_model("cloudformation").shape_for("StackStatus").enum
)
ENDS = {
    "CREATE_IN_PROGRESS": "CREATE_COMPLETE",
    "ROLLBACK_IN_PROGRESS": "ROLLBACK_COMPLETE",
    "UPDATE_IN_PROGRESS": "UPDATE_COMPLETE",
    "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS": "UPDATE_COMPLETE",
    "UPDATE_ROLLBACK_IN_PROGRESS": "UPDATE_ROLLBACK_COMPLETE",
    "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS": "UPDATE_ROLLBACK_COMPLETE",
    "IMPORT_IN_PROGRESS": "IMPORT_COMPLETE",
    "IMPORT_ROLLBACK_IN_PROGRESS": "IMPORT_ROLLBACK_COMPLETE",
}
"""What AWS's work ends in, when it goes well."""
NEXT = re.compile(r"Next: poolkit (.*?)(?=[.,;]? *(?:\n|$|, then))")
COMMANDS = {
    "deploy": ("deploy", "network", "-e", "dev"),
    "destroy": ("destroy", "network", "-e", "dev"),
    "roll back": ("deploy", "network", "-e", "dev", "--rollback"),
    "status": ("status", "network", "-e", "dev"),
}
AGREED = {"deploy": ("--yes", "--no-lint", "--no-budget"), "destroy": ("--yes-delete", STACK)}


def the_stack():
    backend = cloudformation_backends["123456789012"]["eu-central-1"]
    return next(each for each in backend.stacks.values() if each.name == STACK)


@pytest.fixture
def put_into(aws, shop, monkeypatch):
    """Give a function that brings the stack into a status; AWS ends its work after some questions."""
    asked, describe = [], CloudFormationBackend.describe_stacks

    def describe_stacks(self, name_or_id):
        found = describe(self, name_or_id)
        if name_or_id and found[0].name == STACK:
            asked.append(name_or_id)
            if len(asked) >= 4:
                found[0].status = ENDS.get(found[0].status, found[0].status)
        return found

    monkeypatch.setattr(CloudFormationBackend, "describe_stacks", describe_stacks)

    def put(status):
        cloudformation, names = boto3.client("cloudformation"), {"StackName": STACK}
        cloudformation.create_change_set(
            **names,
            ChangeSetName="planned",
            ChangeSetType="CREATE",
            TemplateBody=(shop / "infra/network.yaml").read_text(),
            Parameters=[{"ParameterKey": "VpcCidr", "ParameterValue": "10.7.0.0/16"}],
        )
        if status == "REVIEW_IN_PROGRESS":
            return
        cloudformation.execute_change_set(**names, ChangeSetName="planned")
        cloudformation.get_waiter("stack_create_complete").wait(
            **names, WaiterConfig={"Delay": 0.1}
        )
        asked.clear()
        if status == "DELETE_COMPLETE":
            cloudformation.delete_stack(**names)
        else:
            the_stack().status = status

    return put


def run_agreed(poolkit, words):
    return poolkit(*words, *AGREED.get(words[0], ()) * ("--rollback" not in words))


def test_the_table_has_every_status_of_the_service():
    """CloudFormation's own description lists them; a new one fails here."""
    assert sorted(STATUSES) == sorted(EVERY)


def test_a_status_that_aws_adds_later_has_a_way_on():
    """One that ends in _IN_PROGRESS is waited for; of any other only the removal is certain."""
    assert "--wait" in status_of("REFACTOR_IN_PROGRESS").deploy
    assert status_of("REFACTOR_FAILED").condition == "failed"
    assert "destroy" in status_of("REFACTOR_FAILED").next


@pytest.mark.parametrize("status", EVERY)
def test_a_command_is_accepted_or_names_one_that_is(poolkit, put_into, status):
    """One step is enough: the command that is named is not refused in this status."""
    for command in ("deploy", "destroy", "roll back"):
        for each in statuses():
            the_stack().status = "CREATE_COMPLETE"
            boto3.client("cloudformation").delete_stack(StackName=each)
        put_into(status)
        answer = run_agreed(poolkit, COMMANDS[command])
        if answer.returncode != 2:
            assert answer.returncode == 0, answer.stdout + answer.stderr
            continue
        if status == "DELETE_COMPLETE":
            assert "there is no stack" in answer.stderr
            continue
        assert f"is in {status}: " in answer.stderr
        (instead,) = NEXT.findall(answer.stderr)
        assert instead.split() != list(COMMANDS[command])
        answer = run_agreed(poolkit, instead.split())
        assert answer.returncode in {0, 1}, f"poolkit {instead}\n{answer.stdout}{answer.stderr}"


@pytest.mark.parametrize("status", EVERY)
def test_the_steps_of_status_lead_to_a_deployed_stack(poolkit, put_into, status):
    """From each status, following `poolkit status`, then deploying: at most four commands.

    Its exit status is 1 if the stack needs the step before it can be deployed.
    """
    put_into(status)
    shown = poolkit(*COMMANDS["status"], "--json")
    assert shown.returncode == int(status.endswith("_FAILED") or status == "ROLLBACK_COMPLETE")
    (stack,) = json.loads(shown.stdout)["stacks"]
    assert stack["status"] == ("" if status == "DELETE_COMPLETE" else status)
    assert bool(stack["next"]) is not status_is_complete(status)
    for _ in range(4):
        steps = NEXT.findall(poolkit(*COMMANDS["status"]).stdout)
        if not steps:
            break
        answer = run_agreed(poolkit, steps[0].split())
        assert answer.returncode in {0, 1}, f"poolkit {steps[0]}\n{answer.stdout}{answer.stderr}"
    answer = deploy(poolkit, "network")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert set(statuses().values()) <= moto_stacks.UPDATABLE


def status_is_complete(status):
    return status in {"CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE"}


def test_status_waits_until_aws_is_done(poolkit, put_into):
    """With --wait the command ends when no stack changes, and shows the status at the end."""
    put_into("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS")
    succeeded(poolkit(*COMMANDS["status"]), " UPDATE_COMPLETE_CLEANUP_IN_PROGRESS")
    shown = succeeded(poolkit(*COMMANDS["status"], "--wait"), " UPDATE_COMPLETE")
    assert "CLEANUP" not in shown


BALANCER = """\
  Subnet:
    Type: AWS::EC2::Subnet
    Properties: {VpcId: !Ref Vpc, CidrBlock: 10.7.0.0/24}
  Balancer:
    Type: AWS::ElasticLoadBalancingV2::LoadBalancer
    Properties:
      Name: shop
      Subnets: [!Ref Subnet]
      LoadBalancerAttributes:
        - {Key: deletion_protection.enabled, Value: PROTECTED}
Outputs:
"""
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
      DeletionProtection: PROTECTED
Outputs:
"""
PARAMETER = 'Parameters:\n  DeletionProtection: {Type: String, Default: "false"}\n'


def protect(shop, resource, value):
    """Add a protected resource to the network's template."""
    file = shop / "infra/network.yaml"
    text = file.read_text().replace("Outputs:\n", resource.replace("PROTECTED", value))
    file.write_text(text.replace("Parameters:\n", PARAMETER))


def fail_after(shop, resource):
    """Add a bucket that AWS refuses, and that comes after the protected resource."""
    after = "Balancer" if resource == BALANCER else "Instance"
    wrong = f"{{Type: AWS::S3::Bucket, DependsOn: {after}, Properties: {{BucketName: x}}}}"
    file = shop / "infra/network.yaml"
    file.write_text(file.read_text().replace("Outputs:\n", f"  Wrong: {wrong}\nOutputs:\n"))


@pytest.mark.parametrize("resource", [BALANCER, DATABASE], ids=["load balancer", "database"])
def test_a_failed_creation_with_protection_has_a_way_out(poolkit, shop, resource):
    """What is protected from the beginning ends in ROLLBACK_FAILED, and one command removes it."""
    protect(shop, resource, '"true"')
    good = (shop / "infra/network.yaml").read_text()
    fail_after(shop, resource)
    failed = deploy(poolkit, "network")
    assert failed.returncode == 1
    assert "ended in ROLLBACK_FAILED. First cause: Wrong" in failed.stderr
    (step,) = NEXT.findall(failed.stderr)
    removed = run_agreed(poolkit, step.split())
    succeeded(removed, "lifted: deletion protection of the ", "shop-dev-network: removed")
    (shop / "infra/network.yaml").write_text(good)
    assert deploy(poolkit, "network").returncode == 0


@pytest.mark.parametrize("resource", [BALANCER, DATABASE], ids=["load balancer", "database"])
def test_a_stack_is_protected_after_its_first_success(poolkit, shop, resource):
    """A creation that fails is undone as a whole; one that succeeds is followed by protection."""
    protect(shop, resource, "!Ref DeletionProtection")
    file = shop / "infra/environments/dev.toml"
    file.write_text(f'{file.read_text()}DeletionProtection = "true"\n')
    good = (shop / "infra/network.yaml").read_text()
    fail_after(shop, resource)
    failed = deploy(poolkit, "network")
    assert "ended in ROLLBACK_COMPLETE. First cause: Wrong" in failed.stderr, failed.stderr
    assert run_agreed(poolkit, COMMANDS["destroy"]).returncode == 0

    (shop / "infra/network.yaml").write_text(good)
    made = succeeded(deploy(poolkit, "network"), "created; turning DeletionProtection on")
    assert "DeletionProtection is turned on after the stack is created" in made
    assert statuses() == {STACK: "UPDATE_COMPLETE"}
    refused(run_agreed(poolkit, COMMANDS["destroy"]), "deletion protection of the ")
    assert "nothing to change" in deploy(poolkit, "network").stdout


def test_a_plan_alone_of_a_new_stack_names_the_protection(poolkit, shop):
    """--plan-only shows that protection follows, and makes neither."""
    protect(shop, BALANCER, "!Ref DeletionProtection")
    words = ("--plan-only", "--parameter", "DeletionProtection=true")
    shown = succeeded(deploy(poolkit, "network", *words), "turned on after the stack is created")
    assert "turning DeletionProtection on" not in shown
    assert statuses() == {}


def fail_removal(poolkit, shop):
    """Bring the network's stack into DELETE_FAILED; return the VPC that cannot be removed."""
    assert deploy(poolkit, "network").returncode == 0
    ec2 = boto3.client("ec2")
    (vpc,) = ec2.describe_vpcs(Filters=[{"Name": "cidr", "Values": ["10.7.0.0/16"]}])["Vpcs"]
    ec2.create_subnet(VpcId=vpc["VpcId"], CidrBlock="10.7.1.0/24")
    failed = run_agreed(poolkit, COMMANDS["destroy"])
    assert failed.returncode == 1
    assert "or give it up with --retain Vpc" in failed.stderr
    return vpc["VpcId"]


def test_what_cannot_be_removed_can_stay_in_the_account(poolkit, shop):
    """--retain removes the stack without it, in DELETE_FAILED only and for what failed only."""
    words = (*COMMANDS["destroy"], "--retain", "Vpc")
    assert deploy(poolkit, "network").returncode == 0
    refused(run_agreed(poolkit, words), "--retain is for one stack in DELETE_FAILED")
    vpc = fail_removal(poolkit, shop)
    other = (*COMMANDS["destroy"], "--retain", "Subnet")
    refused(run_agreed(poolkit, other), "it is not in DELETE_FAILED; Vpc can be retained")
    succeeded(run_agreed(poolkit, words), "to stay in the account: Vpc", f"{STACK}: removed")
    assert statuses() == {}
    assert boto3.client("ec2").describe_vpcs(VpcIds=[vpc])["Vpcs"]


def test_a_resource_can_be_skipped_when_a_rollback_failed(poolkit, put_into):
    """--skip continues without it, in UPDATE_ROLLBACK_FAILED only and for what failed only."""
    words = (*COMMANDS["roll back"], "--skip", "Vpc")
    put_into("UPDATE_FAILED")
    refused(poolkit(*words), "--skip is for a stack in UPDATE_ROLLBACK_FAILED")
    the_stack().status = "UPDATE_ROLLBACK_FAILED"
    refused(poolkit(*words), "--skip Vpc: it is not in UPDATE_FAILED")
    moto_stacks.mark(the_stack(), "Vpc", "UPDATE_FAILED")
    succeeded(poolkit(*words), f"{STACK}: UPDATE_ROLLBACK_COMPLETE", "no longer as the template")
    refused(poolkit(*COMMANDS["deploy"], "--skip", "Vpc"), "--skip belongs to --rollback")


def test_a_declined_plan_leaves_a_stack_that_another_deployment_creates(poolkit, shop, gate):
    """Two plans of one new stack share it; the one that is refused takes only its own away."""
    cloudformation = boto3.client("cloudformation")
    template = (shop / "infra/network.yaml").read_text()
    cloudformation.create_change_set(
        StackName=STACK, ChangeSetName="theirs", ChangeSetType="CREATE", TemplateBody=template
    )
    succeeded(deploy(poolkit, "network", "--plan-only"), "1 to add")
    assert statuses() == {STACK: "REVIEW_IN_PROGRESS"}
    cloudformation.execute_change_set(StackName=STACK, ChangeSetName="theirs")
    gate.end()
    assert statuses() == {STACK: "CREATE_COMPLETE"}


def test_a_plan_that_another_deployment_overtook_is_refused(poolkit, shop, monkeypatch):
    """Executing a change set ends all others of its stack; the message says to plan again."""
    from poolkit.deploy import deployment

    assert deploy(poolkit, "network").returncode == 0
    file = shop / "infra/network.yaml"
    file.write_text(f"{file.read_text()}  More: {{Value: 1}}\n")
    execute = deployment.execute

    def after_another(cloudformation, change_set):
        names = {"StackName": STACK, "ChangeSetName": "theirs"}
        cloudformation.create_change_set(
            **names,
            ChangeSetType="UPDATE",
            TemplateBody=f"{file.read_text()}  Other: {{Value: 2}}\n",
        )
        cloudformation.execute_change_set(**names)
        execute(cloudformation, change_set)

    monkeypatch.setattr(deployment, "execute", after_another)
    answer = deploy(poolkit, "network")
    message = "another change of shop-dev-network was made after this plan"
    refused(answer, message, "poolkit status network --environment dev --wait", lines=1)
