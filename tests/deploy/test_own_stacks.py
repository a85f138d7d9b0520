"""This project's own environments and templates, deployed to moto's server and removed."""

import re
import shutil

import boto3
import pytest
import yaml
from deploy.conftest import write_package
from deploy.registry import push_every_image
from deploy.stacks_project import STACK_NAME
from deploy.test_deploy import break_template, deploy
from deploy.test_deploy import statuses as every_status
from poolkit_command import ROOT, refused

from poolkit.deploy.environment import ALL, StackEnvironment

ENVIRONMENTS = sorted(file.stem for file in ROOT.glob("infra/environments/*.toml"))
ACCOUNT = "123456789012"
NAMES = ("bootstrap", "access")
PREPARED = ("poolkit-bootstrap", "poolkit-prod-access")
CERTIFICATE = f"arn:aws:iam::{ACCOUNT}:server-certificate/articles"
WORDS = ("--parameter", f"web.CertificateArn={CERTIFICATE}")

# Of the types that moto does not know, it says so and makes nothing.
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto")


@pytest.fixture
def project(shop, monkeypatch):
    """Put this project's templates into a folder, with what is to be replaced replaced."""
    shutil.rmtree(shop / "infra")
    # Another process may be writing bytecode there.
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "infra", shop / "infra", ignore=ignored)
    for file in shop.glob("infra/environments/*.toml"):
        text = file.read_text().replace("000000000000", ACCOUNT)
        file.write_text(text)
    return shop


@pytest.fixture
def production(poolkit, project):
    """Give production as its file describes it, in an account that is prepared."""
    prepared = poolkit("bootstrap", "-e", "prod", "--yes")
    assert prepared.returncode == 0, prepared.stdout[-3000:] + prepared.stderr
    push_every_image()
    return StackEnvironment.read(project, "prod")


def statuses():
    """Give the statuses of all stacks but those that `poolkit bootstrap` made."""
    return {name: status for name, status in every_status().items() if name not in PREPARED}


def deploy_production(poolkit):
    return deploy(poolkit, "all", *WORDS, environment="prod")


def replace(file, *changes):
    text = file.read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file.write_text(text)


def parameters(stack):
    (found,) = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    return {each["ParameterKey"]: each["ParameterValue"] for each in found["Parameters"]}


def destroy_production(poolkit, target="all", typed="poolkit-prod", *words):
    gone = poolkit("destroy", target, "-e", "prod", "--yes-delete", typed, *words)
    assert gone.returncode == 0, gone.stdout[-3000:] + gone.stderr
    return [line for line in gone.stdout.splitlines() if line.endswith(": removed")]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environments_stacks_have_names_that_aws_takes(name):
    """Letters, digits and hyphens, also where the environment's own name has an underscore."""
    environment = StackEnvironment.read(ROOT, name)
    for template in environment.every():
        assert re.fullmatch(STACK_NAME, environment.stack_name(template))


@pytest.mark.slow
def test_production_is_deployed_updated_and_removed(poolkit, project, production):
    """From the network to the dashboard, with every reference between the stacks resolved."""
    names = [production.stack_name(template) for template in production.chosen(ALL)]
    made = deploy_production(poolkit)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr
    assert list(statuses()) == names
    mappings = boto3.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    assert [each["FunctionResponseTypes"] for each in mappings] == [["ReportBatchItemFailures"]]
    assert len(boto3.client("rds").describe_db_instances()["DBInstances"]) == 1

    again = deploy_production(poolkit)
    assert again.stdout.count("nothing to change") == len(names), again.stdout + again.stderr

    update_production(poolkit, project, production)

    status = poolkit("status", "-e", "prod")
    assert status.stdout.count("_COMPLETE") == len(names) + len(PREPARED)
    # The load balancer and the database were protected after they were made.
    kept = poolkit("destroy", "all", "-e", "prod", "--yes-delete", "poolkit-prod")
    refused(kept, "poolkit-prod-", "protection of the", "destroy all", "--lift-protection")
    assert list(statuses()) == names
    removed = destroy_production(poolkit, "all", "poolkit-prod", "--lift-protection")
    assert removed == [f"{name}: removed" for name in reversed(names)]
    assert statuses() == {}


def update_production(poolkit, project, production):
    """Change numbers in the environment's file, code, and a template: three ways to update."""
    changes = (
        ("ApiReservedConcurrency = 100", "ApiReservedConcurrency = 90"),
        ("ApiMemory = 512", "ApiMemory = 1024"),
        ("MaxTasks = 10", "MaxTasks = 12"),
    )
    replace(production.file, *changes)
    write_package(project / "build/lambda.zip", "second")
    replace(project / "infra/worker.yaml", ("VisibilityTimeout: 630", "VisibilityTimeout: 660"))
    before, protected = parameters("poolkit-prod-lambda"), updated_stacks()
    assert protected == ["poolkit-prod-database", "poolkit-prod-web"]
    updated = deploy_production(poolkit)
    assert updated.returncode == 0, updated.stdout[-3000:] + updated.stderr
    changed = [name for name in updated_stacks() if name not in protected]
    assert changed == ["poolkit-prod-lambda", "poolkit-prod-worker"]
    assert updated.stdout.count("nothing to change") == len(statuses()) - len(changed)
    after = parameters("poolkit-prod-lambda")
    different = {name for name in after if after[name] != before[name]}
    assert different == {"ApiMemory", "ApiReservedConcurrency", "CodeKey"}
    assert parameters("poolkit-prod-worker")["MaxTasks"] == "12"
    # The resources themselves, where moto's models take an update.
    function = boto3.client("lambda").get_function(FunctionName="poolkit-prod-lambda-api")
    assert function["Configuration"]["MemorySize"] == 1024
    queue = boto3.client("sqs").get_queue_attributes(
        QueueUrl=updated_queue(), AttributeNames=["VisibilityTimeout"]
    )
    assert queue["Attributes"] == {"VisibilityTimeout": "660"}


def updated_stacks():
    return [name for name, status in statuses().items() if status == "UPDATE_COMPLETE"]


def updated_queue():
    resources = boto3.client("cloudformation").describe_stack_resource(
        StackName="poolkit-prod-worker", LogicalResourceId="Queue"
    )
    return resources["StackResourceDetail"]["PhysicalResourceId"]


@pytest.mark.slow
def test_a_resource_of_production_that_fails(poolkit, project, production):
    """What comes before stays, what comes after is not begun; repaired, the rest follows."""
    names = [production.stack_name(template) for template in production.chosen(ALL)]
    logs, group = boto3.client("logs"), "/aws/lambda/poolkit-prod-lambda-ingest"
    logs.create_log_group(logGroupName=group)  # left over from an earlier stack
    answer = deploy_production(poolkit)
    assert answer.returncode == 1, answer.stdout[-3000:] + answer.stderr
    assert "poolkit-prod-lambda ended in ROLLBACK_COMPLETE. First cause: " in answer.stderr
    assert "AWS::Logs::LogGroup) CREATE_FAILED" in answer.stderr
    assert list(statuses()) == names[: names.index("poolkit-prod-lambda") + 1]

    logs.delete_log_group(logGroupName=group)
    destroy_production(poolkit, "lambda", "poolkit-prod-lambda")
    assert deploy_production(poolkit).returncode == 0
    assert set(statuses().values()) == {"CREATE_COMPLETE", "UPDATE_COMPLETE"}

    break_template(project, "worker")
    answer = deploy_production(poolkit)
    assert answer.returncode == 1
    assert "poolkit-prod-worker ended in UPDATE_ROLLBACK_COMPLETE" in answer.stderr
    assert statuses()["poolkit-prod-dashboard"] == "CREATE_COMPLETE"


@pytest.mark.slow
def test_the_templates_need_nothing_of_poolkits(aws, project, production):
    """As `aws cloudformation deploy` and `sam deploy` do it: the file, and what has no default."""
    outputs = {template: outputs_of(stack) for template, stack in zip(NAMES, PREPARED, strict=True)}
    package = (project / "build/lambda.zip").read_bytes()
    bucket, key = outputs["bootstrap"]["ArtifactBucket"], production.tables["lambda"]["CodeKey"]
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=package)
    for template in production.chosen(ALL):
        given = production.resolved(template, outputs) | {"CertificateArn": CERTIFICATE}
        outputs[template] = deploy_by_hand(production.template_file(template), given)
    assert set(statuses().values()) == {"CREATE_COMPLETE"}
    assert list(statuses()) == [f"by-hand-{template}" for template in production.chosen(ALL)]


def deploy_by_hand(file, known):
    """Make the change set that both programs make, and execute it; give the stack's outputs."""
    cloudformation, text = boto3.client("cloudformation"), file.read_text()
    declared = yaml.load(text, Loader=yaml.Loader)["Parameters"]  # moto's, which knows the tags
    needed = [key for key, each in declared.items() if "Default" not in each]
    name = f"by-hand-{file.stem}"
    made = cloudformation.create_change_set(
        StackName=name,
        ChangeSetName=f"of-{name}",
        ChangeSetType="CREATE",
        TemplateBody=text,
        Parameters=[{"ParameterKey": key, "ParameterValue": known[key]} for key in needed],
        Capabilities=["CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    cloudformation.execute_change_set(ChangeSetName=made["Id"])
    waiter = cloudformation.get_waiter("stack_create_complete")
    waiter.wait(StackName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 100})
    return outputs_of(name)


def outputs_of(name):
    (stack,) = boto3.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
    return {each["OutputKey"]: each["OutputValue"] for each in stack.get("Outputs", ())}
